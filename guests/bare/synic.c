/* Hyper-V's synthetic interrupt controller and timers. */
#include "hyperv.h"

struct slot { volatile u32 type; volatile u8 size, flags; volatile u16 reserved; volatile u64 sender, payload[30]; };
static struct slot *slots;
static volatile u8 *events;

#define POST_MESSAGE 0x5c
#define SIGNAL_EVENT 0x5d
#define RAISE 3
#define CONNECT_MESSAGES 4
#define DISCONNECT_MESSAGES 5
#define CONNECT_EVENTS 6
#define DISCONNECT_EVENTS 7

static volatile u32 plain, automatic, nested;
static u32 service(int vector) { return apic_read(APIC_ISR + (vector >> 5) * 0x10) >> (vector & 31) & 1; }

static void count_plain(struct frame *f) { (void)f; plain++; eoi(); }
static void count_auto(struct frame *f)
{
    (void)f;
    automatic++;
    nested += service(0xa5);
}

static void set_up(void)
{
    hyperv_page();
    enable_x2apic();
    slots = page();
    events = page();
    slots[2].type = 5;
    wrmsr(SIMP, (u64)slots | 1);
    wrmsr(SIEFP, (u64)events | 1);
    wrmsr(SCONTROL, 1);
    handle(0x75, count_plain);
    handle(0xa5, count_auto);
}

static u64 post(u8 connection, u32 type, u64 what)
{
    static u64 *in;
    if (!in)
        in = page();
    in[0] = connection;
    in[1] = type | 16ul << 32;
    in[2] = what;
    in[3] = ~what;
    return hypercall(POST_MESSAGE, (u64)in, 0);
}

static void registers(void)
{
    check(rdmsr(SVERSION), 1, "version");
    check(try_wrmsr(SVERSION, 1), GP, "which can't be written");
    check(rdmsr(SINT(0)), SINT_MASKED, "sources are masked at first");
    check(rdmsr(SINT(15)), SINT_MASKED, "all of them");
    check(try_wrmsr(SINT(3), 15), GP, "vectors below 16 don't exist");
    check(try_wrmsr(SINT(3), 15 | SINT_MASKED), -1, "but masked they do no harm");
    check(try_wrmsr(SINT(3), 1ul << 20 | 0x75), GP, "reserved bits");
    check(try_wrmsr(SCONTROL, 2), GP, "reserved bits of the control");
    check(try_wrmsr(SIMP, NOT_RAM | 1), GP, "slots outside RAM");
    check(try_wrmsr(SIEFP, NOT_RAM | 1), GP, "flags outside RAM");
    check(rdmsr(EOM), 0, "EOM reads as zero");
}

static void sources(void)
{
    sti();
    for (int n = 0; n < 16; n++)
        wrmsr(SINT(n), 0x75);
    for (int n = 0; n < 16; n++)
        testdev(RAISE, n, 0, 0);
    check(plain, 16, "sixteen sources, one vector");
    testdev(RAISE, 16, 0, 0);
    testdev(RAISE, 3, 77, 0);
    check(plain, 16, "no others");
    wrmsr(SINT(3), 0x75 | SINT_MASKED);
    testdev(RAISE, 3, 0, 0);
    wrmsr(SINT(3), 0x75 | SINT_POLLING);
    testdev(RAISE, 3, 0, 0);
    check(plain, 16, "not masked, nor polled for");
    for (int n = 0; n < 16; n++)
        wrmsr(SINT(n), n & 1 ? 0xa5 | SINT_AUTO : 0x75);
    for (int n = 0; n < 16; n++)
        testdev(RAISE, n, 0, 0);
    check(automatic, 8, "eight that end by themselves");
    check(plain, 24, "and eight that don't");
    check(nested, 0, "never in service");
    /* Two sources on one vector, one of which says that it ends by itself. */
    wrmsr(SINT(1), 0xa5);
    wrmsr(SINT(2), 0xa5 | SINT_AUTO);
    for (int n = 4; n < 16; n++)
        wrmsr(SINT(n), SINT_MASKED);
    wrmsr(SINT(3), SINT_MASKED);
    testdev(RAISE, 1, 0, 0);
    check(automatic, 9, "two sources on one vector");
    check(service(0xa5), 0, "it ends by itself if either says so");
    wrmsr(SINT(2), SINT_MASKED);
    testdev(RAISE, 1, 0, 0);
    check(service(0xa5), 1, "and stays where none does");
    eoi();
    /* Masked while requested: what has been requested comes. */
    cli();
    wrmsr(SINT(2), 0xa5 | SINT_AUTO);
    testdev(RAISE, 2, 0, 0);
    wrmsr(SINT(2), 0xa5 | SINT_MASKED | SINT_AUTO);
    u32 before = automatic;
    sti();
    nop();
    check(automatic, before + 1, "masked while it was requested");
    eoi();
}

static void messages(void)
{
    struct slot *slot = &slots[2];
    plain = 0;
    wrmsr(SINT(2), 0x75);
    check(post(9, 1, 5), 0x12, "no such connection");
    testdev(CONNECT_MESSAGES, 2, 0, 9);
    check(post(9, 0x123, 0xabc), 0, "a message");
    check(plain, 1, "requests its source's interrupt");
    check(slot->type, 0x123, "its type");
    check(slot->size, 16, "its size");
    check(slot->flags, 0, "nothing waits behind it");
    check(slot->sender, 9, "whom it is from");
    check(slot->payload[0], 0xabc, "what it says");
    check(slot->payload[1], ~0xabcul, "all of it");
    check(slot->payload[2], 0, "and no more");
    /* The slot is full. */
    check(post(9, 2, 22), 0, "a second one waits");
    check(slot->flags, 1, "and the first is marked");
    check(post(9, 3, 33), 0x13, "a third has no place");
    check(slot->type, 0x123, "the first is still there");
    check(plain, 1, "nobody was interrupted");
    slot->type = 0;
    check(post(9, 3, 33), 0, "a free slot is found by who sends next");
    check(slot->type, 2, "and the one that waited comes first");
    check(slot->payload[0], 22, "in order");
    check(slot->flags, 1, "marked, since another waits");
    slot->type = 0;
    wrmsr(EOM, 0);
    check(slot->type, 3, "EOM brings the next");
    check(slot->flags, 0, "the last one");
    check(plain, 3, "an interrupt for each");
    slot->type = 0;
    wrmsr(EOM, 0);
    check(slot->type, 0, "EOM for nothing");
    for (int n = 0; n < 1000; n++)
        wrmsr(EOM, 0);
    check(plain, 3, "a thousand of them");
    /* An end of an interrupt looks, too. */
    post(9, 4, 44);
    post(9, 5, 55);
    slot->type = 0;
    eoi();
    check(slot->type, 5, "so does an EOI");
    /* The guest writes what it likes. */
    post(9, 6, 66);
    slot->type = 0xffffffff;
    wrmsr(EOM, 0);
    check(slot->type, 0xffffffff, "any type keeps the slot");
    /* The page goes while a message waits, and another comes. */
    struct slot *other = page();
    wrmsr(SIMP, 0);
    check(post(9, 7, 77), 0x18, "no slots");
    other[2].type = 9;
    wrmsr(SIMP, (u64)other | 1);
    check(other[2].type, 6, "another page, which begins empty, and the message that waited");
    wrmsr(SCONTROL, 0);
    check(post(9, 7, 77), 0x18, "switched off");
    wrmsr(SCONTROL, 1);
    other[2].type = 0;
    wrmsr(SINT(2), 0x75 | SINT_MASKED);
    u32 before = plain;
    check(post(9, 8, 88), 0, "a masked source");
    check(other[2].type, 8, "has its message");
    check(plain, before, "and no interrupt");
    testdev(DISCONNECT_EVENTS, 0, 0, 9);
    check(post(9, 8, 88), 0, "it waits");
    testdev(DISCONNECT_MESSAGES, 0, 0, 9);
    check(post(9, 8, 88), 0x12, "the connection is over");
    wrmsr(SIMP, (u64)slots | 1);
}

