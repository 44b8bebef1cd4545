/* The CPU as test kernels probe it: MSRs, debug registers, paging features, system calls, string instructions on MMIO. */
#include "lib.h"

#define NONCANONICAL 0xaaaaaaaaaaaaaaaaul

static void keeps(u32 msr, u64 value, const char *what)
{
    u64 before = rdmsr(msr);
    int fault = try_wrmsr(msr, value);
    u64 now = rdmsr(msr);
    wrmsr(msr, before);
    if (fault != -1) {
        check(fault, -1, what);
        return;
    }
    check(now, value, what);
}

static void t_msr(void)
{
    u64 address = 0x0000123456789abc;
    keeps(0x174, 0x1234, "SYSENTER_CS");
    keeps(0x175, address, "SYSENTER_ESP");
    keeps(0x176, address, "SYSENTER_EIP");
    /* AMD's processors have none. */
    if (cpuid(0, 0).b == 0x756e6547)
        keeps(0x1a0, (0x400c50809 & ~0x1880ul) | (rdmsr(0x1a0) & 0x1880), "MISC_ENABLE");
    keeps(0x277, 0x07070707, "PAT");
    keeps(0xc0000100, address, "FS_BASE");
    keeps(0xc0000102, address, "KERNEL_GS_BASE");
    keeps(0xc0000080, rdmsr(0xc0000080) | 1, "EFER.SCE");
    keeps(0xc0000082, address, "LSTAR");
    keeps(0xc0000083, address, "CSTAR");
    keeps(0xc0000084, 0xffffffff, "SYSCALL_MASK");
    check(try_wrmsr(0xc0000082, NONCANONICAL), GP, "LSTAR takes no non-canonical address");
    check(try_wrmsr(0xc0000100, NONCANONICAL), GP, "nor does FS_BASE");
    check(try_wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 9), GP, "EFER's reserved bits");
    u32 banks = rdmsr(0x179) & 0xff;
    for (u32 i = 0; i < banks; i++) {
        keeps(0x400 + 4 * i, 0, "MCi_CTL, 0");
        keeps(0x400 + 4 * i, ~0ul, "MCi_CTL, ones");
        check(try_wrmsr(0x400 + 4 * i, NONCANONICAL), GP, "MCi_CTL, others");
        keeps(0x401 + 4 * i, 0, "MCi_STATUS, 0");
        check(try_wrmsr(0x401 + 4 * i, 1), GP, "MCi_STATUS, others");
        for (u32 k = 2; k < 4; k++) {
            keeps(0x400 + 4 * i + k, 0, "MCi_ADDR and MISC, 0");
            keeps(0x400 + 4 * i + k, ~0ul, "MCi_ADDR and MISC, ones");
            keeps(0x400 + 4 * i + k, NONCANONICAL, "MCi_ADDR and MISC, any");
        }
    }
    int good = 1;
    for (u32 i = 0x400 + 4 * banks; i < 0x480; i++)
        good &= try_rdmsr(i) == GP && try_wrmsr(i, 0) == GP;
    report(good, "no more banks");
    /* Commands can't be read. */
    check(try_rdmsr(0x49), GP, "PRED_CMD can't be read");
    if (has(7, 0, 'd', 26) || has(0x80000008, 0, 'b', 12)) {
        check(try_wrmsr(0x49, 0), -1, "PRED_CMD, 0");
        check(try_wrmsr(0x49, 1), -1, "PRED_CMD, barrier");
    } else {
        check(try_wrmsr(0x49, 1), GP, "no PRED_CMD");
    }
    check(try_rdmsr(0x10b), GP, "FLUSH_CMD can't be read");
    if (!has(7, 0, 'd', 28))
        check(try_wrmsr(0x10b, 1), GP, "no FLUSH_CMD");
    /* What every boot does to the counters. */
    struct cpuid vendor = cpuid(0, 0);
    if (vendor.b != 0x756e6547) {
        for (u32 i = 0; i < 8; i++)
            check(try_wrmsr(0xc0010000 + i, 0), -1, "old counters of AMD");
    } else if (has(1, 0, 'c', 15)) {
        check(try_rdmsr(0x345), -1, "PERF_CAPABILITIES");
    }
    check(try_rdmsr(0xdeadbeef), GP, "no such MSR");
    check(try_wrmsr(0x4b564d00, 1), GP, "no paravirtual clock");
    check(try_cr8(16), GP, "CR8's reserved bits");
    check(try_cr4(read_cr4() | 1 << 15), GP, "CR4's reserved bits");
    check(try_cr4(read_cr4() & ~0x20ul), GP, "PAE can't go in long mode");
    check(try_cr0(read_cr0() & ~1ul), GP, "PE can't go with PG");
    check(try_cr0(read_cr0() | 1ul << 32), GP, "CR0's upper half");
}

