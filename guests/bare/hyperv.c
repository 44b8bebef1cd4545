/* The interface of Hyper-V: identity, time, APIC accesses, flushes and IPIs for many vCPUs. */
#include "hyperv.h"

static void *call_page;

void *hyperv_page(void)
{
    if (!call_page) {
        call_page = page();
        wrmsr(GUEST_OS_ID, 0x8100000000000001ul);
        wrmsr(HYPERCALL, (u64)call_page | 1);
    }
    return call_page;
}

u64 hypercall(u64 value, u64 input, u64 second)
{
    u64 result;
    register u64 r8 asm("r8") = second;
    asm volatile("call *%4" : "=a"(result), "+c"(value), "+d"(input), "+r"(r8) : "r"(call_page) : "memory", "r9", "r10", "r11");
    return result;
}

int becomes_at_least(volatile u32 *what, u32 wanted)
{
    u64 start = rdtsc();
    while (*what < wanted && rdtsc() - start < 20000000000ul)
        pause();
    return *what >= wanted;
}

static u64 call_in_user(u64 code)
{
    u64 result;
    asm volatile("vmcall" : "=a"(result) : "c"(code) : "memory");
    return result;
}

static void identity(void)
{
    struct cpuid r = cpuid(0x40000000, 0);
    report(r.b == 0x7263694d && r.c == 0x666f736f && r.d == 0x76482074, "Hyper-V's signature");
    check(cpuid(0x40000001, 0).a, 0x31237648, "Hv#1");
    u32 may = cpuid(0x40000003, 0).a;
    check(may & 0xe7f, 0xe7f, "privileges");
    check(may & ~0xe7fu & ~(1u << 7), 0, "none that isn't there");
    check(TRY("vmcall", AD, "c"(8 | FAST)), UD, "no call without an identity");
    wrmsr(HYPERCALL, (u64)page() | 1);
    check(rdmsr(HYPERCALL) & 1, 0, "no page either");
    check(try_wrmsr(HYPERCALL, 0), -1, "which isn't a fault");
    wrmsr(GUEST_OS_ID, 1);
    check(try_wrmsr(HYPERCALL, NOT_RAM | 1), GP, "a page outside RAM");
    hyperv_page();
    check(rdmsr(HYPERCALL), (u64)call_page | 1, "the page of calls");
    check(hypercall(8 | FAST, 5, 0), 0, "a call through it");
    in_user(call_in_user, 8 | FAST);
    check((u64)user_fault, UD, "not from user code");
    wrmsr(HYPERCALL, (u64)call_page | 3);
    wrmsr(HYPERCALL, 0);
    check(rdmsr(HYPERCALL), (u64)call_page | 3, "a locked page stays");
    check(rdmsr(VP_INDEX), 0, "the index of the first");
    check(try_wrmsr(VP_INDEX, 1), GP, "which can't be written");
    for (u32 msr = 0x40000000; msr < 0x40000120; msr++) {
        int known = msr <= 0x40000003 || msr == VP_RUNTIME || (msr >= 0x40000020 && msr <= 0x40000023) || (msr >= 0x40000071 && msr <= 0x40000073)
            || (msr >= 0x40000080 && msr <= 0x40000084) || (msr >= 0x40000090 && msr <= 0x4000009f) || (msr >= 0x400000b0 && msr <= 0x400000b7)
            || msr == GUEST_IDLE || (msr >= CRASH_P0 && msr <= CRASH_CTL);
        if (msr != GUEST_IDLE && (try_rdmsr(msr) == -1) != known)
            check(msr, 0, "this MSR is odd");
    }
    check(try_rdmsr(HV_EOI), GP, "EOI can't be read");
}

