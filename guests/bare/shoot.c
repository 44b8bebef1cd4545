/*
 * Translations that one CPU takes away from all: the page table entry is changed, the others are told by an interrupt, drop what they
 * hold and answer, and the frame is used for something else. Nobody may reach it through the old address any more (SDM 3A 4.10.5).
 */
#include "lib.h"

/* Each round waits for all CPUs, of which the host may have fewer. */
#define ROUNDS (cpus < 3 ? 100 : 16)
#define POISON 0xdeadbeefdeadbeeful
#define AT 0x700000000000ul
#define MOST 8
#define ACCESSED 0x20ul
#define DIRTY 0x40ul
#define SOFTWARE 0x200ul
#define GLOBAL 0x100ul

static volatile u32 stop, wrong[MOST], acknowledged, ready;
static volatile u64 turns[MOST * 8];
static volatile int by_root;

static void drop(struct frame *f)
{
    (void)f;
    if (by_root)
        write_cr3(read_cr3());
    else
        invlpg(AT);
    asm volatile("lock incl %0" : "+m"(acknowledged));
    eoi();
}

/* Returns when no CPU has a translation of AT any more. */
static void shoot(void)
{
    if (by_root)
        write_cr3(read_cr3());
    else
        invlpg(AT);
    acknowledged = 0;
    apic_icr(ICR_FIXED | ICR_OTHERS | 0x44, 0);
    while (acknowledged != cpus - 1)
        pause();
}

/* Which of these a reader does beside. */
#define STORES 1
#define DROPS 2
#define SWITCHES 4
static u64 *other_root;

static void use(void *argument)
{
    u32 self = (u32)(u64)argument & 15, does = (u32)(u64)argument >> 4;
    volatile u64 *at = (volatile u64 *)AT;
    u64 root = read_cr3(), last = 0;
    asm volatile("lock incl %0" : "+m"(ready));
    while (!stop) {
        u64 now = *at;
        wrong[self] += now == POISON || now < last;
        last = now;
        if (does & STORES)
            at[self] = now;
        if (does & DROPS)
            invlpg(AT);
        if (does & SWITCHES) {
            write_cr3((u64)other_root);
            write_cr3(root);
        }
        turns[8 * self]++;
    }
}

static void canary(u32 does, int through_root, int global, const char *what)
{
    u64 *entry = entry_of(AT), frames[2] = { (u64)page(), (u64)page() };
    u64 bits = 3 | (global ? GLOBAL : 0);
    u32 bad = 0, rounds = argument(ROUNDS);
    by_root = through_root;
    stop = ready = 0;
    *(volatile u64 *)frames[0] = 1;
    *entry = frames[0] | bits;
    invlpg(AT);
    shoot();
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wrong[cpu] = 0;
        on_cpu(cpu, use, (void *)(u64)(cpu | does << 4), 0);
    }
    while (ready != cpus - 1)
        pause();
    for (u64 round = 2; round < rounds; round++) {
        volatile u64 *now = (volatile u64 *)frames[round & 1], *old = (volatile u64 *)frames[~round & 1];
        for (u32 i = 0; i < 16; i++)
            now[i] = round;
        *entry = (u64)now | bits;
        shoot();
        for (u32 i = 0; i < 16; i++)
            old[i] = POISON;
        u64 seen = turns[8];
        while (turns[8] < seen + 3)
            pause();
        for (u32 i = 0; i < 16; i++)
            bad += old[i] != POISON;
    }
    stop = 1;
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wait_idle(cpu);
        bad += wrong[cpu];
    }
    check(bad, 0, what);
}

/* Entries are taken away whole: the faults are counted, and what is put there again works without an invalidation. */
static volatile u64 *faulting;
static volatile u32 faults;
static void count_fault(struct frame *f)
{
    (void)f;
    asm volatile("lock incl %0" : "+m"(faults));
    while (!(*faulting & 1))
        pause();
}
static void come_and_go(void)
{
    u64 *entry = entry_of(AT), frame = (u64)page();
    stop = ready = faults = by_root = 0;
    faulting = entry;
    *(volatile u64 *)frame = 1;
    *entry = frame | 3;
    shoot();
    handle(PF, count_fault);
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wrong[cpu] = 0;
        on_cpu(cpu, use, (void *)(u64)(cpu | STORES << 4), 0);
    }
    while (ready != cpus - 1)
        pause();
    u32 bad = 0, rounds = argument(ROUNDS);
    for (u32 round = 0; round < rounds; round++) {
        *entry = 0;
        /* Who waits in its fault has interrupts disabled: it is waited for only here. */
        u64 dropped = frame;
        asm volatile("mfence" : : : "memory");
        *entry = dropped | 3;
        shoot();
        u64 seen = turns[8];
        while (turns[8] < seen + 2)
            pause();
    }
    stop = 1;
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wait_idle(cpu);
        bad += wrong[cpu];
    }
    handlers[PF] = 0;
    check(bad, 0, "an entry that comes and goes");
}

/* Accessed and dirty bits are set by one locked step, which changes nothing else, and are there before the access is seen. */
static void touch(void *argument)
{
    volatile u64 *at = (volatile u64 *)AT;
    (void)argument;
    while (!stop) {
        invlpg(AT);
        (void)*at;
        at[1]++;
    }
}
static void bits(void)
{
    u64 *entry = entry_of(AT), frame = (u64)page();
    volatile u64 *direct = (volatile u64 *)frame;
    stop = by_root = 0;
    *entry = frame | 3;
    shoot();
    on_cpu(1, touch, 0, 0);
    u32 lost = 0, early = 0, rounds = argument(ROUNDS);
    u64 flips = 0;
    for (u32 round = 0; round < rounds; round++) {
        for (u32 i = 0; i < 20; i++) {
            asm volatile("lock xorq %1, %0" : "+m"(*entry) : "r"(SOFTWARE) : "memory", "cc");
            flips ^= SOFTWARE;
            lost += (*(volatile u64 *)entry & SOFTWARE) != flips;
        }
        asm volatile("lock andq %1, %0" : "+m"(*entry) : "r"(~(ACCESSED | DIRTY)) : "memory", "cc");
        shoot();
        u64 seen = direct[1];
        while (direct[1] < seen + 2)
            pause();
        u64 now = *(volatile u64 *)entry;
        early += (now & (ACCESSED | DIRTY)) != (ACCESSED | DIRTY);
    }
    stop = 1;
    wait_idle(1);
    check(lost, 0, "no locked change of an entry is lost to an accessed or dirty bit");
    check(early, 0, "a page that was written is dirty");
}

/* An entry that nobody has used may be replaced without an invalidation (SDM 3A 4.10.4.3): the next access uses the new one. */
static void peek(void *argument)
{
    (void)argument;
    while (!stop) {
        (void)*(volatile u64 *)AT;
        invlpg(AT);
        wait_ticks(400);
    }
}
static void unused_entry(void)
{
    u64 *entry = entry_of(AT), frames[2] = { (u64)page(), (u64)page() };
    stop = by_root = 0;
    *(volatile u64 *)frames[0] = 0;
    *(volatile u64 *)frames[1] = 1;
    *entry = frames[0] | 3;
    invlpg(AT);
    on_cpu(1, peek, 0, 0);
    u32 bad = 0, untouched = 0, rounds = 20 * argument(ROUNDS);
    for (u64 round = 1; round <= rounds; round++) {
        u64 new = frames[round & 1] | 3, old;
        *entry = frames[~round & 1] | 3;
        invlpg(AT);
        wait_ticks(round * 7 % 300);
        asm volatile("xchg %1, %0" : "=m"(*entry), "=r"(old) : "1"(new) : "memory");
        if (old & ACCESSED)
            invlpg(AT);
        else
            untouched++;
        cpuid(0, 0);
        bad += *(volatile u64 *)AT != (round & 1);
    }
    stop = 1;
    wait_idle(1);
    check(bad, 0, "an entry that nobody has used may be replaced");
    report(untouched > rounds / 100, "and some were");
}

/* Two roots that share tables, and one whose table is freed and used for data while another CPU switches to and fro. */
static void *second_root(void)
{
    u64 *root = page();
    copy(root, (void *)(read_cr3() & ~0xffful), 4096);
    return root;
}

static void global_pages(void *unused)
{
    (void)unused;
    write_cr4(read_cr4() | 0x80);
}