static void t_tsc(void)
{
    u64 one = rdtsc(), two = rdtsc();
    report(two > one, "the TSC runs");
    wrmsr(0x10, 0);
    report(rdtsc() < 1000000000ul, "the TSC can be set");
    wrmsr(0x10, 0xfefefefe12345678);
    report(rdtsc() - 0xfefefefe12345678 < 1000000000ul, "to anything");
    wrmsr(0x10, 0);
    if (has(0x80000001, 0, 'd', 27)) {
        u32 a, d, c;
        for (int i = 0; i < 3; i++) {
            static const u32 values[] = { 0, 10, 0x100 };
            wrmsr(0xc0000103, values[i]);
            asm volatile("rdtscp" : "=a"(a), "=d"(d), "=c"(c));
            check(c, values[i], "RDTSCP's auxiliary value");
        }
        if (has(7, 0, 'c', 22)) {
            u64 id;
            asm volatile("rdpid %0" : "=r"(id));
            check(id, 0x100, "RDPID");
        }
    }
    check(has(7, 0, 'b', 1), 1, "TSC_ADJUST is offered");
    wrmsr(0x3b, 0);
    check(rdmsr(0x3b), 0, "TSC_ADJUST, 0");
    u64 t = rdtsc();
    wrmsr(0x3b, 0xfffffffff123456);
    u64 later = rdtsc();
    report(later - t - 0xfffffffff123456 < 1000000000ul, "TSC_ADJUST moves the TSC");
    wrmsr(0x3b, 0);
    t = rdtsc();
    wrmsr(0x10, t + 0x123456);
    u64 adjusted = rdmsr(0x3b);
    report(adjusted <= 0x123456 && adjusted > 0, "writing the TSC moves TSC_ADJUST");
    wrmsr(0x3b, 0);
    write_cr4(read_cr4() | 4);
    check(TRY("rdtsc", AD, ), -1, "CR4.TSD spares CPL 0");
    write_cr4(read_cr4() & ~4ul);
}

/* Debug. */

static volatile u64 hit_rip[16], hit_dr6[16];
static volatile u32 hit;
static int debug_is(u32 n, u64 rip, u64 dr6)
{
    if (hit_rip[n] == rip && hit_dr6[n] == dr6)
        return 1;
    print("hit ");
    print_number(n, 10);
    print(" of ");
    print_number(hit, 10);
    print(" at 0x");
    print_number(hit_rip[n], 16);
    print(" not 0x");
    print_number(rip, 16);
    print(", DR6 0x");
    print_number(hit_dr6[n], 16);
    print(" not 0x");
    print_number(dr6, 16);
    print("\n");
    return 0;
}
static void debug_hit(struct frame *f)
{
    hit_rip[hit] = f->rip;
    hit_dr6[hit] = read_dr6();
    if (hit_dr6[hit] & 4)
        f->rflags |= 1 << 16;
    if (++hit >= 14) {
        f->rflags &= ~0x100ul;
        write_dr7(0x400);
    }
}
static volatile u64 int3_rip;
static void int3_hit(struct frame *f) { int3_rip = f->rip; }
static volatile u64 watched;
#define LOW 0xffff0ff0ul
#define STEP (LOW | 0x4000)
#define TF_ON "pushf; pop %%rax; or $0x100, %%rax; push %%rax; "
#define TF_OFF "and $~0x100, %%rax; push %%rax; popf; "
#define PREPARE hit = 0; write_dr6(0);
static void timer_hit(struct frame *f) { (void)f; eoi(); }