static void time(void)
{
    u64 hz = rdmsr(TSC_FREQUENCY);
    report(hz / 1000 - cpuid(0x40000010, 0).a + 1 <= 2, "the TSC's frequency");
    check(rdmsr(APIC_FREQUENCY), 1000000000, "the APIC timer's");
    check(try_wrmsr(TSC_FREQUENCY, 1), GP, "can't be written");
    check(try_wrmsr(REFERENCE_COUNT, 1), GP, "nor can the count");
    volatile struct { u32 sequence, pad; u64 scale; long offset; } *ref = page();
    check(try_wrmsr(REFERENCE_TSC, NOT_RAM | 1), GP, "a reference page outside RAM");
    wrmsr(REFERENCE_TSC, (u64)ref | 1);
    check(rdmsr(REFERENCE_TSC), (u64)ref | 1, "the reference page");
    report(ref->sequence != 0, "is valid");
    int good = 1;
    for (int i = 0; i < 1000; i++) {
        u64 before = rdmsr(REFERENCE_COUNT);
        u64 page_time = (u64)((unsigned __int128)rdtsc() * ref->scale >> 64) + ref->offset;
        u64 after = rdmsr(REFERENCE_COUNT);
        /* One unit for what either rounds down. */
        good &= before <= page_time + 1 && page_time <= after + 1;
    }
    report(good, "page and counter agree");
    u64 begin = rdmsr(REFERENCE_COUNT), tsc = rdtsc();
    while (rdtsc() - tsc < hz / 500)
        pause();
    u64 passed = rdmsr(REFERENCE_COUNT) - begin;
    report(passed >= 19990 && passed < 20000000, "two milliseconds are two milliseconds");
    u64 run = rdmsr(VP_RUNTIME);
    report(rdmsr(VP_RUNTIME) >= run, "the vCPU's time goes on");
    u64 count = rdmsr(REFERENCE_COUNT);
    wrmsr(0x10, rdtsc() + hz * 1000);
    report(rdmsr(REFERENCE_COUNT) - count < 600000000, "the count doesn't follow the TSC");
    check(ref->sequence, 0, "and the page says so");
    wrmsr(0x3b, 0);
}

static volatile u32 *assist;
static volatile u32 seen, flags[8], second;
static volatile int mode;

static u32 service(int vector) { return apic_read(APIC_ISR + (vector >> 5) * 0x10) >> (vector & 31) & 1; }

static void high(struct frame *f)
{
    (void)f;
    flags[seen++ & 7] = *assist & 1;
    if (mode && (*assist & 1)) {
        *assist &= ~1u;
        return;
    }
    *assist &= ~1u;
    wrmsr(HV_EOI, 0);
}

static void low(struct frame *f)
{
    (void)f;
    second++;
    wrmsr(HV_EOI, 0);
}

static void apic(void)
{
    assist = page();
    *assist = 0xff;
    check(try_wrmsr(VP_ASSIST, NOT_RAM | 1), GP, "an assist page outside RAM");
    wrmsr(VP_ASSIST, (u64)assist | 1);
    check(rdmsr(VP_ASSIST), (u64)assist | 1, "the assist page");
    check(*assist, 0, "begins without a promise");
    handle(0xe1, high);
    handle(0x91, low);
    sti();
    wrmsr(HV_ICR, ICR_SELF | 0xe1);
    nop();
    check(seen, 1, "ICR sends");
    check(rdmsr(HV_ICR) & 0xff, 0xe1, "ICR can be read");
    check(flags[0], 1, "needn't be told");
    check(service(0xe1), 0, "but may be");
    mode = 1;
    wrmsr(0x83f, 0xe1);
    nop();
    check(service(0xe1), 0, "untold, it is over all the same");
    wrmsr(HV_TPR, 0xf5);
    check(read_cr8(), 15, "TPR is CR8 and more");
    wrmsr(0x83f, 0xe1);
    nop();
    check(seen, 2, "TPR holds back");
    check(rdmsr(HV_TPR), 0xf5, "all of it can be read");
    check(try_wrmsr(HV_TPR, 0x100), GP, "reserved bits of TPR");
    wrmsr(HV_TPR, 0);
    nop();
    check(seen, 3, "and lets through");
    cli();
    wrmsr(0x83f, 0xe1);
    wrmsr(0x83f, 0x91);
    sti();
    nop();
    nop();
    check(flags[3], 0, "told, because another one waits");
    check(second, 1, "which comes");
    wrmsr(VP_ASSIST, 0);
    cli();
}