static void t_shoot(void)
{
    check(online, cpus, "all CPUs came up");
    if (cpus < 2) {
        print("one CPU\n");
        finish(EXIT_SKIP);
    }
    handle(0x44, drop);
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, global_pages, 0, 1);
    global_pages(0);
    sti();
    (void)entry_of(AT);
    other_root = second_root();
    canary(0, 0, 0, "a frame that was taken away isn't read");
    canary(STORES, 0, 0, "or written");
    canary(STORES | DROPS, 0, 0, "nor where the others look it up all the time");
    canary(STORES | SWITCHES, 0, 0, "nor where they switch address spaces");
    canary(STORES | SWITCHES, 1, 0, "nor where they are told to load CR3");
    canary(STORES | SWITCHES, 0, 1, "nor where the page is global");
    come_and_go();
    bits();
    unused_entry();
}

/*
 * Code that is changed as Linux does it (text_poke_bp): an INT3 over its first byte, everybody serializes, the rest, everybody
 * serializes, the first byte, everybody serializes. The others run it all the time.
 */

/* mov eax, NUMBER; ret. The halves of a number are each other's complement: a blend shows. */
static u8 poked[64] __attribute__((aligned(64)));
#define FUNCTION (&poked[1])
static u32 pattern(u32 round) { return (round & 0xffff) | (~round & 0xffff) << 16; }
static volatile u32 begun, finished, stale[MOST], blended[MOST], met[MOST];
static volatile u64 calls[MOST * 8];

static void serialize_here(struct frame *f)
{
    (void)f;
    cpuid(0, 0);
    asm volatile("lock incl %0" : "+m"(acknowledged));
    eoi();
}
static void everybody_serializes(void)
{
    acknowledged = 0;
    apic_icr(ICR_FIXED | ICR_OTHERS | 0x45, 0);
    while (acknowledged != cpus - 1)
        pause();
    cpuid(0, 0);
}
/* As Linux does: what is being written is executed in its place. */
static void breakpoint(struct frame *f)
{
    if (f->rip != (u64)FUNCTION + 1)
        return;
    met[cpuid(1, 0).b >> 24]++;
    f->rax = pattern(begun);
    f->rip = (u64)FUNCTION + 5;
}
static void call_always(void *argument)
{
    u32 self = (u32)(u64)argument;
    while (!stop) {
        u32 before = finished, value;
        asm volatile("call *%1" : "=a"(value) : "r"(FUNCTION) : "memory", "cc");
        u32 after = begun, round = value & 0xffff;
        if (value != pattern(round))
            blended[self]++;
        /* Rounds count up to 65535 only, so these can be compared. */
        else if (round < before || round > after)
            stale[self]++;
        calls[8 * self]++;
    }
}

static void t_poke(void)
{
    check(online, cpus, "all CPUs came up");
    if (cpus < 2) {
        print("one CPU\n");
        finish(EXIT_SKIP);
    }
    u32 rounds = argument(ROUNDS);
    if (rounds > 0xffff)
        rounds = 0xffff;
    handle(0x45, serialize_here);
    handle(BP, breakpoint);
    sti();
    poked[1] = 0xb8;
    *(volatile u32 *)&poked[2] = pattern(0);
    poked[6] = 0xc3;
    stop = 0;
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, call_always, (void *)(u64)cpu, 0);
    for (u32 round = 1; round <= rounds; round++) {
        *(volatile u8 *)&poked[1] = 0xcc;
        begun = round;
        everybody_serializes();
        *(volatile u32 *)&poked[2] = pattern(round);
        everybody_serializes();
        *(volatile u8 *)&poked[1] = 0xb8;
        everybody_serializes();
        finished = round;
        u64 seen = calls[8];
        while (calls[8] < seen + 3)
            pause();
    }
    stop = 1;
    u64 all = 0, breakpoints = 0, old = 0, mixed = 0;
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wait_idle(cpu);
        all += calls[8 * cpu];
        breakpoints += met[cpu];
        old += stale[cpu];
        mixed += blended[cpu];
    }
    check(old, 0, "no stale execution");
    check(mixed, 0, "no blend of old and new");
    report(breakpoints > 0, "breakpoints were met");
    print("  rounds ");
    print_number(rounds, 10);
    print(", calls ");
    print_number(all, 10);
    print(", breakpoints ");
    print_number(breakpoints, 10);
    print("\n");
}

const struct group shoot_groups[] = { { "shoot", t_shoot }, { "poke", t_poke }, { 0, 0 } };