static void t_debug(void)
{
    u64 start;
    handle(DB, debug_hit);
    handle(BP, int3_hit);
    extern u8 after_int3[], bp1[], bp2[], wp1[], icebp[], mid[];
    asm volatile("int3; .globl after_int3\nafter_int3:");
    check(int3_rip, (u64)after_int3, "INT3");
    write_cr4(read_cr4() & ~8ul);
    write_dr6(LOW | 0x4002);
    check(read_dr4(), LOW | 0x4002, "DR4 is DR6");
    write_cr4(read_cr4() | 8);
    check(TRY("mov %%dr4, %%rax", , "a"(0)), UD, "with CR4.DE there is no DR4");
    check(try_dr6(1ul << 32), GP, "DR6's upper half");
    check(try_dr7(1ul << 32), GP, "DR7's upper half");

    PREPARE
    write_dr2((u64)bp1);
    write_dr7(0x420);
    asm volatile(".globl bp1\nbp1: nop");
    report(hit == 1 && debug_is(0, (u64)bp1, LOW | 4), "an instruction breakpoint");
    hit = 0;
    write_dr2((u64)bp2);
    write_dr6(0x4002);
    asm volatile(".globl bp2\nbp2: nop");
    report(hit == 1 && debug_is(0, (u64)bp2, LOW | 0x4004), "which leaves DR6.BS");
    write_dr7(0x400);

    PREPARE
    asm volatile(TF_ON "popf; and $~0x100, %%rax; 1: push %%rax; popf; lea 1b(%%rip), %0" : "=r"(start) : : "rax");
    report(hit == 3 && debug_is(0, start, STEP) && debug_is(1, start + 1, STEP) && debug_is(2, start + 2, STEP), "single-step");
    PREPARE
    asm volatile(TF_ON "popf; and $~0x100, %%rax; 1: push %%rax; xor %%rax, %%rax; cpuid; movl $0x3fd, %%edx; inb %%dx, %%al; popf; lea 1b(%%rip), %0"
                 : "=r"(start) : : "rax", "rbx", "rcx", "rdx");
    int good = hit == 7;
    static const u8 steps[] = { 0, 1, 4, 6, 11, 12, 13 };
    for (int i = 0; i < 7; i++)
        good &= debug_is(i, start + steps[i], STEP);
    report(good, "single-step over CPUID and IN");
    PREPARE
    asm volatile("cli;" TF_ON "popf; sti; 1: " TF_OFF "lea 1b(%%rip), %0" : "=r"(start) : : "rax");
    report(hit == 4 && debug_is(0, start, STEP) && debug_is(1, start + 6, STEP) && debug_is(2, start + 7, STEP) && debug_is(3, start + 8, STEP), "single-step and STI");
    PREPARE
    asm volatile(TF_ON "mov %%ss, %%ax; popf; mov %%ax, %%ss; and $~0x100, %%rax; 1: push %%rax; popf; lea 1b(%%rip), %0" : "=r"(start) : : "rax");
    report(hit == 3 && debug_is(0, start, STEP) && debug_is(1, start + 1, STEP) && debug_is(2, start + 2, STEP), "single-step and MOV SS");
    PREPARE
    asm volatile(TF_ON "mov %%ss, %%ax; popf; mov %%ax, %%ss; .byte 0xf1; 1: .byte 0xf1; " TF_OFF "lea 1b(%%rip), %0" : "=r"(start) : : "rax");
    report(hit == 5 && debug_is(0, start, LOW) && debug_is(1, start + 1, LOW) && debug_is(2, start + 7, STEP) && debug_is(3, start + 8, STEP) && debug_is(4, start + 9, STEP),
           "single-step, MOV SS and INT1");
    PREPARE
    write_dr7(0x2400);
    asm volatile("xor %0, %0; " TF_ON "mov %%ss, %%ax; popf; mov %%ax, %%ss; 1: mov %0, %%dr6; " TF_OFF "lea 1b(%%rip), %0" : "=r"(start) : : "rax");
    report(hit == 5 && debug_is(0, start, LOW | 0x2000) && debug_is(1, start + 3, STEP) && debug_is(2, start + 9, STEP) && debug_is(3, start + 10, STEP) && debug_is(4, start + 11, STEP),
           "general detect");
    PREPARE
    cli();
    handle(0xee, timer_hit);
    apic_write(APIC_LVTT, 0xee);
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_TMICT, 1000000);
    asm volatile(TF_ON "popf; sti; 1: hlt; " TF_OFF "lea 1b(%%rip), %0" : "=r"(start) : : "rax");
    report(hit == 5 && debug_is(0, start, STEP) && debug_is(1, start + 1, STEP) && debug_is(2, start + 7, STEP), "single-step and HLT");

    hit = 0;
    asm volatile("mov %0, %%dr1" : : "r"(&watched));
    write_dr6(0x4000);
    write_dr7(0x00d0040a);
    asm volatile("mov $42, %%rax; mov %%rax, %0; .globl wp1\nwp1:" : "=m"(watched) : : "rax");
    report(hit == 1 && debug_is(0, (u64)wp1, LOW | 0x4002), "a data breakpoint");
    PREPARE
    asm volatile(".byte 0xf1; .globl icebp\nicebp:");
    report(hit == 1 && debug_is(0, (u64)icebp, LOW), "INT1");
    /* A data breakpoint that MOV SS delays. */
    watched = 0x10;
    write_dr7(0x00f0040a);
    PREPARE
    asm volatile("mov %0, %%ss\n.globl mid\nmid: nop" : : "m"(watched));
    report(hit == 1 && debug_is(0, (u64)mid + 1, LOW | 2), "MOV SS holds a data breakpoint back");
    PREPARE
    asm volatile("mov %0, %%ss; .byte 0x2e, 0x2e, 0xf1; lea 0(%%rip), %1" : : "m"(watched), "r"(start));
    check(hit, 1, "MOV SS, data breakpoint and INT1: one");
    PREPARE
    asm volatile("mov %0, %%ss; int $1" : : "m"(watched));
    check(hit, 2, "MOV SS, data breakpoint and INT 1: two");
    PREPARE
    int3_rip = 0;
    asm volatile("mov %0, %%ss; int3" : : "m"(watched));
    report(hit == 1 && int3_rip, "MOV SS, data breakpoint and INT3: one each");
    write_dr7(0x400);
    /* LOCK across lines is plain. */
    u8 *line = page();
    u64 old = 0;
    asm volatile("lock cmpxchgq %2, %1" : "+a"(old), "+m"(*(u64 *)(line + 60)) : "r"(0xdeadbeefdeadbeeful) : "memory");
    check(*(u64 *)(line + 60), 0xdeadbeefdeadbeef, "a split lock");
    handlers[DB] = 0;
    handlers[BP] = 0;
}

/* String instructions and the like on MMIO: the test device's RAM. */

