/* The interface of KVM: clocks, steal time, EOIs without an exit, hypercalls. */
#include "lib.h"

#define WALL_CLOCK 0x4b564d00
#define SYSTEM_TIME 0x4b564d01
#define STEAL_TIME 0x4b564d03
#define PV_EOI 0x4b564d04
#define POLL_CONTROL 0x4b564d05
#define NOT_RAM 0xfed40000ul
#define NO_SUCH_CALL (-1000l)
#define NOT_PERMITTED (-1l)

static inline long vmcall(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    long result;
    asm volatile("vmcall" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return result;
}

static inline long vmmcall(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    long result;
    asm volatile("vmmcall" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return result;
}

static u64 call_in_user(u64 number) { return (u64)vmcall(number, 0, 0, 0, 0); }

static int offered(int bit) { return cpuid(0x40000001, 0).a >> bit & 1; }

/* Clocks. */

struct time_info { u32 version, pad; u64 tsc, system; u32 mul; signed char shift; u8 flags, pads[2]; };

static u64 nanoseconds(volatile struct time_info *info)
{
    u64 delta = rdtsc() - info->tsc;
    delta = info->shift < 0 ? delta >> -info->shift : delta << info->shift;
    return info->system + (u64)((unsigned __int128)delta * info->mul >> 32);
}

static void clocks(void)
{
    volatile struct time_info *info = page();
    check(try_wrmsr(SYSTEM_TIME, NOT_RAM | 1), GP, "a clock outside RAM");
    check(try_wrmsr(SYSTEM_TIME, ((u64)info + 4070) | 1), GP, "a clock across pages");
    wrmsr(SYSTEM_TIME, (u64)info | 1);
    check(rdmsr(SYSTEM_TIME), (u64)info | 1, "the clock's MSR");
    report(info->version && !(info->version & 1), "an even version");
    report(info->mul >> 31, "a factor with all its bits");
    check(info->flags, 1, "a stable clock");
    u64 khz = cpuid(0x40000010, 0).a, begin = nanoseconds(info), tsc = rdtsc();
    while (rdtsc() - tsc < khz * 2)
        pause();
    u64 passed = nanoseconds(info) - begin;
    report(passed >= 1990000 && passed < 2000000000, "two milliseconds are two milliseconds");
    /* The TSC jumps, the clock doesn't. */
    u64 before = nanoseconds(info);
    wrmsr(0x10, rdtsc() + khz * 1000 * 1000);
    u64 after = nanoseconds(info);
    report(after >= before && after - before < 900000000000ul, "the clock goes on where the TSC jumps");
    check(info->flags, 0, "one TSC apart from the others is not stable");
    wrmsr(0x3b, 0);
    check(info->flags, 1, "stable again");
    volatile u32 *wall = page();
    wrmsr(WALL_CLOCK, (u64)wall);
    report(wall[0] && !(wall[0] & 1) && wall[1] > 1700000000 && wall[2] < 1000000000, "the wall clock");
    check(try_wrmsr(WALL_CLOCK, NOT_RAM), GP, "a wall clock outside RAM");
    wrmsr(SYSTEM_TIME, 0);
    u32 version = info->version;
    wrmsr(0x3b, 5);
    wrmsr(0x3b, 0);
    check(info->version, version, "a clock that is off is left alone");
    check(try_rdmsr(0x4b564d02), GP, "what isn't offered");
    check(try_wrmsr(0x4b564d02, 0), GP, "nor written");
    check(try_wrmsr(POLL_CONTROL, 2), GP, "reserved bits of poll control");
    check(try_wrmsr(POLL_CONTROL, 0), -1, "poll control");
    check(rdmsr(POLL_CONTROL), 0, "poll control keeps");
}

/* EOIs. */

static volatile u32 *flag;
static volatile u32 seen, flags[8], in_service[8];
static volatile int lazily, reraise, second;

static u32 service(int vector) { return apic_read(APIC_ISR + (vector >> 5) * 0x10) >> (vector & 31) & 1; }

static void high(struct frame *f)
{
    (void)f;
    u32 n = seen++ & 7;
    flags[n] = *flag & 1;
    if (reraise) {
        wrmsr(0x83f, reraise);
        reraise = 0;
        sti();
        nop();
        cli();
        /* Lower, and this one is still in service. */
        check(second, 0, "a lower vector waits");
    }
    if (lazily && (*flag & 1)) {
        *flag = 0;
        return;
    }
    *flag = 0;
    in_service[n] = service(0xe1);
    eoi();
}

static void low(struct frame *f)
{
    (void)f;
    second++;
    eoi();
}

static void ends(void)
{
    flag = page();
    check(try_wrmsr(PV_EOI, NOT_RAM | 1), GP, "a flag outside RAM");
    check(try_wrmsr(PV_EOI, (u64)flag | 3), GP, "a flag's reserved bit");
    wrmsr(PV_EOI, (u64)flag | 1);
    handle(0xe1, high);
    handle(0x91, low);
    sti();
    /* Told. */
    wrmsr(0x83f, 0xe1);
    nop();
    check(seen, 1, "an interrupt");
    check(flags[0], 1, "nobody need hear of its end");
    check(service(0xe1), 0, "told, it is over");
    /* Not told. */
    lazily = 1;
    for (int i = 0; i < 5; i++) {
        wrmsr(0x83f, 0xe1);
        nop();
    }
    check(seen, 6, "five more, one after the other");
    check(flags[5], 1, "each of which needn't be told");
    check(service(0xe1), 0, "nothing is left in service");
    check(apic_read(APIC_PPR), 0, "PPR is down");
    /* Another one waits already. */
    cli();
    wrmsr(0x83f, 0xe1);
    wrmsr(0x83f, 0x91);
    sti();
    nop();
    nop();
    check(seen, 7, "the higher of two");
    check(flags[6], 0, "has to be told, since the lower one waits");
    check(second, 1, "and then the lower one comes");
    /* Another one comes while the flag is up. */
    second = 0;
    reraise = 0x91;
    wrmsr(0x83f, 0xe1);
    nop();
    nop();
    check(second, 1, "one that came meanwhile isn't lost");
    check(service(0xe1) | service(0x91), 0, "and nothing stays");
    wrmsr(PV_EOI, 0);
    seen = 0;
    *flag = 0;
    wrmsr(0x83f, 0xe1);
    nop();
    check(flags[0], 0, "off");
    check(in_service[0], 1, "and in service");
    cli();
}

/* Other vCPUs. */

static volatile u32 asleep, awake, got;
static volatile u8 *steal[8];
static volatile u64 *window, value_seen;

static void sleeper(void *argument)
{
    (void)argument;
    cli();
    wrmsr(STEAL_TIME, (u64)steal[1] | 1);
    value_seen = *window;
    asleep = 1;
    asm volatile("hlt" : : : "memory");
    value_seen = *window;
    awake = 1;
    wrmsr(STEAL_TIME, 0);
    sti();
}

static volatile u32 kicked;
static void late_sleeper(void *argument)
{
    (void)argument;
    cli();
    asleep = 1;
    while (!kicked)
        pause();
    asm volatile("hlt" : : : "memory");
    awake = 1;
    sti();
}

static void counter(struct frame *f)
{
    (void)f;
    asm volatile("lock incl %0" : "+m"(got));
    eoi();
}

static void nmi_counter(struct frame *f)
{
    (void)f;
    asm volatile("lock incl %0" : "+m"(got));
}

static int becomes(volatile u32 *what, u32 wanted)
{
    u64 start = rdtsc();
    while (*what != wanted && rdtsc() - start < 20000000000ul)
        pause();
    return *what == wanted;
}

static void others(void)
{
    u64 *first = page(), *after = page();
    *first = 1;
    *after = 2;
    window = (volatile u64 *)0x7000000000ul;
    map((u64)window, (u64)first | 3);
    steal[1] = page();
    asleep = awake = 0;
    on_cpu(1, sleeper, 0, 0);
    report(becomes(&asleep, 1), "a vCPU goes to sleep");
    u64 start = rdtsc();
    while (!(steal[1][16] & 1) && rdtsc() - start < 20000000000ul)
        pause();
    check(steal[1][16], 1, "and doesn't run");
    check(value_seen, 1, "what it saw before");
    *entry_of((u64)window) = (u64)after | 3;
    report(__sync_bool_compare_and_swap(&steal[1][16], 1, 3), "a flush is left with it");
    check(vmcall(5, 0, 1, 0, 0), 0, "a kick");
    report(becomes(&awake, 1), "wakes it, with IF clear");
    check(value_seen, 2, "and it sees the new page");
    check(steal[1][16], 0, "it runs");
    wait_idle(1);
    /* A kick that comes first counts. */
    asleep = awake = kicked = 0;
    on_cpu(1, late_sleeper, 0, 0);
    becomes(&asleep, 1);
    vmmcall(5, 0, 1, 0, 0);
    kicked = 1;
    report(becomes(&awake, 1), "a kick before the HLT counts");
    wait_idle(1);
    check(vmcall(5, 0, 1000, 0, 0), 0, "a kick for nobody");

    handle(0x61, counter);
    handle(2, nmi_counter);
    got = 0;
    sti();
    check(vmcall(10, 3, 0, 0, 0x61), 2, "an IPI for two");
    report(becomes(&got, 2), "comes to both");
    check(vmcall(10, 1, 0, 1, 0x61), 1, "a map that begins at 1");
    report(becomes(&got, 3), "comes there");
    check(vmcall(10, 0, 1, ~0ul - 63, 0x61), 0, "a map at the end of all ids");
    check(vmcall(10, ~0ul, ~0ul, 0, 0x61), cpus, "a full map");
    report(becomes(&got, 3 + cpus), "comes to all there are");
    check(vmcall(10, 2, 0, 0, 0x400), 1, "an NMI");
    report(becomes(&got, 4 + cpus), "comes");
    check(vmcall(10, 2, 0, 0, 0x500), -22l, "no INIT that way");
    check(vmcall(10, 1, 0, 0, 5), 0, "nor vectors below 16");
    check(vmcall(11, 1, 0, 0, 0), 0, "a yield");
    check(vmcall(11, 99999, 0, 0, 0), 0, "to nobody");
    cli();
}

static void t_kvm(void)
{
    struct cpuid r = cpuid(0x40000000, 0);
    report(r.b == 0x4b4d564b && r.c == 0x564b4d56 && r.d == 0x4d, "KVM's signature");
    report(offered(3) && offered(5) && offered(6) && offered(7) && offered(9) && offered(11) && offered(13) && offered(24), "features");
    report(!offered(0) && !offered(4) && !offered(14), "what isn't there isn't offered");
    check(vmcall(0x1234, 0, 0, 0, 0), NO_SUCH_CALL, "an unknown call, VMCALL");
    check(vmmcall(0x1234, 0, 0, 0, 0), NO_SUCH_CALL, "an unknown call, VMMCALL");
    check(in_user(call_in_user, 5), NOT_PERMITTED, "not from user code");
    enable_x2apic();
    clocks();
    ends();
    check(try_wrmsr(STEAL_TIME, (u64)page() | 3), GP, "reserved bits of the steal time");
    check(try_wrmsr(STEAL_TIME, NOT_RAM | 1), GP, "steal time outside RAM");
    if (cpus > 1)
        others();
}

static void t_no_interface(void)
{
    report(cpuid(0x40000000, 0).b != 0x4b4d564b, "another signature");
    check(try_rdmsr(SYSTEM_TIME), GP, "no clock");
    check(TRY("vmcall", AD, "a"(10)), UD, "no VMCALL");
    check(TRY("vmmcall", AD, "a"(10)), UD, "no VMMCALL");
}

const struct group kvm_groups[] = { { "kvm", t_kvm }, { "plain", t_no_interface }, { 0, 0 } };
