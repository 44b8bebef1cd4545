/* Hyper-V's interface: numbers, and how to call. */
#pragma once
#include "lib.h"

#define GUEST_OS_ID 0x40000000
#define HYPERCALL 0x40000001
#define VP_INDEX 0x40000002
#define VP_RUNTIME 0x40000010
#define REFERENCE_COUNT 0x40000020
#define REFERENCE_TSC 0x40000021
#define TSC_FREQUENCY 0x40000022
#define APIC_FREQUENCY 0x40000023
#define HV_EOI 0x40000070
#define HV_ICR 0x40000071
#define HV_TPR 0x40000072
#define VP_ASSIST 0x40000073
#define SCONTROL 0x40000080
#define SVERSION 0x40000081
#define SIEFP 0x40000082
#define SIMP 0x40000083
#define EOM 0x40000084
#define SINT(n) (0x40000090 + (n))
#define STIMER_CONFIG(n) (0x400000b0 + 2 * (n))
#define STIMER_COUNT(n) (0x400000b1 + 2 * (n))
#define GUEST_IDLE 0x400000f0
#define CRASH_P0 0x40000100
#define CRASH_CTL 0x40000105
#define NOT_RAM 0xfed40000ul

#define SINT_MASKED 0x10000
#define SINT_AUTO 0x20000
#define SINT_POLLING 0x40000

#define FAST (1ul << 16)
#define REPS(n) ((u64)(n) << 32)
#define FROM(n) ((u64)(n) << 48)
#define HEADER(n) ((u64)(n) << 17)

/* Hyper-V is told who the guest is, and where its page of calls is. */
void *hyperv_page(void);
/* By the page of calls, once it is there. */
u64 hypercall(u64 value, u64 input, u64 second);
/* The test device. */
static inline void testdev(u8 command, u8 source, u8 cpu, u8 connection)
{
    outl(0x3000, (u32)source | (u32)cpu << 8 | (u32)command << 16 | (u32)connection << 24);
}
int becomes_at_least(volatile u32 *what, u32 wanted);