static u64 window;
static void t_mmio(void)
{
    window = 0xff000000ul;
    volatile u8 *io = (u8 *)window;
    u8 *ram = page();
    for (int i = 0; i < 64; i++)
        ram[i] = i * 7 + 1;
    copy((void *)io, ram, 64);
    int good = 1;
    for (int i = 0; i < 64; i++)
        good &= io[i] == ram[i];
    report(good, "rep movsb to MMIO");
    u8 *back = page();
    for (int size = 1; size <= 8; size *= 2) {
        void *to = back, *from = (void *)io;
        u64 times = 32 / size;
        fill(back, 0, 64);
        if (size == 1) asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(times) : : "memory");
        if (size == 2) asm volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(times) : : "memory");
        if (size == 4) asm volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(times) : : "memory");
        if (size == 8) asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(times) : : "memory");
        good = times == 0 && to == back + 32;
        for (int i = 0; i < 32; i++)
            good &= back[i] == ram[i];
        report(good, "rep movs from MMIO");
    }
    /* Backwards, compare, scan, store, load. */
    void *to = (void *)(io + 131), *from = ram + 3;
    asm volatile("std; movsb; movsb; cld" : "+D"(to), "+S"(from) : : "memory");
    report(io[131] == ram[3] && io[130] == ram[2], "movsb backwards");
    u64 times = 64;
    to = (void *)io, from = ram;
    u8 same;
    asm volatile("repe cmpsb; sete %0" : "=r"(same), "+D"(to), "+S"(from), "+c"(times) : : "memory", "cc");
    report(same && times == 0, "repe cmpsb with MMIO");
    times = 64;
    to = (void *)io;
    asm volatile("repne scasb; sete %0" : "=r"(same), "+D"(to), "+c"(times) : "a"(ram[10]) : "cc", "memory");
    report(same && times == 53, "repne scasb in MMIO");
    u64 value = 0;
    from = (void *)io;
    asm volatile("lodsq" : "=a"(value), "+S"(from) : : "memory");
    check(value, *(u64 *)ram, "lodsq from MMIO");
    to = (void *)(io + 200);
    asm volatile("stosq" : "+D"(to) : "a"(0x1122334455667788) : "memory");
    check(*(volatile u64 *)(io + 200), 0x1122334455667788, "stosq to MMIO");
    /* Arithmetic on MMIO, narrow and wide, across dwords. */
    volatile u32 *word = (u32 *)(io + 0x100);
    *word = 5;
    asm volatile("addl $3, %0; incl %0; negl %0; notl %0; btsl $31, %0" : "+m"(*word) : : "cc");
    check(*word, (u32)((~-9) | 0x80000000), "read-modify-write on MMIO");
    asm volatile("movl $0x01020304, %0; rolb $4, %0; xchgb %b1, %0" : "+m"(*word), "+q"(value) : : "cc");
    check(value & 0xff, 0x40, "XCHG with MMIO");
    *word = 100;
    u32 old = 100;
    asm volatile("lock cmpxchgl %k2, %1; sete %3" : "+a"(old), "+m"(*word), "+r"(window), "=q"(same) : : "cc", "memory");
    report(same && *word == (u32)window, "LOCK CMPXCHG on MMIO");
    *(volatile u64 *)(io + 0x1fe) = 0x8877665544332211;
    check(*(volatile u64 *)(io + 0x1fe), 0x8877665544332211, "a misaligned quadword of MMIO");
    *(volatile u64 *)(io + 0xffc) = 0x8877665544332211;
    check(*(volatile u64 *)(io + 0xffc), 0x8877665544332211, "a quadword across pages of MMIO");
    check(*(volatile u32 *)(io + 0x1000), 0x88776655, "its second half");
    /* RAM, then MMIO, in one access. */
    u64 at = 0x200000000ul;
    u64 first = (u64)page();
    map(at, first | 7);
    map(at + 4096, window | 7);
    *(volatile u64 *)(at + 4092) = 0xa1a2a3a4b1b2b3b4;
    check(*(volatile u32 *)(first + 4092), 0xb1b2b3b4, "across RAM and MMIO: RAM's half");
    check(*(volatile u32 *)io, 0xa1a2a3a4, "across RAM and MMIO: MMIO's half");
    check(*(volatile u64 *)(at + 4092), 0xa1a2a3a4b1b2b3b4, "across RAM and MMIO: read back");
    /* rep insb to MMIO. */
    outl(0xe0, 0x5a);
    to = (void *)(io + 0x300);
    times = 4;
    asm volatile("rep insb" : "+D"(to), "+c"(times) : "d"(0xe0) : "memory");
    check(*(volatile u32 *)(io + 0x300), 0x5a5a5a5a, "rep insb to MMIO");
    /* PUSH, POP, CALL through MMIO. */
    asm volatile("mov %%rsp, %%rbx; lea 0x800(%1), %%rsp; push $-2; pop %0; push %%rbx; pop %%rbx; mov %%rbx, %%rsp" : "=&r"(value) : "r"(window) : "rbx", "memory");
    check(value, ~1ul, "a stack in MMIO");
    *(volatile u64 *)(io + 0x400) = (u64)&&there;
    asm goto("jmp *%0" : : "m"(*(u64 *)(io + 0x400)) : "memory" : there);
    report(0, "JMP through MMIO");
