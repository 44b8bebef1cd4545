/*
 * A 32-bit image for hardware task switches: far calls and jumps to a TSS, task gates for an interrupt, a fault with an error code
 * and a page fault, nested tasks and their return, busy bits, CR3 of a task. Prints one letter and exits with 1 where it fails.
 */
.set MAIN, 0x18
.set OTHER, 0x20
.set FAULT, 0x28
.set GATE, 0x30

.macro require condition, letter
    mov $\letter, %al
    j\condition 9f
    jmp fail
9:
.endm

/* A TSS: its name, where the task starts, its stack. */
.macro task name, entry, stack
    .balign 128
\name:
    .long 0, \stack, 0x10, 0, 0, 0, 0
    .long directory, \entry, 2
    .long 0, 0, 0, 0, \stack, 0, 0, 0
    .long 0x10, 0x08, 0x10, 0x10, 0x10, 0x10, 0
    .word 0, 104
.endm

.section .multiboot, "ax"
.balign 4
.long 0x1badb002, 0, -0x1badb002
.text
.globl start
start:
    mov $main_stack, %esp
    /* Identity map by 4 MiB pages. */
    mov $directory, %edi
    mov $0x87, %eax
    mov $1024, %ecx
1:  stosl
    add $0x400000, %eax
    loop 1b
    /* Nothing at 0x80000000. */
    movl $0, directory + 0x200 * 4
    mov %cr4, %eax
    or $0x10, %eax
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    jmp 1f
1:
    /* Bases of the TSSs. */
    mov $tss_main, %eax
    mov $gdt + MAIN, %edi
    call describe
    mov $tss_other, %eax
    mov $gdt + OTHER, %edi
    call describe
    mov $tss_fault, %eax
    mov $gdt + FAULT, %edi
    call describe
    lgdt gdt_pointer
    ljmp $8, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov $on_debug, %eax
    mov %ax, idt + 8
    shr $16, %eax
    mov %ax, idt + 14
    lidt idt_pointer
    mov $MAIN, %eax
    ltr %ax

    /* A call: back link, NT, return by IRET; registers are the task's own. */
    movl $other_called, tss_other + 32
    mov $0x1111, %ebx
    lcall $OTHER, $0
    cmpl $1, count
    require e, 'c'
    cmp $0x1111, %ebx
    require e, 'r'
    str %eax
    cmp $MAIN, %ax
    require e, 't'
    pushf
    pop %eax
    test $0x4000, %eax
    require z, 'n'
    /* After the return the other is no longer busy, this one is. */
    testb $2, gdt + OTHER + 5
    require z, 'b'
    testb $2, gdt + MAIN + 5
    require nz, 'B'
    mov %cr0, %eax
    test $8, %eax
    require nz, 'T'
    clts

    /* The task goes on where it left off: the instruction after its IRET. */
    lcall $OTHER, $0
    cmpl $2, count
    require e, 'g'

    /* A jump: no back link, the old one isn't busy; it jumps back. */
    movl $other_jumped, tss_other + 32
    movl $2, tss_other + 36
    ljmp $OTHER, $0
    cmpl $3, count
    require e, 'j'

    /* An interrupt through a task gate. */
    movl $other_called, tss_other + 32
    movl $2, tss_other + 36
    int $0x30
    cmpl $4, count
    require e, 'i'

    /* By a task gate in the GDT. */
    movl $other_called, tss_other + 32
    lcall $GATE, $0
    cmpl $5, count
    require e, 'G'

    /* A fault with an error code: it is on the new task's stack. */
    movl $on_fault, tss_fault + 32
    movl $0x1234, %ecx
    mov $0x100, %edx
    mov $after_gp, %edi
    mov %edx, %ds
after_gp:
    mov $0x10, %edx
    mov %edx, %ds
    cmpl $0x100, got_code
    require e, 'e'
    cmp $0x1234, %ecx
    require e, 'x'

    /* A page fault the same way: CR2, error code. */
    movl $on_page_fault, tss_fault + 32
    mov $after_pf, %edi
    movl $1, 0x80000010
after_pf:
    cmpl $2, got_code
    require e, 'p'
    cmpl $0x80000010, got_cr2
    require e, '2'

    /* A call of a busy task is #GP with its selector. */
    movl $on_fault, tss_fault + 32
    mov $after_busy, %edi
    lcall $MAIN, $0
after_busy:
    cmpl $MAIN, got_code
    require e, 'y'

    /* A TSS that is too short is #TS with its selector. */
    movw $102, gdt + OTHER
    mov $after_short, %edi
    lcall $OTHER, $0
after_short:
    cmpl $OTHER, got_code
    require e, 's'
    movw $103, gdt + OTHER

    /* IRET with NT clear is plain; the trap bit in a TSS is #DB in the task. */
    movl $other_called, tss_other + 32
    movw $1, tss_other + 100
    movl $0, got_debug
    lcall $OTHER, $0
    cmpl $1, got_debug
    require e, 'd'
    movw $0, tss_other + 100

    mov $'P', %al
    mov $0x3f8, %edx
    out %al, %dx
    mov $0, %eax
    mov $0xf4, %edx
    out %eax, %dx
    hlt
fail:
    mov $0x3f8, %edx
    out %al, %dx
    mov $1, %eax
    mov $0xf4, %edx
    out %eax, %dx
    hlt

describe:
    mov %ax, 2(%edi)
    shr $16, %eax
    mov %al, 4(%edi)
    mov %ah, 7(%edi)
    ret

other_called:
    incl count
    mov $0x2222, %ebx
    cmpl $MAIN, tss_other
    require e, 'l'
    pushf
    pop %eax
    test $0x4000, %eax
    require nz, 'N'
    iret
    jmp other_called
other_jumped:
    incl count
    testb $2, gdt + MAIN + 5
    require z, 'm'
    pushf
    pop %eax
    test $0x4000, %eax
    require z, 'o'
    ljmp $MAIN, $0

/* The faulting task goes on at the address in its EDI. */
on_fault:
    pop got_code
    mov tss_main + 68, %eax
    mov %eax, tss_main + 32
    iret
    jmp on_fault
on_page_fault:
    pop got_code
    mov %cr2, %eax
    mov %eax, got_cr2
    mov tss_main + 68, %eax
    mov %eax, tss_main + 32
    iret
    jmp on_page_fault
on_debug:
    push %eax
    incl got_debug
    mov %dr6, %eax
    test $0x8000, %eax
    require nz, 'D'
    mov $0xffff0ff0, %eax
    mov %eax, %dr6
    pop %eax
    iret

.data
.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x0000890000000067
    .quad 0x0000890000000067
    .quad 0x0000890000000067
    .quad 0x0000850000000000 | OTHER << 16
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
.balign 8
idt:
    .long 0, 0
    .word 0, 8, 0x8e00, 0
    .fill 8, 8, 0
    .quad 0x0000850000000000 | FAULT << 16
    .quad 0
    .quad 0
    .quad 0x0000850000000000 | FAULT << 16
    .quad 0x0000850000000000 | FAULT << 16
    .fill 33, 8, 0
    .quad 0x0000850000000000 | OTHER << 16
idt_pointer:
    .word idt_pointer - idt - 1
    .long idt
    task tss_main, 0, main_stack
    task tss_other, other_called, other_stack
    task tss_fault, on_fault, fault_stack
count: .long 0
got_code: .long 0
got_cr2: .long 0
got_debug: .long 0
.bss
.balign 4096
directory: .skip 4096
.skip 4096
main_stack:
.skip 4096
other_stack:
.skip 4096
fault_stack:
