/*
 * Litmus tests of the memory order that x86 has among CPUs (SDM 3A 8.2.2, 8.2.3): each shape is run on fresh cells many times, and no
 * outcome may be one that the manual excludes. Cells lie on cache lines of their own; threads go through a batch of them without
 * waiting for each other, so that their accesses meet at all distances.
 */
#include "lib.h"

#define BATCH 8192u
#define MOST 4

struct cell { volatile u64 value; u64 pad[7]; } __attribute__((aligned(64)));
static struct cell x[BATCH], y[BATCH];
/* What each thread has read: two registers. */
static u64 seen[MOST][BATCH][2];

typedef void (*shape)(u32 at, u64 *r);
struct test {
    const char *name;
    u32 threads;
    shape run[MOST];
    /* Whether the outcome is excluded. */
    int (*excluded)(u32 at);
    /* Allowed, and told how often. */
    int (*relaxed)(u32 at);
};

static inline u64 load(struct cell *c) { u64 v; asm volatile("mov %1, %0" : "=r"(v) : "m"(c->value) : "memory"); return v; }
static inline void store(struct cell *c, u64 v) { asm volatile("mov %1, %0" : "=m"(c->value) : "r"(v) : "memory"); }
static inline void mfence(void) { asm volatile("mfence" : : : "memory"); }
static inline void swap(struct cell *c, u64 v) { asm volatile("xchg %1, %0" : "+m"(c->value), "+r"(v) : : "memory"); }
static inline u64 add(struct cell *c, u64 v) { asm volatile("lock xadd %1, %0" : "+m"(c->value), "+r"(v) : : "memory", "cc"); return v; }
/* A locked instruction on something else orders, too. */
static inline void locked(u64 *r) { asm volatile("lock orq $0, %0" : "+m"(*r) : : "memory", "cc"); }

static void sb_x(u32 i, u64 *r) { store(&x[i], 1); r[0] = load(&y[i]); }
static void sb_y(u32 i, u64 *r) { store(&y[i], 1); r[0] = load(&x[i]); }
static void sb_x_mfence(u32 i, u64 *r) { store(&x[i], 1); mfence(); r[0] = load(&y[i]); }
static void sb_y_mfence(u32 i, u64 *r) { store(&y[i], 1); mfence(); r[0] = load(&x[i]); }
static void sb_x_lock(u32 i, u64 *r) { store(&x[i], 1); locked(&r[1]); r[0] = load(&y[i]); }
static void sb_y_lock(u32 i, u64 *r) { store(&y[i], 1); locked(&r[1]); r[0] = load(&x[i]); }
static void sb_x_xchg(u32 i, u64 *r) { swap(&x[i], 1); r[0] = load(&y[i]); }
static void sb_y_xchg(u32 i, u64 *r) { swap(&y[i], 1); r[0] = load(&x[i]); }
static int both_zero(u32 i) { return !seen[0][i][0] && !seen[1][i][0]; }

static void mp_write(u32 i, u64 *r) { (void)r; store(&x[i], 1); store(&y[i], 1); }
static void mp_read(u32 i, u64 *r) { r[0] = load(&y[i]); r[1] = load(&x[i]); }
static int mp_excluded(u32 i) { return seen[1][i][0] == 1 && seen[1][i][1] == 0; }
/* The flag by a locked instruction, and its reader by one. */
static void mp_write_lock(u32 i, u64 *r) { (void)r; store(&x[i], 1); add(&y[i], 1); }
static void mp_read_lock(u32 i, u64 *r) { r[0] = add(&y[i], 0); r[1] = load(&x[i]); }

static void lb_x(u32 i, u64 *r) { r[0] = load(&x[i]); store(&y[i], 1); }
static void lb_y(u32 i, u64 *r) { r[0] = load(&y[i]); store(&x[i], 1); }
static int both_one(u32 i) { return seen[0][i][0] && seen[1][i][0]; }

