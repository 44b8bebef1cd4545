/* Interrupt controllers and interrupts between CPUs. */
#include "lib.h"

static volatile u32 count, order[8];
static volatile u64 where;

static void counted(struct frame *f)
{
    where = f->rip;
    count++;
    eoi();
}

static int wait_for(volatile u32 *what, u32 value)
{
    u64 start = rdtsc();
    while (*what != value && rdtsc() - start < 4000000000ul)
        pause();
    return *what == value;
}

static int try_base(u64 value) { return try_wrmsr(MSR_APICBASE, value); }

static void disabled_is_silent(void)
{
    volatile u32 *version = (u32 *)(0xfee00000ul + APIC_VERSION), *tpr = (u32 *)(0xfee00000ul + APIC_TPR);
    u64 cr8 = read_cr8();
    fill((void *)0xfee00000ul, 0xff, 4096);
    check(*version, 0xffffffff, "no version register");
    check(read_cr8(), cr8, "CR8 keeps");
    write_cr8(cr8 ^ 15);
    check(read_cr8(), cr8 ^ 15, "CR8 can be written");
    check(*tpr, 0xffffffff, "no TPR");
    write_cr8(cr8);
}

static void t_apic(void)
{
    u64 base = rdmsr(MSR_APICBASE) & ~(u64)(APICBASE_EN | APICBASE_EXTD);
    u32 version = apic_read(APIC_VERSION);
    report((version & 0xff) >= 0x10 && (version & 0xff) <= 0x15, "an integrated APIC");
    check(rdmsr(MSR_APICBASE) & (APICBASE_EN | APICBASE_EXTD), APICBASE_EN | APICBASE_EXTD, "x2APIC mode");
    check(apic_read(APIC_ID), cpuid(11, 0).d, "x2APIC id");
    check(try_wrmsr(0x802, 1), GP, "the x2APIC id is read-only");

    report(try_base(base | APICBASE_EXTD) == GP, "x2APIC to invalid");
    report(try_base(base | APICBASE_EN) == GP, "x2APIC to xAPIC");
    report(try_base(base) == -1, "x2APIC to disabled");
    report(!has(1, 0, 'd', 9), "CPUID's APIC bit goes");
    report(try_base(base | APICBASE_EXTD) == GP, "disabled to invalid");
    report(try_base(base | APICBASE_EXTD | APICBASE_EN) == GP, "disabled to x2APIC");
    disabled_is_silent();
    reset_apic();
    report(has(1, 0, 'd', 9), "CPUID's APIC bit comes back");
    check(*(volatile u32 *)(0xfee00000ul + APIC_VERSION), version, "the version register comes back");
    check(*(volatile u32 *)(0xfee00000ul + APIC_TPR), 0, "TPR is zero");
    write_cr8(15);
    check(*(volatile u32 *)(0xfee00000ul + APIC_TPR), 0xf0, "CR8 is TPR 7:4");
    write_cr8(0);
    check(apic_read(APIC_ID) >> 24, cpuid(1, 0).b >> 24, "xAPIC id");
    report(try_base(base | APICBASE_EXTD) == GP, "xAPIC to invalid");
    report(try_rdmsr(0x803) == GP, "no x2APIC registers in xAPIC mode");

    u64 bits = cpuid(0x80000008, 0).a & 0xff;
    report(try_base(base | APICBASE_EN | 1ul << bits) == GP, "reserved address bits");
    report(try_base(base | APICBASE_EN | 1) == GP, "reserved low bits");
    wrmsr(MSR_APICBASE, base);
    wrmsr(MSR_APICBASE, 0xfed40000 | 0x100 | APICBASE_EN);
    check(*(volatile u32 *)(0xfed40000ul + APIC_VERSION), version, "relocated");
    wrmsr(MSR_APICBASE, base | APICBASE_EN);
    apic_write(APIC_SVR, 0x1ff);

    handle(0xf1, counted);
    sti();
    count = 0;
    apic_icr(ICR_SELF | 0xf1, 0);
    nop();
    check(count, 1, "self IPI, xAPIC");
    apic_icr(0xf1, 0);
    nop();
    check(count, 2, "IPI to the own id, xAPIC");
    enable_x2apic();
    disabled_is_silent();
    apic_icr(ICR_SELF | 0xf1, 0);
    nop();
    check(count, 3, "self IPI, x2APIC");
    wrmsr(0x83f, 0xf1);
    nop();
    check(count, 4, "self IPI register");
    report(try_wrmsr(0x83f, 0x100) == GP, "reserved bits of the self IPI register");
    check(try_wrmsr(0x830, 0xf1 | ICR_SELF), -1, "ICR takes it");
    check(count, 5, "the IPI comes before the next instruction");

    /* TPR holds back; ISR holds back what isn't higher. */
    write_cr8(15);
    apic_icr(ICR_SELF | 0xe1, 0);
    handle(0xe1, counted);
    nop();
    check(count, 5, "TPR holds an interrupt back");
    check(apic_read(APIC_IRR + 0x70) >> 1 & 1, 1, "IRR has it");
    write_cr8(0);
    nop();
    check(count, 6, "lower TPR lets it through");
    /* ESR. */
    apic_write(APIC_ESR, 0);
    apic_icr(ICR_SELF | 5, 0);
    apic_write(APIC_ESR, 0);
    report(apic_read(APIC_ESR) & 0x60, "ESR shows an illegal vector");
    apic_write(APIC_ESR, 0);
    check(apic_read(APIC_ESR), 0, "ESR is clean");
    /* All registers of x2APIC mode: what they say can be written back; the others fault. */
    int good = 1;
    for (u32 i = 0; i < 0x100; i++) {
        int readable = i == 2 || i == 3 || i == 8 || i == 10 || i == 13 || i == 15 || (i >= 0x10 && i < 0x29 && i != 0x28) || i == 0x28
            || i == 0x30 || (i >= 0x32 && i <= 0x39) || i == 0x3e;
        int writable = i == 8 || i == 11 || i == 15 || i == 0x28 || i == 0x30 || (i >= 0x32 && i <= 0x38) || i == 0x3e || i == 0x3f;
        int read_ok = try_rdmsr(0x800 + i) == -1;
        int wide_ok = i != 0x30 && try_wrmsr(0x800 + i, ~0ul) == -1;
        int write_ok = writable && readable && i != 0x28 && i != 0x30 ? try_wrmsr(0x800 + i, rdmsr(0x800 + i)) == -1 : writable;
        int zero_faults = writable || try_wrmsr(0x800 + i, 0) == GP;
        if (read_ok != readable || write_ok != writable || wide_ok || !zero_faults) {
            print("x2APIC register ");
            print_number(i, 16);
            print(" is odd\n");
            good = 0;
        }
    }
    report(good, "x2APIC registers");
}

/* NMIs. */

static volatile u32 nmis, inner;
static volatile u64 nmi_rip;
extern u8 after_sti[];
static volatile u32 nmi_in_shadow;
static void nmi_seen(struct frame *f)
{
    nmis++;
    nmi_in_shadow += f->rip == (u64)after_sti;
}
static volatile u32 looping;
static void sti_loop(void *unused)
{
    (void)unused;
    u64 k = 0;
    /* STI casts its shadow only where IF was clear. */
    cli();
    while (looping) {
        volatile u8 *at = (u8 *)(k++ * 4096 % (128ul << 20));
        asm volatile("sti\n.globl after_sti\nafter_sti: testb $0, %0\nnop\ncli" : : "m"(*at));
    }
}
static void nmi_again(struct frame *f)
{
    (void)f;
    if (++nmis == 1)
        for (int i = 0; i < 10; i++)
            apic_icr(ICR_NMI, 0);
}
static volatile u32 done, flushed, a1, b1, a2, b2;
static void flush(struct frame *f) { (void)f; flushed = 1; eoi(); }
static void nmi_seen_simple(struct frame *f) { (void)f; nmis++; }
static void nmi_sender(void *unused)
{
    (void)unused;
    while (!done) {
        b1++;
        while (b1 != a1 && !done)
            pause();
        if (done)
            return;
        apic_icr(ICR_NMI, 0);
        apic_icr(ICR_FIXED | 0x44, 0);
        b2++;
        while (b2 != a2 && !done)
            pause();
    }
}

static void nmi_tests(int rounds)
{
    handle(2, nmi_again);
    u32 bad = 0;
    for (int i = 0; i < rounds; i++) {
        nmis = 0;
        apic_icr(ICR_NMI, 0);
        for (int k = 0; nmis < 2 && k < 1000000; k++)
            pause();
        bad += nmis != 2;
    }
    check(bad, 0, "NMIs within an NMI's handler come once after it");
    if (cpus < 2)
        return;
    handle(2, nmi_seen);
    looping = 1;
    nmis = 0;
    on_cpu(1, sti_loop, 0, 0);
    for (int i = 0; i < rounds; i++) {
        u32 before = nmis;
        apic_icr(ICR_NMI, 1);
        if (!wait_for(&nmis, before + 1))
            break;
    }
    looping = 0;
    wait_idle(1);
    check(nmis, rounds, "each NMI arrives");
    check(nmi_in_shadow, 0, "no NMI right after STI");

    handle(2, nmi_seen_simple);
    handle(0x44, flush);
    sti();
    a1 = b1 = a2 = b2 = done = 0;
    on_cpu(1, nmi_sender, 0, 0);
    bad = 0;
    for (int i = 0; i < rounds; i++) {
        flushed = 0;
        nmis = 0;
        a1++;
        while (b1 != a1)
            pause();
        apic_icr(ICR_NMI, 0);
        if (!wait_for(&flushed, 1))
            break;
        bad += nmis != 2;
        a2++;
        while (b2 != a2)
            pause();
    }
    done = 1;
    wait_idle(1);
    check(bad, 0, "two NMIs at once are two");
}

static void t_nmi(void)
{
    nmi_tests(300);
    reset_apic();
    nmi_tests(100);
}

/* The timer. */

static void until_zero(u32 initial, int half, int wrap)
{
    u32 now = apic_read(APIC_TMCCT);
    if (!now)
        return;
    while (now > initial / 2)
        now = apic_read(APIC_TMCCT);
    if (half)
        return;
    while (now <= initial / 2 && now > 0)
        now = apic_read(APIC_TMCCT);
    while (wrap && !now)
        now = apic_read(APIC_TMCCT);
}

static void change_mode(u32 mode) { apic_write(APIC_LVTT, (apic_read(APIC_LVTT) & ~0x60000) | mode); }

/* Counts down and around in both modes; what went wrong, or 0. */
static const char *modes(u32 initial)
{
    apic_write(APIC_TMICT, initial);
    change_mode(0x20000);
    if (apic_read(APIC_TMICT) != initial)
        return "the initial count stays";
    change_mode(0);
    apic_write(APIC_TMICT, initial);
    if (!apic_read(APIC_TMCCT))
        return "it counts";
    until_zero(initial, 0, 0);
    if (apic_read(APIC_TMCCT))
        return "down to zero";
    apic_write(APIC_TMICT, initial);
    until_zero(initial, 1, 0);
    change_mode(0x20000);
    u32 now = apic_read(APIC_TMCCT);
    if (!now || now > initial / 2)
        return "going periodic doesn't restart the count";
    until_zero(initial, 0, 1);
    if (apic_read(APIC_TMCCT) <= initial / 2)
        return "periodic starts over";
    until_zero(initial, 1, 0);
    change_mode(0);
    if (apic_read(APIC_TMCCT) > initial / 2)
        return "going one-shot doesn't restart the count";
    until_zero(initial, 0, 0);
    return apic_read(APIC_TMCCT) ? "one-shot ends at zero" : 0;
}