there:
    report(1, "JMP through MMIO");
    /* Code in MMIO. */
    io[0x500] = 0xb8; io[0x501] = 0x2a; io[0x502] = 0; io[0x503] = 0; io[0x504] = 0; io[0x505] = 0xc3;
    asm volatile("call *%1" : "=a"(value) : "r"(window + 0x500) : "memory");
    check(value, 42, "code in MMIO");
    /* Vectors. */
    write_cr4(read_cr4() | 0x600);
    write_cr0((read_cr0() & ~4ul) | 2);
    *(volatile u64 *)(io + 0x600) = 0x1111222233334444;
    *(volatile u64 *)(io + 0x608) = 0x5555666677778888;
    asm volatile("movdqu (%0), %%xmm0; movdqu %%xmm0, 0x10(%0); movaps 0x10(%0), %%xmm1; movups %%xmm1, 0x28(%0)" : : "r"(io + 0x600) : "memory");
    check(*(volatile u64 *)(io + 0x618), 0x5555666677778888, "MOVDQU on MMIO");
    check(*(volatile u64 *)(io + 0x628), 0x1111222233334444, "MOVUPS to MMIO");
    check(TRY("movaps 1(%0), %%xmm0", , "r"(io)), GP, "misaligned MOVAPS");
    check(TRY("fxsave 8(%0)", , "r"(ram)), GP, "misaligned FXSAVE");
    check(try_read((void *)0x123456789abcdef0), GP, "a non-canonical address");
    /* Far returns, LOCK on what can't have it, undefined encodings. */
    check(TRY(".byte 0xf0, 0x90", ), UD, "LOCK NOP");
    check(TRY(".byte 0x0f, 0x0b", ), UD, "UD2");
    check(TRY(".byte 0x0f, 0xff, 0xc0", ), UD, "UD0");
    check(TRY(".byte 0x8d, 0xc0", ), UD, "LEA of a register");
    u16 sel;
    asm volatile("mov %%cs, %0" : "=r"(sel));
    check(sel, 8, "CS");
    check(TRY("mov %0, %%ds", , "r"(0x1000)), GP, "a selector beyond the GDT");
    check(caught_code, 0x1000, "and its error code");
    u64 smsw;
    asm volatile("smsw %0" : "=r"(smsw));
    check(smsw, read_cr0(), "SMSW of 64 bits");
    u64 lar;
    asm volatile("lar %1, %0" : "=r"(lar) : "r"(8ul));
    check(lar, 0xaf9b00, "LAR");
    u64 wide = 0x1234567800000005, found = wide;
    asm volatile("lock cmpxchg8b %0; sete %2" : "+m"(wide), "=a"(lost[0]), "=q"(same), "=d"(lost[1]) : "b"(1), "c"(2), "1"((u32)found), "3"((u32)(found >> 32)) : "cc");
    report(same && wide == 0x200000001, "CMPXCHG8B");
}

/* Paging. */

#define U 4ul
#define W 2ul
#define P 1ul
#define NX (1ul << 63)

static u64 user_read(u64 at) { return *(volatile u8 *)at; }
static u64 user_write(u64 at) { *(volatile u8 *)(at + 64) = 1; return 0; }
static u64 user_call(u64 at) { ((void (*)(void))at)(); return 0; }

static int supervisor(int kind, u64 at)
{
    if (kind == 0)
        return try_read((void *)at);
    if (kind == 1)
        return try_write((void *)(at + 64));
    /* A fetch faults at the target, so the handler's fix-up is the return address. */
    caught = -1;
    extern void pf_return(struct frame *);
    handle(PF, pf_return);
    asm volatile("call *%0" : : "r"(at) : "memory", "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11");
    handlers[PF] = 0;
    return caught;
}
void pf_return(struct frame *f)
{
    caught = f->vector;
    caught_code = f->error;
    f->rip = *(u64 *)f->rsp;
    f->rsp += 8;
}

static int by_user(int kind, u64 at)
{
    in_user(kind == 0 ? user_read : kind == 1 ? user_write : user_call, at);
    caught_code = user_code;
    return user_fault;
}

/* All products of entry bits at two levels, CR0.WP, EFER.NXE, who and how: what the manual says against what happens. */
static void t_access(void)
{
    u64 at = 0x300000000ul, frame = (u64)page();
    map(at, frame | 7);
    u64 *leaf = entry_of(at);
    u64 *upper = 0;
    {
        u64 *table = (u64 *)(read_cr3() & ~0xffful);
        for (int shift = 39; shift > 21; shift -= 9)
            table = (u64 *)(table[at >> shift & 511] & 0xffffffffff000ul);
        upper = &table[at >> 21 & 511];
    }
    u64 link = *upper & 0xffffffffff000ul, bits = cpuid(0x80000008, 0).a & 0xff;
    *(u8 *)frame = 0xc3;
    u32 bad = 0, cases = 0;
    for (u32 c = 0; c < 1 << 11; c++) {
        u64 lp = c & 1, lw = c >> 1 & 1, lu = c >> 2 & 1, lx = c >> 3 & 1, up = 1, uw = c >> 4 & 1, uu = c >> 5 & 1, ux = c >> 6 & 1;
        u64 wp = c >> 7 & 1, nxe = c >> 8 & 1, rsvd = c >> 9 & 1, upper_rsvd = c >> 10 & 1;
        write_cr0((read_cr0() & ~0x10000ul) | wp << 16);
        wrmsr(0xc0000080, (rdmsr(0xc0000080) & ~0x800ul) | nxe << 11);
        for (int user = 0; user < 2; user++) {
            for (int kind = 0; kind < 3; kind++) {
                *upper = link | up | uw << 1 | uu << 2 | ux << 63 | upper_rsvd << bits;
                *leaf = frame | lp | lw << 1 | lu << 2 | lx << 63 | rsvd << (bits > 50 ? 51 : bits);
                invlpg(at);
                int w = lw && uw, u = lu && uu, x = !((lx || ux) && nxe);
                int code = (kind == 1 ? 2 : 0) | (user ? 4 : 0) | (kind == 2 && nxe ? 16 : 0);
                int fault = -1;
                if (upper_rsvd || (ux && !nxe))
                    fault = code | 9;
                else if (!lp)
                    fault = code;
                else if (rsvd || (lx && !nxe))
                    fault = code | 9;
                else if ((user && !u) || (kind == 1 && !w && (user || wp)) || (kind == 2 && !x))
                    fault = code | 1;
                int vector = user ? by_user(kind, at) : supervisor(kind, at);
                int got = vector == PF ? (int)caught_code : vector == -1 ? -1 : -2;
                u64 accessed = *leaf >> 5 & 1, dirty = *leaf >> 6 & 1;
                int want_a = fault == -1, want_d = fault == -1 && kind == 1;
                cases++;
                if (got != fault || (int)accessed != want_a || (int)dirty != want_d) {
                    if (bad++ < 5) {
                        print("case ");
                        print_number(c, 16);
                        print(user ? " user" : " supervisor");
                        print(kind == 0 ? " read" : kind == 1 ? " write" : " fetch");
                        print(": got ");
                        print_number((u32)got, 16);
                        print(", wanted ");
                        print_number((u32)fault, 16);
                        print(accessed != (u64)want_a || dirty != (u64)want_d ? " A or D is wrong\n" : "\n");
                    }
                }
            }
        }
    }
    *upper = link | 7;
    write_cr0(read_cr0() | 0x10000);
    check(bad, 0, "page table products");
    print_number(cases, 10);
    print(" cases\n");
    /* Large pages: reserved bits, dirty bit, one page for all. */
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    *upper = (64ul << 20) | 0x87;
    invlpg(at);
    check(try_write((void *)(at + 12345)), -1, "a 2 MiB page");
    check(*upper & 0x60, 0x60, "its A and D");
    *upper = (64ul << 20) | 0x87 | 1 << 13;
    invlpg(at);
    check(try_read((void *)at), PF, "its reserved bits");
    check(caught_code, 9, "and their error code");
    *upper = link | 7;
    invlpg(at);
}

static void t_smap(void)
{
    u64 at = 0x300000000ul, frame = (u64)page();
    check(has(7, 0, 'b', 20), 1, "SMAP is offered");
    extern u64 pml4[];
    map(at, frame | 7);
    /* The kernel's own pages must not be the user's then: only this one is. */
    for (u64 page_at = 0; page_at < 1ul << 32; page_at += 2ul << 20) {
        u64 *pdpt_entry = (u64 *)(pml4[0] & ~0xffful) + (page_at >> 30);
        u64 *entry = (u64 *)(*pdpt_entry & ~0xffful) + (page_at >> 21 & 511);
        *entry &= ~4ul;
    }
    write_cr3(read_cr3());
    asm volatile("mov %%cr4, %%rax; xor $0x80, %%rax; mov %%rax, %%cr4; xor $0x80, %%rax; mov %%rax, %%cr4" : : : "rax");
    write_cr4(read_cr4() | 1 << 21);
    asm volatile("clac");
    check(try_read((void *)at), PF, "a user page, AC clear");
    check(caught_code, 1, "its error code");
    check(try_write((void *)at), PF, "a write");
    check(caught_code, 3, "its error code");
    asm volatile("stac");
    check(try_read((void *)at), -1, "AC set");
    check(try_write((void *)at), -1, "AC set, write");
    asm volatile("clac");
    *(u8 *)frame = 0xc3;
    check(supervisor(2, at), -1, "a fetch is SMEP's matter");
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ul);
    write_cr4(read_cr4() | 1 << 20);
    check(supervisor(2, at), PF, "SMEP");
    check(caught_code, 0x11, "its error code has the fetch bit without NXE");
    write_cr4(read_cr4() & ~(1ul << 20));
    u64 cr0 = read_cr0();
    write_cr0(cr0 & ~0x10000ul);
    *entry_of(at) = frame | 5;
    invlpg(at);
    check(try_write((void *)at), PF, "WP clear doesn't lift SMAP");
    asm volatile("stac");
    check(try_write((void *)at), -1, "AC and no WP: a read-only page");
    asm volatile("clac");
    write_cr0(cr0);
    write_cr4(read_cr4() & ~(1ul << 21));
    check(try_read((void *)at), -1, "without SMAP");
}

static u32 rdpkru(void) { u32 a; asm volatile("rdpkru" : "=a"(a) : "c"(0) : "rdx"); return a; }
static void wrpkru(u32 v) { asm volatile("wrpkru" : : "a"(v), "c"(0), "d"(0) : "memory"); }

