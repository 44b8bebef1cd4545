/*
 * Entry of the 64-bit images: multiboot header, way to long mode for the boot processor and for the others (from a start-up IPI at
 * address 0), exception stubs, way to user mode and back.
 */

.set MAX_CPUS, 8
.set STACK, 12288

.section .multiboot, "ax"
.balign 4
.long 0x1badb002, 0, -0x1badb002

.text
.code32
.globl start
start:
    mov %eax, mb_magic
    mov %ebx, mb_info
    mov $stacks + STACK, %esp
    call to_long_mode
    ljmpl $8, $boot64

/* Paging and long mode on; ESP's stack gives the GS base. */
to_long_mode:
    lea -STACK(%esp), %eax
    add $4, %eax
    xor %edx, %edx
    mov $0xc0000101, %ecx
    wrmsr
    lgdtl gdt_pointer
    mov $0, %eax
    mov %eax, %cr4
    mov $0x20, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    ret

ap32:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $STACK, %eax
    lock xadd %eax, next_stack
    lea stacks + STACK(%eax), %esp
    call to_long_mode
    ljmpl $8, $ap64

.code16
.globl trampoline, trampoline_end
trampoline:
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    lgdtl pointer32 - trampoline
    ljmpl $8, $ap32
pointer32:
    .word gdt32_end - gdt32 - 1
    .long gdt32
trampoline_end:

.code64
boot64:
    xor %eax, %eax
    mov %eax, %fs
    mov %rsp, %rbp
    call c_start
    jmp .
ap64:
    call c_ap_start
1:  sti
    hlt
    jmp 1b

/* One stub a vector: error code (or 0), number. */
.globl vectors
.balign 16
vectors:
.set number, 0
.rept 256
    .balign 16
    .if (number == 8) || (number >= 10 && number <= 14) || (number == 17) || (number == 21)
    .else
    pushq $0
    .endif
    pushq $number
    jmp common
    .set number, number + 1
.endr
common:
    push %rax; push %rbx; push %rcx; push %rdx; push %rsi; push %rdi; push %rbp
    push %r8; push %r9; push %r10; push %r11; push %r12; push %r13; push %r14; push %r15
    mov %rsp, %rdi
    cld
    mov %rsp, %rbp
    and $-16, %rsp
    call c_interrupt
    mov %rbp, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8
    pop %rbp; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rbx; pop %rax
    add $16, %rsp
    iretq

/* u64 in_user(u64 (*f)(u64), u64 argument): runs f at CPL 3. Comes back by interrupt 0x80 or by a fault. */
.globl in_user, back_from_user, user_stack_top
in_user:
    push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
    pushfq
    mov %rsp, kernel_rsp
    mov %rdi, %rax
    mov %rsi, %rdi
    mov $user_stack_top, %rcx
    pushfq
    pop %rdx
    pushq $0x23
    push %rcx
    push %rdx
    pushq $0x1b
    push $user_entry
    mov $0x23, %edx
    mov %edx, %ds
    mov %edx, %es
    iretq
user_entry:
    call *%rax
    int $0x80
/* c_interrupt leads here with the result in RAX. */
back_from_user:
    mov $0x10, %edx
    mov %edx, %ds
    mov %edx, %es
    mov kernel_rsp, %rsp
    popfq
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
    ret

.globl syscall_entry
syscall_entry:
    mov %r11, %rdx
    pushfq
    pop %rax
    mov kernel_rsp, %rsp
    mov $0x10, %esi
    mov %esi, %ds
    mov %esi, %es
    mov %rax, syscall_flags
    mov %rdx, syscall_r11
    mov %rcx, syscall_rcx
    popfq
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
    ret

.data
.globl mb_magic, mb_info, kernel_rsp, syscall_flags, syscall_r11, syscall_rcx, pml4, gdt
mb_magic: .long 0
mb_info: .long 0
next_stack: .long STACK
.balign 8
kernel_rsp: .quad 0
syscall_flags: .quad 0
syscall_r11: .quad 0
syscall_rcx: .quad 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00affb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
.globl gdt_tss
gdt_tss:
    .fill MAX_CPUS * 2, 8, 0
gdt_end:
gdt32:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
gdt32_end:

/* The first 4 GiB, to themselves, by 2 MiB pages, for everybody; global, accessed, dirty. */
.balign 4096
pml4: .quad pdpt + 7
    .fill 511, 8, 0
.globl pdpt, directories
pdpt:
    .quad directories + 7, directories + 0x1007, directories + 0x2007, directories + 0x3007
    .fill 508, 8, 0
directories:
.set page, 0
.rept 2048
    .quad (page << 21) | 0x1e7
    .set page, page + 1
.endr

.bss
.balign 4096
.globl stacks
stacks: .skip STACK * MAX_CPUS
.skip 8192
user_stack_top:
    .skip 64
/* As large as the stacks of 1024 CPUs. */
    .skip 12 * 1024 * 1024