static void t_timer(void)
{
    handle(0xee, counted);
    sti();
    apic_write(APIC_LVTT, 0xee);
    apic_write(APIC_TDCR, 0xb);
    u64 start = rdtsc();
    count = 0;
    apic_write(APIC_TMICT, 0x10000);
    report(wait_for(&count, 1), "one shot goes off");
    report(rdtsc() - start >= 0x10000, "one shot is not early");
    wait_ticks(10000000);
    check(count, 1, "one shot goes off once");

    /* A busy host may take a vCPU's time away in the middle, so each round of this is longer than the one before. */
    u32 initial = 10000000;
    const char *wrong = "";
    for (int round = 0; round < 5 && wrong; round++, initial *= 2)
        wrong = modes(initial);
    report(!wrong, wrong ? wrong : "one-shot and periodic share the count");
    change_mode(0x20000);
    check(apic_read(APIC_TMCCT), 0, "and stays there");
    apic_write(APIC_TMICT, 0);

    count = 0;
    apic_write(APIC_TMICT, 200000);
    report(({ u64 t = rdtsc(); while (count < 5 && rdtsc() - t < 4000000000ul) pause(); count >= 5; }), "periodic goes on");
    apic_write(APIC_TMICT, 0);
    apic_write(APIC_LVTT, 0x10000);

    /* TSC deadline. */
    count = 0;
    apic_write(APIC_LVTT, 2 << 17 | 0xee);
    wrmsr(0x6e0, rdmsr(0x10));
    nop();
    check(count, 1, "a TSC deadline that has come");
    check(rdmsr(0x6e0), 0, "it is cleared");
    u64 due = rdtsc() + 3000000;
    wrmsr(0x6e0, due);
    check(rdmsr(0x6e0), due, "a deadline to come");
    cli();
    while (count < 2 && rdtsc() < due + 4000000000ul)
        asm volatile("sti; hlt; cli");
    check(count, 2, "it wakes from HLT");
    report(rdtsc() >= due, "and is not early");
    sti();
    wrmsr(0x6e0, rdtsc() + 50000000);
    wrmsr(0x6e0, 0);
    wait_ticks(60000000);
    check(count, 2, "a deadline taken back");
    apic_write(APIC_LVTT, 0x10000);
}

/* Others. */

static volatile u32 arrived[8];
static void arrived_here(struct frame *f)
{
    (void)f;
    u32 id = apic_read(APIC_ID);
    id = rdmsr(MSR_APICBASE) & APICBASE_EXTD ? id : id >> 24;
    asm volatile("lock incl %0" : "+m"(arrived[id]));
    eoi();
}
static void mark(void *to) { *(volatile u32 *)to = cpuid(1, 0).b >> 24; }
#define ANY (1u << 31)
/* Who was interrupted, and eight bits higher who was more than once. Waits for those in `wanted`, or for anybody, or for a while. */
static u32 got(u32 wanted)
{
    u64 start = rdtsc();
    u32 seen = 0;
    while (wanted && (wanted == ANY ? !seen : (seen & wanted) != wanted) && rdtsc() - start < 4000000000ul) {
        seen = 0;
        for (u32 i = 0; i < 8; i++)
            seen |= arrived[i] ? 1 << i : 0;
        pause();
    }
    wait_ticks(5000000);
    u32 mask = 0;
    for (u32 i = 0; i < 8; i++) {
        mask |= arrived[i] == 1 ? 1 << i : arrived[i] ? 0x100 << i : 0;
        arrived[i] = 0;
    }
    return mask;
}
static void go_xapic(void *logical) { reset_apic(); apic_write(APIC_LDR, (u32)(u64)logical << 24); apic_write(APIC_DFR, 0xffffffff); }
static void go_cluster(void *logical) { apic_write(APIC_DFR, 0x0fffffff); apic_write(APIC_LDR, (u32)(u64)logical << 24); }
static volatile u32 shared;
static void add(void *times)
{
    for (u64 i = 0; i < (u64)times; i++)
        asm volatile("lock incl %0" : "+m"(shared));
}