static void signals(void)
{
    plain = 0;
    wrmsr(SINT(4), 0x75);
    check(hypercall(SIGNAL_EVENT | FAST, 7, 0), 0x12, "no such connection");
    testdev(CONNECT_EVENTS, 4, 0, 7);
    check(hypercall(SIGNAL_EVENT | FAST, 7 | 3ul << 32, 0), 0, "a signal");
    check(events[4 * 256], 1 << 3, "sets its flag");
    check(plain, 1, "and interrupts");
    check(hypercall(SIGNAL_EVENT | FAST, 7 | 3ul << 32, 0), 0, "again");
    check(plain, 1, "a flag that is set already interrupts nobody");
    events[4 * 256] = 0;
    u64 *in = page();
    in[0] = 7 | 2047ul << 32;
    check(hypercall(SIGNAL_EVENT, (u64)in, 0), 0, "a signal by memory");
    check(events[4 * 256 + 255], 0x80, "sets the last flag");
    check(hypercall(SIGNAL_EVENT | FAST, 7 | 2048ul << 32, 0), 5, "there are no more flags");
    check(plain, 2, "and interrupts");
    wrmsr(SIEFP, 0);
    check(hypercall(SIGNAL_EVENT | FAST, 7, 0), 0x18, "no flags");
    testdev(CONNECT_EVENTS, 4, 200, 8);
    check(hypercall(SIGNAL_EVENT | FAST, 8, 0), 0x12, "no such vCPU");
    wrmsr(SIEFP, (u64)events | 1);
}

/* Every vCPU floods one slot of the first, which takes what comes. */
static volatile u32 sent, refused, finished;
static void poster(void *argument)
{
    u64 *in = argument;
    for (int i = 0; i < 200; i++) {
        in[0] = 20;
        in[1] = 1 | 8ul << 32;
        in[2] = 1;
        u64 status = hypercall(POST_MESSAGE, (u64)in, 0);
        if (status == 0)
            asm volatile("lock incl %0" : "+m"(sent));
        else if (status == 0x13)
            asm volatile("lock incl %0" : "+m"(refused));
    }
    asm volatile("lock incl %0" : "+m"(finished));
}

static void flood(void)
{
    struct slot *slot = &slots[6];
    u32 taken = 0;
    wrmsr(SINT(6), 0x75 | SINT_MASKED);
    testdev(CONNECT_MESSAGES, 6, 0, 20);
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, poster, page(), 0);
    while (finished < cpus - 1 || slot->type) {
        if (slot->type) {
            taken += slot->payload[0];
            slot->type = 0;
            asm volatile("mfence" : : : "memory");
            if (slot->flags & 1)
                wrmsr(EOM, 0);
        }
        pause();
    }
    wrmsr(EOM, 0);
    while (slot->type) {
        taken += slot->payload[0];
        slot->type = 0;
        wrmsr(EOM, 0);
    }
    check(taken, sent, "what was accepted was delivered, once");
    check(sent + refused, 200 * (cpus - 1), "and the rest refused");
}

static void t_synic(void)
{
    set_up();
    check(slots[2].type, 0, "a page that is switched on begins empty");
    registers();
    sources();
    messages();
    signals();
    if (cpus > 1)
        flood();
    cli();
}

/* Timers. */

static volatile u32 ticks;
static void tick(struct frame *f) { (void)f; ticks++; eoi(); }

static int by(u64 wanted, u64 units)
{
    u64 start = rdmsr(REFERENCE_COUNT);
    while (ticks < wanted && rdmsr(REFERENCE_COUNT) - start < units)
        pause();
    return ticks >= wanted;
}