static void t_pku(void)
{
    if (!has(7, 0, 'c', 3)) {
        print("SKIP: no PKU\n");
        finish(EXIT_SKIP);
    }
    u64 at = 0x300000000ul, frame = (u64)page(), key = 2;
    check(TRY("rdpkru", AD, "c"(0)), UD, "RDPKRU needs CR4.PKE");
    write_cr4(read_cr4() | 1 << 22);
    check(has(7, 0, 'c', 4), 1, "OSPKE");
    map(at, frame | 7 | key << 59);
    wrpkru(1 << (2 * key));
    check(try_read((void *)at), PF, "access disabled");
    check(caught_code, 0x21, "its error code");
    check(by_user(0, at), PF, "for the user too");
    check(user_code, 0x25, "its error code");
    wrpkru(2 << (2 * key));
    check(try_read((void *)at), -1, "write disabled: reads");
    u64 cr0 = read_cr0();
    write_cr0(cr0 & ~0x10000ul);
    check(try_write((void *)at), -1, "write disabled without WP: the supervisor writes");
    write_cr0(cr0 | 0x10000);
    check(try_write((void *)at), PF, "write disabled with WP");
    check(caught_code, 0x23, "its error code");
    check(by_user(1, at), PF, "the user never writes");
    check(user_code, 0x27, "its error code");
    *entry_of(at) = frame | 3 | key << 59;
    invlpg(at);
    check(try_write((void *)at), -1, "supervisor pages have no keys");
    check(rdpkru(), 2 << (2 * key), "RDPKRU");
    wrpkru(0);
    check(TRY("wrpkru", , "a"(0), "c"(1), "d"(0)), GP, "WRPKRU with ECX");
    write_cr4(read_cr4() & ~(1ul << 22));
}

static u64 do_sgdt(u64 at) { asm volatile("sgdt (%0)" : : "r"(at) : "memory"); return 0; }
static u64 do_sidt(u64 at) { asm volatile("sidt (%0)" : : "r"(at) : "memory"); return 0; }
static u64 do_sldt(u64 at) { asm volatile("sldt (%0)" : : "r"(at) : "memory"); return 0; }
static u64 do_str(u64 at) { u64 v; (void)at; asm volatile("str %0" : "=r"(v)); return v; }
static u64 do_smsw(u64 at) { u64 v; (void)at; asm volatile("smsw %0" : "=r"(v)); return v; }

static void t_umip(void)
{
    u64 (*all[])(u64) = { do_sgdt, do_sidt, do_sldt, do_str, do_smsw };
    u64 scratch = (u64)page();
    check(has(7, 0, 'c', 2), 1, "UMIP is offered");
    for (int on = 0; on < 2; on++) {
        write_cr4((read_cr4() & ~0x800ul) | (u64)on << 11);
        for (int i = 0; i < 5; i++) {
            in_user(all[i], scratch);
            check((u64)user_fault, on ? GP : -1ul, on ? "UMIP: the user may not" : "the user may");
            all[i](scratch);
        }
    }
    write_cr4(read_cr4() & ~0x800ul);
}

static void t_pcid(void)
{
    check(has(1, 0, 'c', 17) && has(7, 0, 'b', 10), 1, "PCID and INVPCID are offered");
    u64 cr3 = read_cr3(), cr4 = read_cr4();
    struct { u64 pcid, address; } d = { 0, 0 };
#define INVPCID(kind) TRY("invpcid (%1), %0", , "r"((u64)(kind)), "r"(&d))
    write_cr3(cr3 | 1 << 3);
    check(try_cr4(cr4 | 1 << 17), cr3 | 8 ? -1 == caught ? -1 : GP : GP, "PCIDE with PWT set");
    write_cr4(cr4);
    write_cr3(cr3);
    check(try_cr4(cr4 | 1 << 17), -1, "CR4.PCIDE");
    check(try_cr3(cr3 | 1), -1, "a PCID");
    check(read_cr3(), cr3 | 1, "CR3 has it");
    check(try_cr3(cr3 | 1ul << 63), -1, "no flush");
    check(read_cr3(), cr3, "CR3 doesn't keep bit 63");
    check(try_cr0(read_cr0() & ~0x80000000ul), GP, "PG can't go with PCIDE");
    for (u64 kind = 0; kind < 4; kind++)
        check(INVPCID(kind), -1, "INVPCID");
    check(INVPCID(4), GP, "INVPCID, no such type");
    d.pcid = 0x1000;
    check(INVPCID(0), GP, "INVPCID, reserved bits");
    check(INVPCID(3), GP, "INVPCID 3, reserved bits");
    d.pcid = 0;
    d.address = NONCANONICAL;
    check(INVPCID(0), GP, "INVPCID, a non-canonical address");
    d.address = 0;
    write_cr4(cr4);
    check(INVPCID(0), -1, "without PCIDE, PCID 0");
    d.pcid = 1;
    check(INVPCID(0), GP, "without PCIDE, another PCID");
    check(INVPCID(1), GP, "the same by context");
    check(try_cr3(cr3 | 1ul << 63), GP, "bit 63 of CR3 without PCIDE");
    in_user(do_sgdt, (u64)page());
}

extern void syscall_entry(void);
extern u64 syscall_flags, syscall_r11, syscall_rcx;
static u64 do_syscall(u64 flags)
{
    asm volatile("push %0; popf; syscall" : : "r"(flags) : "rcx", "r11", "memory", "cc");
    return 0;
}

