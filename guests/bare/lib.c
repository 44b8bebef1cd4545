/* The common part of the bare-metal guests: see lib.h. Runs as test kernels do: polled serial output, exit by port 0xf4. */
#include "lib.h"

extern u8 vectors[], trampoline[], trampoline_end[], image_end[], stacks[];
extern u64 gdt_tss[], pdpt[], kernel_rsp;
extern u32 mb_info;
extern void back_from_user(void), user_entry(void);
extern u64 fixups[][2], fixups_end[][2];
extern const struct group boot_groups[], apic_groups[], cpu_groups[], code_groups[], litmus_groups[], shoot_groups[], kvm_groups[],
    hyperv_groups[], synic_groups[];

volatile int caught;
volatile u64 caught_code;
volatile int user_fault;
volatile u64 user_code;
int failures;
u64 lost[3];
handler handlers[256];
u64 idt[512] __attribute__((aligned(16)));
struct tss tss[8];
u32 cpus = 1;
volatile u32 online;
static int x2apic[8];
static u8 fault_stacks[8][4096] __attribute__((aligned(16)));

static void put(u8 byte)
{
    while (!(inb(0x3fd) & 0x20))
        pause();
    outb(0x3f8, byte);
}

void print(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            put('\r');
        put(*text);
    }
}

void print_number(u64 value, int base)
{
    char text[24], *at = text + 23;
    *at = 0;
    do
        *--at = "0123456789abcdef"[value % base];
    while (value /= base);
    print(at);
}

void report(int good, const char *what)
{
    print(good ? "PASS: " : "FAIL: ");
    print(what);
    print("\n");
    failures += !good;
}

void report_values(int good, const char *what, u64 got, u64 wanted)
{
    print(good ? "PASS: " : "FAIL: ");
    print(what);
    if (!good) {
        print(": got 0x");
        print_number(got, 16);
        print(", wanted 0x");
        print_number(wanted, 16);
    }
    print("\n");
    failures += !good;
}

void finish(u32 code)
{
    outl(0xf4, code);
    for (;;)
        asm volatile("cli; hlt");
}

int equal(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    return *a == *b;
}

int starts(const char *text, const char *with)
{
    for (; *with; text++, with++)
        if (*text != *with)
            return 0;
    return 1;
}

void fill(void *at, int byte, u64 count) { asm volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(byte) : "memory"); }
void copy(void *to, const void *from, u64 count) { asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); }
void *memset(void *at, int byte, u64 count) { fill(at, byte, count); return at; }
void *memcpy(void *to, const void *from, u64 count) { copy(to, from, count); return to; }

int has(u32 leaf, u32 sub, int reg, int bit)
{
    struct cpuid r = cpuid(leaf & 0x80000000, 0);
    if (r.a < leaf)
        return 0;
    r = cpuid(leaf, sub);
    u32 value = reg == 'a' ? r.a : reg == 'b' ? r.b : reg == 'c' ? r.c : r.d;
    return value >> bit & 1;
}

u32 argument(u32 otherwise)
{
    const char *line = (const char *)(u64)((u32 *)(u64)mb_info)[4], *at = line;
    u32 number = 0;
    while (*at)
        at++;
    while (at > line && at[-1] >= '0' && at[-1] <= '9')
        at--;
    if (!*at || at == line || at[-1] != ' ')
        return otherwise;
    for (; *at; at++)
        number = number * 10 + *at - '0';
    return number;
}

u64 fw_cfg(u16 item, int bytes)
{
    u64 value = 0;
    outw(0x510, item);
    for (int i = 0; i < bytes; i++)
        value |= (u64)inb(0x511) << 8 * i;
    return value;
}

/* Exceptions and interrupts. */

