/* What the loader and the test devices tell a guest, and how it ends. */
#include "lib.h"

extern u32 mb_magic, mb_info;
extern u8 image_end[];

static u32 word(u64 at) { return *(volatile u32 *)at; }

static void t_boot(void)
{
    u64 info = mb_info, flags = word(info);
    check(mb_magic, 0x2badb002, "EAX is the magic");
    check(flags & 0x4d, 0x4d, "memory size, command line, modules and map are told");
    const char *line = (const char *)(u64)word(info + 16);
    report(starts(line, "/"), "argv[0] is the kernel's path");
    check(word(info + 20), 1, "one module");
    u64 modules = word(info + 24), start = word(modules), end = word(modules + 4);
    report(starts((char *)start, "NR_CPUS="), "the module's contents");
    check(end - start, 23, "the module's length");
    report(modules >= (u64)image_end && start >= (u64)image_end, "the module lies beyond .bss");
    u64 ram = fw_cfg(3, 8), upper = word(info + 8) * 1024ul, at = word(info + 48), stop = at + word(info + 44), top = 0;
    check(fw_cfg(5, 2), cpus, "CPUs by fw_cfg");
    check(fw_cfg(0x11, 8), 0, "no limit of RAM by fw_cfg");
    check(fw_cfg(0, 4), 0x554d4551, "fw_cfg's signature");
    while (at < stop) {
        u64 base = *(u64 *)(at + 4), length = *(u64 *)(at + 12);
        if (word(at + 20) == 1 && base <= (u64)image_end && base + length > (u64)image_end)
            top = base + length;
        at += word(at) + 4;
    }
    check(top, ram, "the map's RAM ends where fw_cfg's does");
    report(upper <= ram && upper >= ram - (2 << 20), "mem_upper fits");
    volatile u8 *last = (u8 *)ram - 1;
    *last = 0x5a;
    check(*last, 0x5a, "the last byte is RAM");
    check(*(volatile u32 *)(ram + 4096), 0xffffffff, "beyond it there is nothing");
    check(((u8 *)image_end)[-1], 0, ".bss is zero");
}

static void t_exit(void)
{
    const char *line = (const char *)(u64)word(mb_info + 16);
    u32 code = 0;
    while (*line)
        line++;
    while (line[-1] >= '0' && line[-1] <= '9')
        line--;
    for (; *line; line++)
        code = code * 10 + *line - '0';
    finish(code);
}

static u32 port_in(u16 port, int size) { return size == 1 ? inb(port) : size == 2 ? inw(port) : inl(port); }