static void t_smp(void)
{
    u32 all = (1 << cpus) - 1;
    check(online, cpus, "all CPUs came up");
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        volatile u32 who = 99;
        on_cpu(cpu, mark, (void *)&who, 1);
        check(who, cpu, "a call runs where it should");
    }
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, add, (void *)100000, 0);
    add((void *)100000);
    for (u32 cpu = 1; cpu < cpus; cpu++)
        wait_idle(cpu);
    check(shared, 100000 * cpus, "LOCK is atomic");
    handle(0x42, arrived_here);
    sti();
    apic_icr(ICR_FIXED | ICR_ALL | 0x42, 0);
    check(got(all), all, "to all");
    apic_icr(ICR_FIXED | ICR_OTHERS | 0x42, 0);
    check(got(all & ~1), all & ~1, "to the others");
    apic_icr(ICR_FIXED | 0x42, 0xffffffff);
    check(got(all), all, "broadcast, x2APIC");
    apic_icr(ICR_FIXED | ICR_LOGICAL | 0x42, all);
    check(got(all), all, "logical, x2APIC");
    if (cpus > 1) {
        apic_icr(ICR_FIXED | ICR_LOGICAL | 0x42, 2);
        check(got(2), 2, "logical to one, x2APIC");
    }
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, go_xapic, (void *)(1ul << cpu), 1);
    go_xapic((void *)1);
    apic_icr(ICR_FIXED | 0x42, 0xff);
    check(got(all), all, "broadcast, xAPIC");
    apic_icr(ICR_FIXED | ICR_LOGICAL | 0x42, all);
    check(got(all), all, "logical, flat");
    apic_icr(ICR_FIXED | ICR_LOGICAL | 0x100 | 0x42, all);
    u32 one = got(ANY);
    report(one && !(one & (one - 1)) && one <= all, "lowest priority is for one");
    /* A cluster has four. */
    if (cpus > 4)
        return;
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, go_cluster, (void *)(0x10ul | 1 << cpu), 1);
    go_cluster((void *)0x11);
    apic_icr(ICR_FIXED | ICR_LOGICAL | 0x42, 0x10 | all);
    check(got(all), all, "logical, cluster");
    apic_icr(ICR_FIXED | ICR_LOGICAL | 0x42, 0x20 | all);
    check(got(0), 0, "another cluster");
    apic_icr(ICR_FIXED | ICR_LOGICAL | 0x42, 0xf0 | all);
    check(got(all), all, "all clusters");
}

/* The I/O APIC and the PIC, with lines that the test device drives. */

static u32 io_read(u32 reg) { *(volatile u32 *)0xfec00000ul = reg; return *(volatile u32 *)0xfec00010ul; }
static void io_write(u32 reg, u32 value) { *(volatile u32 *)0xfec00000ul = reg; *(volatile u32 *)0xfec00010ul = value; }
static void route(u32 pin, u32 low, u32 destination) { io_write(0x11 + 2 * pin, destination << 24); io_write(0x10 + 2 * pin, low); }
static void line(u32 pin, u32 level) { outb(0x2000 + pin, level); }

static volatile u32 hits[4];
static void hit76(struct frame *f) { (void)f; order[hits[0]++ & 7] = 0x76; eoi(); }
static void hit77(struct frame *f) { (void)f; order[hits[1]++ & 7] = 0x77; line(0xe, 0); eoi(); }
static void hit78(struct frame *f) { (void)f; if (++hits[2] == 2) line(0xe, 0); eoi(); }
static void hit79(struct frame *f) { (void)f; hits[3]++; route(0xe, 0x10000 | 0x8000 | 0x79, 0); line(0xe, 0); eoi(); }