static void t_syscall(void)
{
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ul);
    in_user(do_syscall, 2);
    check((u64)user_fault, UD, "SYSCALL needs EFER.SCE");
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
    wrmsr(0xc0000081, 8ul << 32 | 0x13ul << 48);
    wrmsr(0xc0000082, (u64)syscall_entry);
    wrmsr(0xc0000084, 0x400);
    in_user(do_syscall, 0xc02);
    check(syscall_flags & 0xc00, 0x800, "the mask clears flags");
    check(syscall_r11 & 0xc00, 0xc00, "R11 keeps them");
    report(syscall_rcx != 0, "RCX is the return address");
    cli();
    asm volatile("cld");
    /* From CPL 0, with whatever STAR says. */
    wrmsr(0xc0000084, 0);
    extern u8 syscall_here[];
    wrmsr(0xc0000082, (u64)syscall_here);
    asm volatile("pushf; syscall; .globl syscall_here\nsyscall_here: popf; mov %%ss, %0" : "=r"(lost[0]) : : "rcx", "r11", "memory");
    check(lost[0] & 0xffff, 0x10, "SYSCALL from CPL 0");
    check(TRY(".byte 0x0f, 0x01, 0xc1", AD, "a"(10)), UD, "no hypercalls, VMCALL");
    check(TRY(".byte 0x0f, 0x01, 0xd9", AD, "a"(10)), UD, "no hypercalls, VMMCALL");
    check(TRY(".byte 0x0f, 0x01, 0xfd", AD, "c"(0)), UD, "no RDPRU");
    check(has(1, 0, 'c', 5), 0, "no VMX");
    check(has(1, 0, 'c', 31), 1, "the hypervisor bit");
}

static void t_xsave(void)
{
    write_cr4(read_cr4() | 0x600);
    write_cr0((read_cr0() & ~4ul) | 2);
    if (!has(1, 0, 'c', 26)) {
        print("SKIP: no XSAVE\n");
        finish(EXIT_SKIP);
    }
    write_cr4(read_cr4() & ~(1ul << 18));
    check(TRY("xgetbv", AD, "c"(0)), UD, "XGETBV needs OSXSAVE");
    check(has(1, 0, 'c', 27), 0, "no OSXSAVE");
    write_cr4(read_cr4() | 1 << 18);
    check(has(1, 0, 'c', 27), 1, "OSXSAVE");
    struct cpuid r = cpuid(13, 0);
    u64 all = r.a | (u64)r.d << 32;
    report((all & 3) == 3, "x87 and SSE");
#define XSETBV(index, value) TRY("xsetbv", , "c"(index), "a"((u32)(value)), "d"((u32)((u64)(value) >> 32)))
    check(XSETBV(0, 1), -1, "x87");
    check(XSETBV(0, 3), -1, "x87 and SSE");
    check(XSETBV(0, all), -1, "everything offered");
    check(cpuid(13, 0).b, r.c, "its size");
    check(XSETBV(0, 0), GP, "nothing");
    check(XSETBV(0, 2), GP, "SSE without x87");
    if (all & 4)
        check(XSETBV(0, 5), GP, "AVX without SSE");
    check(XSETBV(0, all | 1ul << 62), GP, "what isn't offered");
    check(XSETBV(1, all), GP, "XCR1");
    check(TRY("xgetbv", AD, "c"(2)), GP, "XGETBV of what isn't there");
    u8 *area = page();
    page();
    asm volatile("fninit; xsave (%0)" : : "r"(area), "a"(-1), "d"(-1) : "memory");
    check(*(u16 *)area, 0x37f, "XSAVE's control word");
    asm volatile("xrstor (%0)" : : "r"(area), "a"(-1), "d"(-1) : "memory");
    check(TRY("xsave 8(%0)", , "r"(area), "a"(-1), "d"(-1)), GP, "misaligned XSAVE");
    write_cr0(read_cr0() | 8);
    check(TRY("xsave (%0)", , "r"(area), "a"(-1), "d"(-1)), NM, "CR0.TS");
    asm volatile("clts");
}

static void t_memory(void)
{
    u8 *at = page();
    check(TRY("clflush (%0)", , "r"(at)), -1, "CLFLUSH");
    check(TRY("sfence; lfence; mfence", ), -1, "fences");
    check(TRY(".byte 0x66, 0x0f, 0xae, 0x3b", , "b"(at)), has(7, 0, 'b', 23) ? -1ul : UD, "CLFLUSHOPT");
    check(TRY(".byte 0x66, 0x0f, 0xae, 0x33", , "b"(at)), has(7, 0, 'b', 24) ? -1ul : UD, "CLWB");
    int clwb = TRY(".byte 0x66, 0x0f, 0xae, 0xf0", , "a"(0));
    check(clwb, UD, "CLWB of a register");
    check(TRY(".byte 0x66, 0x0f, 0xae, 0xf8", ), UD, "no PCOMMIT");
    check(TRY("clflush (%0)", , "r"(NONCANONICAL)), GP, "CLFLUSH of a non-canonical address");
}

const struct group cpu_groups[] = {
    { "msr", t_msr }, { "tsc", t_tsc }, { "debug", t_debug }, { "mmio", t_mmio }, { "access", t_access },
    { "smap", t_smap }, { "pku", t_pku }, { "umip", t_umip }, { "pcid", t_pcid }, { "syscall", t_syscall },
    { "xsave", t_xsave }, { "memory", t_memory }, { 0, 0 },
};