static void write_x(u32 i, u64 *r) { (void)r; store(&x[i], 1); }
static void write_y(u32 i, u64 *r) { (void)r; store(&y[i], 1); }
static void lock_x(u32 i, u64 *r) { (void)r; swap(&x[i], 1); }
static void lock_y(u32 i, u64 *r) { (void)r; add(&y[i], 1); }
static void read_xy(u32 i, u64 *r) { r[0] = load(&x[i]); r[1] = load(&y[i]); }
static void read_yx(u32 i, u64 *r) { r[0] = load(&y[i]); r[1] = load(&x[i]); }
static int iriw_excluded(u32 i)
{
    return seen[2][i][0] == 1 && seen[2][i][1] == 0 && seen[3][i][0] == 1 && seen[3][i][1] == 0;
}

/* Stores to one place are seen in one order by everybody. */
static void write_twice(u32 i, u64 *r) { (void)r; store(&x[i], 1); store(&x[i], 2); }
static void read_twice(u32 i, u64 *r) { r[0] = load(&x[i]); r[1] = load(&x[i]); }
static int went_back(u32 i) { return seen[1][i][0] > seen[1][i][1]; }

static void two_writes_x(u32 i, u64 *r) { (void)r; store(&x[i], 1); store(&y[i], 2); }
static void two_writes_y(u32 i, u64 *r) { (void)r; store(&y[i], 1); store(&x[i], 2); }
static int crossed(u32 i) { return x[i].value == 1 && y[i].value == 1; }

/* A thread sees its own store before others do; never anything older. */
static void forward_x(u32 i, u64 *r) { store(&x[i], 1); r[1] = load(&x[i]); r[0] = load(&y[i]); }
static void forward_y(u32 i, u64 *r) { store(&y[i], 1); r[1] = load(&y[i]); r[0] = load(&x[i]); }
static int own_lost(u32 i) { return seen[0][i][1] != 1 || seen[1][i][1] != 1; }

/* A string store's flag comes after its data (SDM 3A 8.2.4.2), a transitive chain is one. */
static void chain_write(u32 i, u64 *r) { (void)r; store(&x[i], 1); }
static void chain_pass(u32 i, u64 *r) { r[0] = load(&x[i]); store(&y[i], 1); }
static void chain_read(u32 i, u64 *r) { r[0] = load(&y[i]); r[1] = load(&x[i]); }
static int chain_broken(u32 i) { return seen[1][i][0] == 1 && seen[2][i][0] == 1 && seen[2][i][1] == 0; }

static const struct test tests[] = {
    { "SB", 2, { sb_x, sb_y }, 0, both_zero },
    { "SB with MFENCE", 2, { sb_x_mfence, sb_y_mfence }, both_zero, 0 },
    { "SB with a locked instruction between", 2, { sb_x_lock, sb_y_lock }, both_zero, 0 },
    { "SB with XCHG", 2, { sb_x_xchg, sb_y_xchg }, both_zero, 0 },
    { "SB, own store first", 2, { forward_x, forward_y }, own_lost, both_zero },
    { "MP", 2, { mp_write, mp_read }, mp_excluded, 0 },
    { "MP with LOCK", 2, { mp_write_lock, mp_read_lock }, mp_excluded, 0 },
    { "LB", 2, { lb_x, lb_y }, both_one, 0 },
    { "CoRR", 2, { write_twice, read_twice }, went_back, 0 },
    { "2+2W", 2, { two_writes_x, two_writes_y }, crossed, 0 },
    { "WRC", 3, { chain_write, chain_pass, chain_read }, chain_broken, 0 },
    { "IRIW", 4, { write_x, write_y, read_xy, read_yx }, iriw_excluded, 0 },
    { "IRIW with LOCK", 4, { lock_x, lock_y, read_xy, read_yx }, iriw_excluded, 0 },
};

static const struct test *at_hand;
static volatile u32 batch, arrived, rounds;

static void go_through(u32 self)
{
    shape run = at_hand->run[self];
    /* The other way round from one batch to the next: who starts late isn't always behind. */
    for (u32 i = 0; i < BATCH; i++)
        run(self & 1 && batch & 1 ? BATCH - 1 - i : i, seen[self][self & 1 && batch & 1 ? BATCH - 1 - i : i]);
}

static void thread(void *argument)
{
    u32 self = (u32)(u64)argument;
    for (u32 round = 1; round <= rounds; round++) {
        while (batch < round)
            pause();
        go_through(self);
        asm volatile("lock incl %0" : "+m"(arrived));
    }
}

