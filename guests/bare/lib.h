/* What the bare-metal guests share: output, results, faults that are expected, local APICs, other CPUs. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};
typedef void (*handler)(struct frame *);

struct cpuid { u32 a, b, c, d; };

#define EXIT_PASS 0
#define EXIT_FAIL 1
#define EXIT_SKIP 38
#define EXIT_ABORT 63

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void nop(void) { asm volatile("nop" : : : "memory"); }
static inline u64 rdmsr(u32 msr) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(msr) : "memory"); return (u64)d << 32 | a; }
static inline void wrmsr(u32 msr, u64 value) { asm volatile("wrmsr" : : "a"((u32)value), "d"((u32)(value >> 32)), "c"(msr) : "memory"); }
static inline u64 rdtsc(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d)); return (u64)d << 32 | a; }
static inline struct cpuid cpuid(u32 leaf, u32 sub)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(sub));
    return r;
}
#define CONTROL(name) \
    static inline u64 read_##name(void) { u64 v; asm volatile("mov %%" #name ", %0" : "=r"(v) : : "memory"); return v; } \
    static inline void write_##name(u64 v) { asm volatile("mov %0, %%" #name : : "r"(v) : "memory"); }
CONTROL(cr0) CONTROL(cr2) CONTROL(cr3) CONTROL(cr4) CONTROL(cr8)
CONTROL(dr0) CONTROL(dr1) CONTROL(dr2) CONTROL(dr4) CONTROL(dr6) CONTROL(dr7)

/* The vector that an instruction faults with, or -1; `caught_code` is its error code. */
extern volatile int caught;
extern volatile u64 caught_code;
#define TRY(text, outputs, inputs...) ({ \
    caught = -1; \
    asm volatile("1: " text "\n2:\n.pushsection .fixups, \"aw\"\n.quad 1b, 2b\n.popsection" : outputs : inputs : "memory", "cc"); \
    caught; })
#define OUT(list...) list
/* Where RAX and RDX, or RBX, get something that nobody wants. */
extern u64 lost[3];
#define AD OUT("=a"(lost[0]), "=d"(lost[1]))
static inline int try_wrmsr(u32 msr, u64 value) { return TRY("wrmsr", , "a"((u32)value), "d"((u32)(value >> 32)), "c"(msr)); }
static inline int try_rdmsr(u32 msr) { u32 a, d; return TRY("rdmsr", OUT("=a"(a), "=d"(d)), "c"(msr)); }
#define TRY_CONTROL(name) static inline int try_##name(u64 v) { return TRY("mov %0, %%" #name, , "r"(v)); }
TRY_CONTROL(cr0) TRY_CONTROL(cr3) TRY_CONTROL(cr4) TRY_CONTROL(cr8) TRY_CONTROL(dr6) TRY_CONTROL(dr7)
static inline int try_write(volatile void *at) { return TRY("movb $1, (%0)", , "r"(at)); }
static inline int try_read(volatile void *at) { u8 byte; return TRY("movb (%1), %0", "=r"(byte), "r"(at)); }

#define BP 3
#define DB 1
#define UD 6
#define NM 7
#define DF 8
#define SS_FAULT 12
#define GP 13
#define PF 14
#define AC_FAULT 17

extern handler handlers[256];
extern u64 idt[512];

void print(const char *text);
void print_number(u64 value, int base);
void report(int good, const char *what);
void report_values(int good, const char *what, u64 got, u64 wanted);
#define check(got, wanted, what) ({ u64 got_ = (got), wanted_ = (wanted); report_values(got_ == wanted_, what, got_, wanted_); })
void finish(u32 code) __attribute__((noreturn));
extern int failures;

u64 in_user(u64 (*f)(u64), u64 argument);
/* Whether in_user() came back by a fault: its vector, else -1; and its error code. */
extern volatile int user_fault;
extern volatile u64 user_code;

/* Local APIC, in whichever mode this CPU has it. */
#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_TPR 0x80
#define APIC_PPR 0xa0
#define APIC_EOI 0xb0
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_ISR 0x100
#define APIC_IRR 0x200
#define APIC_ESR 0x280
#define APIC_ICR 0x300
#define APIC_ICR2 0x310
#define APIC_LVTT 0x320
#define APIC_LVT0 0x350
#define APIC_LVT1 0x360
#define APIC_LVTERR 0x370
#define APIC_TMICT 0x380
#define APIC_TMCCT 0x390
#define APIC_TDCR 0x3e0
#define APIC_SELF 0x3f0
#define ICR_NMI 0x4400
#define ICR_FIXED 0x4000
#define ICR_LOGICAL 0x800
#define ICR_SELF 0x40000
#define ICR_ALL 0x80000
#define ICR_OTHERS 0xc0000
#define MSR_APICBASE 0x1b
#define APICBASE_EN 0x800
#define APICBASE_EXTD 0x400
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
void apic_icr(u32 low, u32 destination);
void eoi(void);
void reset_apic(void);
int enable_x2apic(void);
int has_x2apic(void);

extern u32 cpus;
extern volatile u32 online;
void start_others(void);
void on_cpu(u32 cpu, void (*f)(void *), void *argument, int wait);
void wait_idle(u32 cpu);
void handle(int vector, handler h);
void gate(int vector, void *to, int dpl, int ist);

/* fw_cfg. */
u64 fw_cfg(u16 item, int bytes);

int has(u32 leaf, u32 sub, int reg, int bit);
/* The number that the command line ends with. */
u32 argument(u32 otherwise);
int equal(const char *a, const char *b);
int starts(const char *text, const char *with);
void fill(void *at, int byte, u64 count);
void copy(void *to, const void *from, u64 count);
/* A zeroed page. */
void *page(void);
/* The 4 KiB page table entry of an address, made where there was a large page. */
u64 *entry_of(u64 address);
void invlpg(u64 address);
void map(u64 address, u64 entry);
u64 wait_ticks(u64 ticks);

struct tss { u32 r0; u64 rsp[3]; u64 r1; u64 ist[7]; u64 r2; u16 r3, io; u8 bitmap[8193]; } __attribute__((packed));
extern struct tss tss[8];

struct group { const char *name; void (*run)(void); };