static void refusals(void)
{
    u64 *at = page();
    check(hypercall(0, 0, 0), 2, "no such code");
    check(hypercall(0xffff, 0, 0), 2, "nor that");
    check(hypercall(2 | REPS(1), (u64)at, 0), 3, "a simple call with repetitions");
    check(hypercall(2 | FROM(1), (u64)at, 0), 3, "or a beginning");
    check(hypercall(2 | HEADER(1), (u64)at, 0), 3, "or a header");
    check(hypercall(2 | FAST, 0, 0), 3, "a fast one that doesn't fit registers");
    check(hypercall(3, (u64)at, 0), 3, "a repeated one without repetitions");
    check(hypercall(3 | REPS(2) | FROM(2), (u64)at, 0), 3, "or with none left");
    check(hypercall(8 | REPS(1) | FAST, 0, 0), 3, "a spin notice with repetitions");
    check(hypercall(2 | 1ul << 28, (u64)at, 0), 3, "reserved bits");
    check(hypercall(2 | 1ul << 63, (u64)at, 0), 3, "more of them");
    check(hypercall(2, (u64)at + 4, 0), 4, "input that isn't aligned");
    check(hypercall(2, (u64)at + 0xff0, 0), 4, "input across pages");
    check(hypercall(2, NOT_RAM, 0), 3, "input outside RAM");
    at[1] = 1ul << 5;
    check(hypercall(2, (u64)at, 0), 5, "unknown flags");
    at[0] = at[1] = 0;
    at[2] = 7;
    check(hypercall(0x13, (u64)at, 0), 5, "a set of unknown format");
    at[2] = 0;
    at[3] = 3;
    check(hypercall(0x13 | HEADER(1), (u64)at, 0), 3, "banks that don't fit the header");
    check(hypercall(0xb | FAST, 5, 1), 5, "an IPI with an illegal vector");
    check(hypercall(0xb | FAST, 0x100, 1), 5, "or none at all");
    check(hypercall(0xb | FAST, 0x61 | 1ul << 32, 1), 5, "or for another level of trust");
    check(hypercall(0x5d | FAST, 77, 0), 0x12, "a signal to nobody");
    at[0] = 77;
    at[1] = 1 | 8ul << 32;
    check(hypercall(0x5c, (u64)at, 0), 0x12, "a message to nobody");
    at[1] = 1 | 241ul << 32;
    check(hypercall(0x5c, (u64)at, 0), 5, "a message that is too long");
    at[1] = 0;
    check(hypercall(0x5c, (u64)at, 0), 5, "a message of no type");
    at[1] = 0x80000001;
    check(hypercall(0x5c, (u64)at, 0), 5, "a message of the hypervisor's own");
    check(hypercall(8, (u64)at, 0), 0, "a spin notice");
}

/* Translations. */

#define WINDOW 0x7000000000ul
static volatile u32 phase, looked;
static u64 values[4];

/* Looks at pages again and again, so that their translations are cached. */
static void looker(void *argument)
{
    (void)argument;
    volatile u64 *window = (volatile u64 *)WINDOW;
    while (phase < 100) {
        u32 now = phase;
        u64 all = 1;
        for (int i = 0; i < 8; i++)
            all &= window[i * 512] == now;
        if (all)
            looked = now;
        pause();
    }
}