static void run(const struct test *test)
{
    u32 bad = 0, odd = 0;
    at_hand = test;
    batch = 0;
    for (u32 cpu = 1; cpu < test->threads; cpu++)
        on_cpu(cpu, thread, (void *)(u64)cpu, 0);
    for (u32 round = 1; round <= rounds; round++) {
        for (u32 i = 0; i < BATCH; i++)
            x[i].value = y[i].value = 0;
        arrived = 0;
        mfence();
        batch = round;
        go_through(0);
        while (arrived != test->threads - 1)
            pause();
        for (u32 i = 0; i < BATCH; i++) {
            bad += test->excluded && test->excluded(i);
            odd += test->relaxed && test->relaxed(i);
        }
    }
    for (u32 cpu = 1; cpu < test->threads; cpu++)
        wait_idle(cpu);
    check(bad, 0, test->name);
    if (test->relaxed) {
        print("  the relaxed outcome came ");
        print_number(odd, 10);
        print(" times in ");
        print_number(rounds * BATCH, 10);
        print("\n");
    }
}

/* Accesses that straddle: 8 bytes in a line are never torn, LOCK is atomic across a line and across a page. */
static u8 space[3 * 4096] __attribute__((aligned(4096)));
static volatile u32 stop, torn;
static void write_pattern(void *unused)
{
    (void)unused;
    volatile u64 *at = (volatile u64 *)(space + 8);
    while (!stop) {
        asm volatile("mov %1, %0" : "=m"(*at) : "r"(~0ul) : "memory");
        asm volatile("mov %1, %0" : "=m"(*at) : "r"(0ul) : "memory");
    }
}
static void count_up(void *at)
{
    for (u32 i = 0; i < 20000; i++)
        asm volatile("lock incl %0" : "+m"(*(volatile u32 *)at) : : "memory", "cc");
}
static void count_exchange(void *at)
{
    for (u32 i = 0; i < 5000; i++) {
        u64 old = *(volatile u64 *)at, got;
        do {
            got = old;
            asm volatile("lock cmpxchg %2, %1" : "+a"(got), "+m"(*(volatile u64 *)at) : "r"(old + 1) : "memory", "cc");
        } while (got != old && (old = got, 1));
    }
}

static void whole(void)
{
    stop = torn = 0;
    on_cpu(1, write_pattern, 0, 0);
    for (u32 i = 0; i < 200000; i++) {
        u64 v = *(volatile u64 *)(space + 8);
        torn += v != 0 && v != ~0ul;
    }
    stop = 1;
    wait_idle(1);
    check(torn, 0, "eight aligned bytes are never torn");
    static const struct { u32 at; const char *name; } places[] = {
        { 64, "LOCK within a line" }, { 62, "LOCK across a line" }, { 4094, "LOCK across a page" },
    };
    for (u32 i = 0; i < 3; i++) {
        volatile u32 *at = (volatile u32 *)(space + places[i].at);
        *at = 0;
        for (u32 cpu = 1; cpu < cpus; cpu++)
            on_cpu(cpu, count_up, (void *)at, 0);
        count_up((void *)at);
        for (u32 cpu = 1; cpu < cpus; cpu++)
            wait_idle(cpu);
        check(*at, 20000 * cpus, places[i].name);
    }
    volatile u64 *at = (volatile u64 *)(space + 4096 + 4092);
    *at = 0;
    for (u32 cpu = 1; cpu < cpus; cpu++)
        on_cpu(cpu, count_exchange, (void *)at, 0);
    count_exchange((void *)at);
    for (u32 cpu = 1; cpu < cpus; cpu++)
        wait_idle(cpu);
    check(*at, 5000 * cpus, "LOCK CMPXCHG across a page");
}

static void t_litmus(void)
{
    check(online, cpus, "all CPUs came up");
    if (cpus < 2) {
        print("one CPU\n");
        finish(EXIT_SKIP);
    }
    rounds = argument(30);
    for (u32 i = 0; i < sizeof tests / sizeof *tests; i++)
        if (tests[i].threads <= cpus)
            run(&tests[i]);
    whole();
}

const struct group litmus_groups[] = { { "litmus", t_litmus }, { 0, 0 } };