static void t_ioapic(void)
{
    check(io_read(0) >> 24, 0, "id at reset");
    io_write(0, 0x0f000000);
    check(io_read(0) >> 24, 0xf, "the id can be written");
    check(io_read(2) >> 24, 0xf, "the arbitration id follows");
    io_write(0, 0);
    check(io_read(1) >> 16 & 0xff, 23, "24 pins");
    report((io_read(1) & 0xff) >= 0x11, "version");
    io_write(1, ~0u);
    check(io_read(1) >> 16 & 0xff, 23, "the version is read-only");
    handle(0x76, hit76);
    handle(0x77, hit77);
    handle(0x78, hit78);
    handle(0x79, hit79);
    sti();
    route(0xd, 0x76, 0);
    line(0xd, 1);
    nop();
    check(hits[0], 1, "an edge");
    line(0xd, 1);
    nop();
    check(hits[0], 1, "no edge");
    line(0xd, 0);
    nop();
    check(hits[0], 1, "a falling edge is nothing");
    line(0xd, 1);
    nop();
    check(hits[0], 2, "another edge");
    line(0xd, 0);
    route(0xe, 0x8000 | 0x77, 0);
    line(0xe, 1);
    nop();
    check(hits[1], 1, "a level");
    wait_ticks(100000);
    check(hits[1], 1, "a level that the handler lowers comes once");
    cli();
    line(0xd, 1);
    line(0xe, 1);
    hits[0] = hits[1] = 0;
    sti();
    nop();
    check(hits[0] + hits[1], 2, "two at once");
    line(0xd, 0);
    route(0xe, 0x8000 | 0x78, 0);
    line(0xe, 1);
    nop();
    nop();
    check(hits[2], 2, "a level that stays comes again after EOI");
    check(io_read(0x10 + 2 * 0xe) & 0x4000, 0, "remote IRR is clear");
    /* Masked: edges are lost, levels wait. */
    route(0xd, 0x10000 | 0x76, 0);
    hits[0] = 0;
    line(0xd, 1);
    route(0xd, 0x76, 0);
    nop();
    check(hits[0], 0, "an edge while masked is lost");
    line(0xd, 0);
    hits[1] = 0;
    route(0xe, 0x18000 | 0x77, 0);
    line(0xe, 1);
    nop();
    check(hits[1], 0, "a level while masked waits");
    route(0xe, 0x8000 | 0x77, 0);
    nop();
    check(hits[1], 1, "and comes when unmasked");
    route(0xe, 0x8000 | 0x79, 0);
    line(0xe, 1);
    nop();
    check(hits[3], 1, "a level masked by its handler");
    /* Remote IRR while in service. */
    route(0xe, 0x8000 | 0x77, 0);
    cli();
    line(0xe, 1);
    check(io_read(0x10 + 2 * 0xe) & 0x4000, 0x4000, "remote IRR is set");
    sti();
    nop();
    check(io_read(0x10 + 2 * 0xe) & 0x4000, 0, "EOI clears remote IRR");
    if (cpus > 1) {
        handle(0x43, arrived_here);
        route(0xd, 0x43, 1);
        line(0xd, 1);
        line(0xd, 0);
        check(got(2), 2, "physical, to CPU 1");
        route(0xd, 0x800 | 0x43, 3);
        line(0xd, 1);
        line(0xd, 0);
        check(got(3), 3, "logical, to both");
    }
    route(0xd, 0x10000, 0);
    route(0xe, 0x10000, 0);

    /* PIC: IRQ 11 through LINT0 as ExtINT. */
    outb(0x20, 0x11); outb(0x21, 0x30); outb(0x21, 4); outb(0x21, 1);
    outb(0xa0, 0x11); outb(0xa1, 0x38); outb(0xa1, 2); outb(0xa1, 1);
    outb(0x21, 0xfb);
    outb(0xa1, 0xf7);
    apic_write(APIC_LVT0, 0x700);
    count = 0;
    extern void pic_hit(struct frame *);
    handle(0x3b, pic_hit);
    cli();
    line(11, 1);
    sti();
    nop();
    check(count, 1, "PIC: IRQ 11");
    line(11, 0);
    line(11, 1);
    nop();
    check(count, 2, "PIC: again after EOI");
    line(11, 0);
    /* PIT channel 0 through the PIC, HLT. */
    handle(0x30, pic_hit);
    outb(0x43, 0x34); outb(0x40, 0x00); outb(0x40, 0x10);
    outb(0x21, 0xfe);
    count = 0;
    cli();
    for (int i = 0; i < 3; i++)
        asm volatile("sti; hlt; cli");
    report(count >= 3, "PIT wakes from HLT");
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    apic_write(APIC_LVT0, 0x10000);
}
void pic_hit(struct frame *f)
{
    count++;
    if (f->vector >= 0x38)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

/* Order and timing of injected events. */

static volatile u32 trace;
static void t32(struct frame *f) { (void)f; trace = trace << 8 | 0x32; eoi(); }
static void t62(struct frame *f) { (void)f; trace = trace << 8 | 0x62; apic_icr(ICR_SELF | 0x32, 0); eoi(); asm volatile("nop"); }
static void t21(struct frame *f) { (void)f; trace = trace << 8 | 0x21; }
static void soft(struct frame *f) { (void)f; count++; }
static void pf_fix(struct frame *f) { (void)f; count++; *entry_of(read_cr2()) |= 1; invlpg(read_cr2()); }
static volatile u32 nested;
static void nmi_iret(struct frame *f)
{
    (void)f;
    count++;
    if (nested) {
        nested = 0;
        apic_icr(ICR_SELF | ICR_NMI, 0);
        nop();
        check(count, 1, "an NMI within an NMI waits");
    }
}

static void t_events(void)
{
    handle(0x32, t32);
    handle(0x62, t62);
    sti();
    nop();
    trace = 0;
    apic_icr(ICR_SELF | 0x32, 0);
    check(trace, 0x32, "taken at once");
    cli();
    trace = 0;
    apic_icr(ICR_SELF | 0x32, 0);
    apic_icr(ICR_SELF | 0x62, 0);
    check(trace, 0, "not with IF clear");
    asm volatile("sti; nop; cli" : : : "memory");
    check(trace, 0x6232, "the higher first, both before the next but one instruction");
    trace = 0;
    apic_icr(ICR_SELF | 0x32, 0);
    asm volatile("sti; cli" : : : "memory");
    check(trace, 0, "STI's shadow covers CLI");
    asm volatile("sti; nop; cli" : : : "memory");
    check(trace, 0x32, "and then it comes");
    trace = 0;
    handle(0x21, t21);
    apic_icr(ICR_SELF | 0x32, 0);
    asm volatile("sti; int $0x21; cli" : : : "memory");
    check(trace, 0x2132, "INT n in STI's shadow comes before the interrupt");
    trace = 0;
    write_cr8(15);
    sti();
    apic_icr(ICR_SELF | 0x32, 0);
    apic_icr(ICR_SELF | 0x62, 0);
    write_cr8(3);
    check(trace, 0x62, "TPR lets the higher through");
    write_cr8(0);
    check(trace, 0x6232, "and then the lower, once");
    cli();
    /* Through a stack and a gate whose pages fault. */
    u8 *stack = page();
    handle(0x21, soft);
    count = 0;
    asm volatile("int $0x21");
    check(count, 1, "INT n");
    handle(PF, pf_fix);
    count = 0;
    u64 *entry = entry_of((u64)stack);
    *entry &= ~1ul;
    invlpg((u64)stack);
    *(volatile u8 *)stack = 1;
    check(count, 1, "a page brought in by the handler");
    count = 0;
    handle(2, nmi_iret);
    nested = 1;
    count = 0;
    apic_icr(ICR_SELF | ICR_NMI, 0);
    nop();
    check(count, 2, "and comes after IRET");
    /* MOV SS holds everything back for one instruction. */
    trace = 0;
    handlers[PF] = 0;
    cli();
    apic_icr(ICR_SELF | 0x32, 0);
    u64 before;
    asm volatile("mov %%ss, %%eax; sti; mov %%eax, %%ss; mov %1, %%ecx; mov %%rcx, %0; cli" : "=m"(before) : "m"(trace) : "rax", "rcx", "memory");
    check((u32)before, 0, "STI and MOV SS: two shadows");
    sti();
    nop();
    check(trace, 0x32, "and then it comes");
    /* DIV, BOUND-like, overflow of INT3 from user code. */
    caught = TRY("div %%ecx", , "a"(1), "d"(0), "c"(0));
    check(caught, 0, "#DE");
}

const struct group apic_groups[] = {
    { "apic", t_apic }, { "nmi", t_nmi }, { "timer", t_timer }, { "smp", t_smp },
    { "ioapic", t_ioapic }, { "events", t_events }, { 0, 0 },
};