void c_interrupt(struct frame *f)
{
    handler h = handlers[f->vector & 255];
    f->vector &= 255;
    if (f->cs & 3) {
        if (h && f->vector != 0x80 && f->vector != DB) {
            h(f);
            return;
        }
        if (h && f->vector == DB) {
            h(f);
            return;
        }
        user_fault = f->vector == 0x80 ? -1 : (int)f->vector;
        user_code = f->error;
        f->rip = (u64)back_from_user;
        f->cs = 8;
        f->ss = 0x10;
        f->rsp = kernel_rsp;
        f->rflags = 2;
        return;
    }
    if (h) {
        h(f);
        return;
    }
    for (u64(*fix)[2] = fixups; fix < fixups_end; fix++) {
        if ((*fix)[0] == f->rip) {
            caught = f->vector;
            caught_code = f->error;
            f->rip = (*fix)[1];
            return;
        }
    }
    print("unexpected vector ");
    print_number(f->vector, 10);
    print(" at 0x");
    print_number(f->rip, 16);
    print(" error 0x");
    print_number(f->error, 16);
    print(" cr2 0x");
    print_number(read_cr2(), 16);
    print("\n");
    finish(EXIT_ABORT);
}

void gate(int vector, void *to, int dpl, int ist)
{
    u64 at = (u64)to;
    idt[2 * vector] = (at & 0xffff) | 8 << 16 | (u64)ist << 32 | (u64)(0x8e | dpl << 5) << 40 | (at >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = at >> 32;
}

void handle(int vector, handler h) { handlers[vector] = h; }

static u32 cpu_number(void)
{
    u32 tr;
    asm("str %0" : "=r"(tr));
    return ((tr & 0xffff) - 48) / 16;
}

static void load_tables(u32 id)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = { sizeof idt - 1, (u64)idt };
    asm volatile("lidt %0" : : "m"(pointer));
    struct tss *mine = &tss[id];
    u64 at = (u64)mine, limit = sizeof *mine - 1;
    mine->io = 104;
    fill(mine->bitmap, 0xff, sizeof mine->bitmap);
    mine->ist[0] = (u64)fault_stacks[id] + sizeof fault_stacks[id];
    u64 rsp;
    asm("mov %%rsp, %0" : "=r"(rsp));
    mine->rsp[0] = rsp - 4096;
    gdt_tss[2 * id] = (limit & 0xffff) | (at & 0xffffff) << 16 | 0x89ull << 40 | (at >> 24 & 0xff) << 56;
    gdt_tss[2 * id + 1] = at >> 32;
    asm volatile("ltr %w0" : : "r"(48 + 16 * id));
}

/* Local APIC. */

u32 apic_read(u32 reg)
{
    if (x2apic[cpu_number()])
        return rdmsr(0x800 + reg / 16);
    return *(volatile u32 *)(0xfee00000ul + reg);
}

void apic_write(u32 reg, u32 value)
{
    if (x2apic[cpu_number()])
        wrmsr(0x800 + reg / 16, value);
    else
        *(volatile u32 *)(0xfee00000ul + reg) = value;
}

void apic_icr(u32 low, u32 destination)
{
    if (x2apic[cpu_number()]) {
        wrmsr(0x830, (u64)destination << 32 | low);
    } else {
        apic_write(APIC_ICR2, destination << 24);
        apic_write(APIC_ICR, low);
    }
}

void eoi(void) { apic_write(APIC_EOI, 0); }

int has_x2apic(void) { return has(1, 0, 'c', 21); }

void reset_apic(void)
{
    u64 base = rdmsr(MSR_APICBASE) & ~(u64)(APICBASE_EN | APICBASE_EXTD);
    wrmsr(MSR_APICBASE, base);
    x2apic[cpu_number()] = 0;
    wrmsr(MSR_APICBASE, base | APICBASE_EN);
    apic_write(APIC_SVR, 0x1ff);
}

int enable_x2apic(void)
{
    if (!has_x2apic())
        return 0;
    wrmsr(MSR_APICBASE, rdmsr(MSR_APICBASE) | APICBASE_EXTD);
    x2apic[cpu_number()] = 1;
    return 1;
}

/* Other CPUs. */

static struct { void (*volatile run)(void *); void *argument; } work[8];

static void called(struct frame *f)
{
    (void)f;
    u32 me = cpu_number();
    eoi();
    void (*run)(void *) = work[me].run;
    sti();
    if (run)
        run(work[me].argument);
    cli();
    work[me].run = 0;
}