static void t_ports(void)
{
    static const u16 none[] = { 0x1234, 0x5000, 0x9000, 0x4fff, 0x7fff, 0xfffc };
    for (u32 i = 0; i < sizeof none / 2; i++) {
        outl(none[i], 0);
        check(port_in(none[i], 4), 0xffffffff, "nobody's port, 4 bytes");
        check(port_in(none[i], 2), 0xffff, "nobody's port, 2 bytes");
        check(port_in(none[i], 1), 0xff, "nobody's port, 1 byte");
    }
    check(inb(0xffff), 0xff, "the last port");
    outl(0xe0, 0x12345678);
    check(inl(0xe0), 0x12345678, "latch, 4 bytes");
    check(inw(0xe0), 0x5678, "latch, 2 bytes");
    check(inb(0xe0), 0x78, "latch, 1 byte");
    check(inw(0xe2), 0x1234, "latch, upper 2 bytes");
    check(inb(0xe3), 0x12, "latch, last byte");
    outb(0xe1, 0xab);
    outw(0xe2, 0xcdef);
    check(inl(0xe0), 0xcdefab78, "latch after narrow writes");
    check(inb(0xe9), 0xab, "the byte latch is the same latch");
    u8 *text = page();
    fill(text, 0x11, 16);
    u64 count = 4;
    void *at = text;
    asm volatile("rep insb" : "+D"(at), "+c"(count) : "d"(0xe0) : "memory");
    check(*(u32 *)text, 0x78787878, "rep insb from the latch");
    check(text[4], 0x11, "rep insb ends where it should");
    count = 3;
    at = text;
    *(u32 *)text = 0x030201;
    asm volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(0xe0) : "memory");
    check(inb(0xe0), 3, "rep outsb to the latch");
    /* Dropping a page of the host's loses nothing. */
    u64 *kept = page();
    *kept = 0x1122334455667788;
    outl(0xe4, (u32)(u64)kept);
    check(*kept, 0x1122334455667788, "a flushed page keeps its contents");
    /* PCI: a host bridge, and nothing at the others. */
    int found = 0;
    for (u32 device = 0; device < 256; device++) {
        outl(0xcf8, 0x80000000 | device << 8);
        u32 id = inl(0xcfc);
        found += id != 0xffffffff;
    }
    report(found >= 1, "PCI devices by mechanism 1");
    outl(0xcf8, 0x80000000 | 15 << 11);
    check(inw(0xcfc), 0xffff, "no PCI device");
    /* RTC: seconds run in BCD or binary, and the status registers make sense. */
    outb(0x70, 0x0d);
    check(inb(0x71) & 0x80, 0x80, "RTC's battery");
    /* HPET. */
    u32 hpet = *(volatile u32 *)0xfed00000;
    report(hpet != 0 && hpet != 0xffffffff, "HPET's ID");
    u64 period = *(volatile u32 *)0xfed00004;
    report(period > 0 && period <= 100000000, "HPET's period");
    *(volatile u32 *)0xfed00010 |= 1;
    u64 one = *(volatile u64 *)0xfed000f0;
    wait_ticks(100000);
    report(*(volatile u64 *)0xfed000f0 > one, "HPET counts");
    *(volatile u32 *)0xfed00010 &= ~1;
    outb(0x92, inb(0x92) | 2);
    report((inb(0x92) & 2) == 2, "port 0x92 has A20");
}

static int checksum(const u8 *at, u32 count)
{
    u8 sum = 0;
    while (count--)
        sum += *at++;
    return sum == 0;
}

static u32 acpi_table(const char *name)
{
    for (u64 at = 0xe0000; at < 0x100000; at += 16) {
        if (!starts((char *)at, "RSD PTR ") || !checksum((u8 *)at, 20))
            continue;
        u64 rsdt = word(at + 16);
        report(rsdt != 0, "the RSDP has an RSDT");
        report(rsdt && starts((char *)rsdt, "RSDT") && checksum((u8 *)rsdt, word(rsdt + 4)), "RSDT");
        if (((u8 *)at)[15] >= 2) {
            u64 xsdt = *(u64 *)(at + 24);
            report(starts((char *)xsdt, "XSDT") && checksum((u8 *)xsdt, word(xsdt + 4)), "XSDT");
        }
        for (u64 entry = rsdt + 36; rsdt && entry < rsdt + word(rsdt + 4); entry += 4)
            if (starts((char *)(u64)word(entry), name))
                return word(entry);
        /* As test kernels do: the XSDT where there is no RSDT. */
        u64 xsdt = *(u64 *)(at + 24);
        for (u64 entry = xsdt + 36; entry < xsdt + word(xsdt + 4); entry += 8)
            if (starts((char *)*(u64 *)entry, name))
                return *(u64 *)entry;
    }
    return 0;
}

static void t_acpi(void)
{
    u64 fadt = acpi_table("FACP");
    report(fadt != 0, "FADT");
    if (!fadt)
        return;
    u64 facs = word(fadt + 36), port = word(fadt + 76);
    report(facs && starts((char *)facs, "FACS"), "FACS by the FADT's 32-bit address");
    report(port != 0, "the FADT has the PM timer's port");
    u64 before = rdtsc();
    u32 one = inl(port);
    u64 took = wait_ticks(10000000);
    u32 two = inl(port);
    u64 after = rdtsc();
    report(((two - one) & 0xffffff) > 100, "the PM timer counts");
    print("pm timer ticks in 10M cycles: ");
    print_number((two - one) & 0xffffff, 10);
    print("\n");
    /* 3.579545 MHz against the TSC's frequency by CPUID. */
    struct cpuid r = cpuid(0x15, 0);
    if (r.a && r.b && r.c) {
        u64 hz = (u64)r.c * r.b / r.a, ticks = (two - one) & 0xffffff;
        report(ticks > took * 3579545 / hz * 9 / 10 && ticks < (after - before) * 3579545 / hz * 11 / 10,
               "the PM timer's and the TSC's frequencies fit");
    }
}

static void t_reset(void)
{
    /* A mark that outlives the reset: RAM keeps what was in it. */
    volatile u32 *mark = (u32 *)(64ul << 20);
    if (*mark == 0x600dcafe) {
        report(1, "RAM kept its contents through both resets");
        return;
    }
    if (*mark == 0x600d0001) {
        *mark = 0x600dcafe;
        outb(0x92, 1);
    } else {
        *mark = 0x600d0001;
        outb(0xcf9, 2);
        outb(0xcf9, 6);
    }
    for (;;)
        asm volatile("hlt");
}

static void time_of(const char *what, u64 (*once)(void))
{
    u64 best = ~0ul;
    for (int round = 0; round < 5; round++) {
        u64 start = rdtsc();
        for (int i = 0; i < 200; i++)
            once();
        u64 took = (rdtsc() - start) / 200;
        best = took < best ? took : best;
    }
    print(what);
    print(" ");
    print_number(best, 10);
    print("\n");
    report(best > 0 && best < 100000000, what);
}

static volatile u32 ipis;
static void ipi_counted(struct frame *f) { (void)f; eoi(); asm volatile("lock incl %0" : "+m"(ipis)); }
static u64 once_cpuid(void) { return cpuid(0, 0).a; }
static u64 once_pm_timer(void) { return inl(0x608); }
static u64 once_cr8(void) { write_cr8(read_cr8()); return 0; }
static u64 once_self_ipi(void)
{
    u32 before = ipis;
    apic_icr(ICR_FIXED | ICR_SELF | 0x41, 0);
    while (ipis == before)
        pause();
    return 0;
}
static u64 once_ipi(void)
{
    u32 before = ipis;
    apic_icr(ICR_FIXED | 0x41, 1);
    while (ipis == before)
        pause();
    return 0;
}
static void nothing(void *unused) { (void)unused; }
static u64 once_call(void) { on_cpu(1, nothing, 0, 1); return 0; }
static u64 once_tsc_deadline(void)
{
    u32 before = ipis;
    wrmsr(0x6e0, rdtsc());
    while (ipis == before)
        pause();
    return 0;
}

static u64 once_ud(void) { return TRY("ud2", ); }
static u64 once_pf(void) { return try_read((void *)0x7000000000ul); }
static u64 once_int(void) { asm volatile("int $0x42"); return 0; }
static void plain(struct frame *f) { (void)f; }
static u64 in_ring3(u64 value) { return value; }
static u64 once_user(void) { return in_user(in_ring3, 1); }
static u64 once_cr3(void) { write_cr3(read_cr3()); return 0; }

static void t_times(void)
{
    handle(0x42, plain);
    time_of("ud", once_ud);
    time_of("page_fault", once_pf);
    time_of("int", once_int);
    time_of("user", once_user);
    time_of("cr3", once_cr3);
    handle(0x41, ipi_counted);
    sti();
    time_of("cpuid", once_cpuid);
    time_of("inl_pmtimer", once_pm_timer);
    time_of("cr8", once_cr8);
    time_of("self_ipi", once_self_ipi);
    apic_write(APIC_LVTT, 2 << 17 | 0x41);
    time_of("tsc_deadline_immed", once_tsc_deadline);
    if (cpus > 1) {
        time_of("ipi_halt", once_ipi);
        time_of("call", once_call);
    }
}

static void t_sieve(void)
{
    u32 size = 2000000, count = 0;
    u8 *composite = (u8 *)(64ul << 20);
    fill(composite, 0, size);
    for (u32 i = 2; i < size; i++) {
        if (composite[i])
            continue;
        count++;
        for (u64 k = (u64)i * i; k < size; k += i)
            composite[k] = 1;
    }
    check(count, 148933, "primes below two million");
}

const struct group boot_groups[] = {
    { "boot", t_boot }, { "exit", t_exit }, { "ports", t_ports }, { "acpi", t_acpi },
    { "reset", t_reset }, { "times", t_times }, { "sieve", t_sieve }, { 0, 0 },
};