static void flushes(void)
{
    u64 *in = page();
    volatile u64 *window = (volatile u64 *)WINDOW;
    u64 *pages[8][6];
    for (int i = 0; i < 8; i++) {
        for (int p = 0; p < 6; p++) {
            pages[i][p] = page();
            *pages[i][p] = p + 1;
        }
        map(WINDOW + i * 4096, (u64)pages[i][0] | 0x103);
    }
    phase = 1;
    if (cpus > 1) {
        on_cpu(1, looker, 0, 0);
        report(becomes_at_least(&looked, 1), "another vCPU has the pages cached");
    }
    for (int i = 0; i < 8; i++)
        values[0] += window[i * 512];
    for (u32 p = 1; p < 6; p++) {
        for (int i = 0; i < 8; i++)
            *entry_of(WINDOW + i * 4096) = (u64)pages[i][p] | 0x103;
        u64 status;
        switch (p) {
        case 1: /* everything, everywhere */
            in[0] = 0, in[1] = 3, in[2] = 0;
            status = hypercall(2, (u64)in, 0);
            break;
        case 2: /* a list, of some vCPUs */
            in[1] = 2, in[2] = 3;
            for (int i = 0; i < 8; i++)
                in[3 + i] = WINDOW + i * 4096;
            status = hypercall(3 | REPS(8), (u64)in, 0) - (8ul << 32);
            break;
        case 3: /* one entry for all of them */
            in[1] = 3;
            in[3] = WINDOW | 7;
            status = hypercall(3 | REPS(1), (u64)in, 0) - (1ul << 32);
            break;
        case 4: /* a sparse set */
            in[1] = 2, in[2] = 0, in[3] = 1, in[4] = 3;
            status = hypercall(0x13 | HEADER(1), (u64)in, 0);
            break;
        default: /* a long list behind a sparse set, of which the last is the one that counts */
            in[1] = 2, in[2] = 0, in[3] = 1, in[4] = 3;
            for (int i = 0; i < 100; i++)
                in[5 + i] = WINDOW + 0x100000 + i * 4096;
            in[104] = WINDOW | 7;
            status = hypercall(0x14 | HEADER(1) | REPS(100), (u64)in, 0) - (100ul << 32);
        }
        check(status, 0, "a flush");
        u64 sum = 0;
        for (int i = 0; i < 8; i++)
            sum += window[i * 512];
        check(sum, 8 * (p + 1), "this vCPU sees the new pages");
        phase = p + 1;
        if (cpus > 1)
            report(becomes_at_least(&looked, p + 1), "and so does the other");
    }
    phase = 100;
    wait_idle(1 % cpus);
    /* From the middle of a list. */
    in[1] = 3, in[2] = 0;
    for (int i = 0; i < 8; i++)
        in[3 + i] = WINDOW + i * 4096;
    check(hypercall(3 | REPS(8) | FROM(5), (u64)in, 0), 8ul << 32, "a list from its sixth element on");
}

static volatile u32 got;
static void counter(struct frame *f)
{
    (void)f;
    asm volatile("lock incl %0" : "+m"(got));
    eoi();
}

static volatile u32 index_of_other, idle_over, idling;
static void idler(void *argument)
{
    (void)argument;
    index_of_other = rdmsr(VP_INDEX);
    cli();
    idling = 1;
    while (!idle_over)
        rdmsr(GUEST_IDLE);
    idling = 2;
    sti();
}

/* All vCPUs flush all vCPUs at once. */
static void flusher(void *argument)
{
    u64 *in = argument;
    for (int i = 0; i < 300; i++) {
        in[1] = 3;
        if (hypercall(2, (u64)in, 0))
            got |= 0x80000000;
    }
    asm volatile("lock incl %0" : "+m"(got));
}

static void ipis(void)
{
    u64 *in = page();
    handle(0x61, counter);
    sti();
    got = 0;
    check(hypercall(0xb | FAST, 0x61, ~0ul), 0, "an IPI to all in the mask");
    report(becomes_at_least(&got, cpus), "comes to all that there are");
    in[0] = 0x61, in[1] = 1;
    check(hypercall(0x15, (u64)in, 0), 0, "an IPI to all");
    report(becomes_at_least(&got, 2 * cpus), "comes to all");
    in[1] = 0, in[2] = 1, in[3] = 1;
    check(hypercall(0x15 | HEADER(1), (u64)in, 0), 0, "an IPI to a sparse set");
    report(becomes_at_least(&got, 2 * cpus + 1), "comes to it");
    if (cpus > 1) {
        on_cpu(1, idler, 0, 0);
        report(becomes_at_least(&idling, 1), "a vCPU idles");
        check(index_of_other, 1, "its index");
        wait_ticks(5000000);
        idle_over = 1;
        check(hypercall(0xb | FAST, 0x61, 2), 0, "an IPI");
        report(becomes_at_least(&idling, 2), "ends idling, with IF clear");
        wait_idle(1);
        got = 0;
        on_cpu(1, flusher, page(), 0);
        flusher(page());
        report(becomes_at_least(&got, 2), "vCPUs that flush each other don't wait for ever");
        check(got, 2, "and all is done");
        wait_idle(1);
    }
    cli();
}

static void t_hyperv(void)
{
    enable_x2apic();
    identity();
    time();
    apic();
    refusals();
    flushes();
    ipis();
    wrmsr(CRASH_P0, 0x1234);
    check(rdmsr(CRASH_P0), 0x1234, "crash parameters keep");
    check(rdmsr(CRASH_CTL) >> 62, 3, "crashes and their messages can be told");
}

const struct group hyperv_groups[] = { { "hyperv", t_hyperv }, { 0, 0 } };