#define CONFIG(sint, bits) ((u64)(sint) << 16 | (bits))
#define DIRECT(vector, bits) ((u64)(vector) << 4 | 1ul << 12 | (bits))
#define SECOND 10000000ul

static void t_timers(void)
{
    set_up();
    handle(0x75, tick);
    wrmsr(SINT(5), 0x75);
    sti();
    struct slot *slot = &slots[5];
    check(try_wrmsr(STIMER_CONFIG(0), 1ul << 20), GP, "reserved bits");
    wrmsr(STIMER_CONFIG(0), CONFIG(0, 1));
    check(rdmsr(STIMER_CONFIG(0)), 0, "source 0 has no timers");
    wrmsr(STIMER_CONFIG(0), DIRECT(5, 1));
    check(rdmsr(STIMER_CONFIG(0)) & 1, 0, "nor has vector 5");
    /* One shot, by message. */
    u64 due = rdmsr(REFERENCE_COUNT) + 20000;
    wrmsr(STIMER_CONFIG(0), CONFIG(5, 8));
    wrmsr(STIMER_COUNT(0), due);
    report((rdmsr(STIMER_CONFIG(0)) & 1) || ticks, "enabled by its count");
    report(by(1, 10 * SECOND), "one shot");
    check(slot->type, 0x80000010, "a timer's message");
    check(slot->size, 24, "its size");
    check(slot->payload[0], 0, "timer 0");
    check(slot->payload[1], due, "when it was due");
    report(slot->payload[2] >= due, "and when it was sent");
    check(rdmsr(STIMER_CONFIG(0)) & 1, 0, "it is off then");
    slot->type = 0;
    wrmsr(EOM, 0);
    /* In the past: at once. */
    wrmsr(STIMER_COUNT(0), 1);
    check(ticks, 2, "one that is due already");
    /* Two that expire while the slot is full: both come, as it is freed. */
    wrmsr(STIMER_CONFIG(1), CONFIG(5, 8));
    wrmsr(STIMER_CONFIG(2), CONFIG(5, 8));
    wrmsr(STIMER_COUNT(1), 1);
    wrmsr(STIMER_COUNT(2), 1);
    check(ticks, 2, "the slot is full");
    check(slot->flags & 1, 1, "and marked");
    slot->type = 0;
    wrmsr(EOM, 0);
    check(slot->payload[0], 1, "timer 1");
    slot->type = 0;
    wrmsr(EOM, 0);
    check(slot->payload[0], 2, "timer 2");
    slot->type = 0;
    check(ticks, 4, "with an interrupt each");
    /* Zero stops. */
    wrmsr(STIMER_COUNT(0), rdmsr(REFERENCE_COUNT) + SECOND / 10);
    wrmsr(STIMER_COUNT(0), 0);
    check(rdmsr(STIMER_CONFIG(0)) & 1, 0, "a count of zero switches it off");
    /* Periodic, direct. */
    ticks = 0;
    u64 begin = rdmsr(REFERENCE_COUNT);
    wrmsr(STIMER_COUNT(3), 10000);
    wrmsr(STIMER_CONFIG(3), DIRECT(0x75, 1 | 2));
    report(by(10, 10 * SECOND), "ten ticks, straight to a vector");
    report(rdmsr(REFERENCE_COUNT) - begin >= 99990, "are ten periods");
    wrmsr(STIMER_CONFIG(3), 0);
    u32 before = ticks;
    wait_ticks(20000000);
    check(ticks, before, "off");
    check(slot->type, 0, "no messages from direct timers");
    /* Faster than anybody could serve. */
    wrmsr(STIMER_COUNT(3), 1);
    wrmsr(STIMER_CONFIG(3), DIRECT(0x75, 1 | 2));
    report(by(before + 20, 10 * SECOND), "a period of 100 ns is served as well as can be");
    wrmsr(STIMER_CONFIG(3), 0);
    cli();
}

const struct group synic_groups[] = { { "synic", t_synic }, { "timers", t_timers }, { 0, 0 } };
