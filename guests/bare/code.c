/* Code that another CPU writes while this one runs it (SDM 3A 8.1.3, "Handling Self- and Cross-Modifying Code"). */
#include "lib.h"

/* Each round waits for all CPUs, of which the host may have fewer. */
#define ROUNDS (cpus < 2 ? 2000u : 500 / cpus)

/* mov eax, NUMBER; ret, with the number on a boundary of four bytes; then int3s up to the next function. */
static u8 functions[4][64] __attribute__((aligned(64)));
static volatile u32 *number_of(u32 which) { return (volatile u32 *)&functions[which][4]; }
static u32 call(u32 which)
{
    u32 value;
    asm volatile("call *%1" : "=a"(value) : "r"(&functions[which][3]) : "memory", "cc");
    return value;
}
static void write_function(u32 which, u32 number)
{
    for (u32 i = 0; i < 64; i++)
        functions[which][i] = 0xcc;
    functions[which][3] = 0xb8;
    *number_of(which) = number;
    functions[which][8] = 0xc3;
}

static volatile u32 written, answered[8], wrong[8], stop;

/* Waits for each new number, serializes, and must get it from the function. */
static void follow(void *argument)
{
    u32 self = (u32)(u64)argument;
    for (u32 round = 1, rounds = ROUNDS; round <= rounds; round++) {
        while (written < round)
            pause();
        cpuid(0, 0);
        if (call(0) != round)
            wrong[self]++;
        answered[self] = round;
    }
}

/* Calls without waiting: numbers never go back, and the last is seen in the end. */
static void chase(void *argument)
{
    u32 self = (u32)(u64)argument, last = 0;
    do {
        u32 now = call(1);
        if (now < last || now > ROUNDS)
            wrong[self]++;
        last = now;
    } while (!stop);
    cpuid(0, 0);
    answered[self] = call(1);
}

static void others(void (*f)(void *))
{
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wrong[cpu] = answered[cpu] = 0;
        on_cpu(cpu, f, (void *)(u64)cpu, 0);
    }
}

static void t_code(void)
{
    check(online, cpus, "all CPUs came up");
    write_function(0, 0);
    others(follow);
    for (u32 round = 1, rounds = ROUNDS; round <= rounds; round++) {
        *number_of(0) = round;
        written = round;
        for (u32 cpu = 1; cpu < cpus; cpu++)
            while (answered[cpu] < round)
                pause();
    }
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wait_idle(cpu);
        check(wrong[cpu], 0, "code that was written before a serializing instruction runs");
    }

    write_function(1, 0);
    others(chase);
    for (u32 round = 1, rounds = ROUNDS; round <= rounds; round++) {
        *number_of(1) = round;
        for (u32 i = 0; i < 200; i++)
            pause();
    }
    stop = 1;
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        wait_idle(cpu);
        check(wrong[cpu], 0, "code that is written while it runs is old or new, and never old again");
        check(answered[cpu], ROUNDS, "what was written last runs in the end");
    }

    /* This CPU's own stores need no serializing instruction in between but the jump. */
    u32 bad = 0;
    for (u32 round = 1, rounds = ROUNDS; round <= rounds; round++) {
        write_function(2, round);
        bad += call(2) != round;
        write_function(2, ~round);
        bad += call(2) != ~round;
    }
    check(bad, 0, "a function that is written whole runs as written");
}

const struct group code_groups[] = { { "code", t_code }, { 0, 0 } };