void wait_idle(u32 cpu)
{
    while (work[cpu].run)
        pause();
}

void on_cpu(u32 cpu, void (*f)(void *), void *argument, int wait)
{
    wait_idle(cpu);
    work[cpu].argument = argument;
    work[cpu].run = f;
    apic_icr(ICR_FIXED | 0x20, cpu);
    if (wait)
        wait_idle(cpu);
}

void c_ap_start(void)
{
    load_tables(cpuid(1, 0).b >> 24);
    reset_apic();
    enable_x2apic();
    asm volatile("lock incl %0" : "+m"(online));
}

void start_others(void)
{
    fill((void *)0, 0xcc, 4096);
    copy((void *)0, trampoline, trampoline_end - trampoline);
    /* As test kernels do: no delay, one start-up IPI, even with one CPU. */
    apic_icr(0xc4500, 0);
    apic_icr(0xc4600, 0);
    cpus = fw_cfg(5, 2);
    online = online + 1;
    while (*(volatile u32 *)&online != cpus)
        pause();
}

/* Memory. */

static u64 next_page;

void *page(void)
{
    if (!next_page)
        next_page = 32ul << 20;
    u8 *at = (u8 *)next_page;
    next_page += 4096;
    fill(at, 0, 4096);
    return at;
}

extern u64 pml4[];

u64 *entry_of(u64 address)
{
    u64 *table = (u64 *)(read_cr3() & ~0xffful);
    for (int shift = 39; shift > 12; shift -= 9) {
        u64 *entry = &table[address >> shift & 511];
        if (!(*entry & 1)) {
            *entry = (u64)page() | 7;
        } else if (*entry & 0x80) {
            u64 *small = page();
            u64 size = 1ul << (shift - 9);
            for (int i = 0; i < 512; i++)
                small[i] = (*entry & ~0x1000ul & (shift == 21 ? ~0x80ul : ~0ul)) + i * size;
            *entry = (u64)small | 7;
        }
        table = (u64 *)(*entry & 0xffffffffff000ul);
    }
    return &table[address >> 12 & 511];
}

void invlpg(u64 address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }

void map(u64 address, u64 entry)
{
    *entry_of(address) = entry;
    invlpg(address);
}

u64 wait_ticks(u64 ticks)
{
    u64 start = rdtsc();
    while (rdtsc() - start < ticks)
        pause();
    return rdtsc() - start;
}

void c_start(void)
{
    u32 *info = (u32 *)(u64)mb_info;
    outb(0x3f9, 0);
    outb(0x3fb, 0x80);
    outb(0x3f8, 1);
    outb(0x3f9, 0);
    outb(0x3fb, 3);
    outb(0x3fa, 0);
    outb(0x3fc, 3);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (int vector = 0; vector < 256; vector++)
        gate(vector, vectors + 16 * vector, vector == 0x80 || vector == BP ? 3 : 0, vector == DF ? 1 : 0);
    load_tables(cpuid(1, 0).b >> 24);
    /* The first exception of every test kernel: a probe for forced emulation. */
    if (TRY("ud2; .byte 0x6b, 0x76, 0x6d; nop", ) != UD)
        finish(EXIT_ABORT);
    handle(0x20, called);
    reset_apic();
    start_others();
    enable_x2apic();

    const char *line = (const char *)(u64)info[4];
    while (*line && *line != ' ')
        line++;
    while (*line == ' ')
        line++;
    const struct group *lists[] = { boot_groups, apic_groups, cpu_groups, code_groups, litmus_groups, shoot_groups, kvm_groups, hyperv_groups, synic_groups };
    for (u32 list = 0; list < sizeof lists / sizeof *lists; list++) {
        for (const struct group *group = lists[list]; group->name; group++) {
            const char *rest = line;
            for (const char *name = group->name; *name && *name == *rest; name++)
                rest++;
            if (starts(line, group->name) && (!*rest || *rest == ' ')) {
                group->run();
                finish(failures ? EXIT_FAIL : EXIT_PASS);
            }
        }
    }
    print("no such group: ");
    print(line);
    print("\n");
    finish(EXIT_ABORT);
}
