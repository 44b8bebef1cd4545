/*
 * A real-mode image of the shape that test kernels for real mode have: linked at 0x8000, over where the loader's own structures
 * may be; entered in protected mode like all multiboot images, it goes back to real mode and never looks at the information.
 */
.code32
.section .text
.globl start
start:
    lgdtl pointer
    ljmpl $8, $1f
.code16
1:  mov $0x10, %eax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmpw $0, $real
real:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $stack_top, %sp
    lidtl idt_pointer

    /* A timer interrupt through the BIOS's handler ends HLT. */
    mov 0x46c, %ebx
    sti
    hlt
    cli
    cmp 0x46c, %ebx
    mov $'t', %al
    je fail

    /* IRQ 11 by the test device, unmasked by us, vector 0x73. */
    movw $on_irq11, 4 * 0x73
    movw $0, 4 * 0x73 + 2
    in $0x21, %al
    or $1, %al
    out %al, $0x21
    mov $0xf7, %al
    out %al, $0xa1
    mov $0x200b, %dx
    mov $1, %eax
    out %eax, %dx
    sti
    hlt
    cli
    cmpb $1, hits
    mov $'i', %al
    jne fail
    xor %eax, %eax
    out %eax, %dx

    /* INT, INTO, BOUND, DIV, INT3 through the vector table; a popped TF. */
    movw $on_int, 4 * 0x20
    movw $0, 4 * 0x20 + 2
    movw $on_int, 4 * 4
    movw $0, 4 * 4 + 2
    movw $on_int, 4 * 3
    movw $0, 4 * 3 + 2
    movb $0, hits
    int $0x20
    int3
    mov $0x7f, %al
    add $1, %al
    into
    cmpb $3, hits
    mov $'n', %al
    jne fail
    movw $on_divide, 4 * 0
    movw $0, 4 * 0 + 2
    xor %cl, %cl
    mov $5, %ax
    div %cl
    cmpw $0x1234, %ax
    mov $'d', %al
    jne fail

    /* Big real mode: limits loaded in protected mode stay. */
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    jmp 2f
2:  mov $0x18, %bx
    mov %bx, %fs
    and $~1, %eax
    mov %eax, %cr0
    ljmpw $0, $3f
3:  mov $0x200000, %ebx
    movl $0x600df00d, %fs:(%ebx)
    cmpl $0x600df00d, %fs:(%ebx)
    mov $'b', %al
    jne fail

    /* Strings, shifts, stack, far calls, 32-bit operands. */
    mov $source, %si
    mov $target, %di
    mov $6, %cx
    cld
    rep movsb
    cmpl $0x44434241, target
    mov $'s', %al
    jne fail
    lcallw $0, $far
    cmp $0x77, %bl
    mov $'f', %al
    jne fail
    pushl $0x11223344
    pop %ax
    pop %dx
    cmp $0x3344, %ax
    jne fail
    cmp $0x1122, %dx
    jne fail
    mov $0xff, %al
    mov $0x98, %bl
    mov $0x99, %al
    add $0x01, %al
    daa
    mov $'a', %ah
    xchg %al, %ah
    jc 4f
    jmp fail
4:  cmp $0, %ah
    jne fail
    mov $'e', %al
    mov $enter_frame, %bp
    mov %sp, %cx
    enter $16, $0
    leave
    cmp %sp, %cx
    jne fail
    movb $0xaa, 0xe000
    mov $0xe0, %dx
    mov $0x55aa55aa, %eax
    out %eax, %dx
    xor %eax, %eax
    in %dx, %eax
    cmp $0x55aa55aa, %eax
    mov $'l', %al
    jne fail

    mov $'P', %al
    call put
    mov $0xf4, %dx
    mov $0, %al
    out %al, %dx
5:  hlt
    jmp 5b

fail:
    call put
    mov $0xf4, %dx
    mov $1, %al
    out %al, %dx
    jmp 5b

put:
    mov $0x3f8, %dx
    out %al, %dx
    mov $0x3fd, %dx
6:  in %dx, %al
    test $0x20, %al
    jz 6b
    ret

on_irq11:
    incb hits
    push %ax
    mov $0x20, %al
    out %al, $0xa0
    out %al, $0x20
    pop %ax
    iret
on_int:
    incb hits
    iret
on_divide:
    push %bp
    mov %sp, %bp
    addw $2, 2(%bp)
    pop %bp
    mov $0x1234, %ax
    iret
far:
    mov $0x77, %bl
    lretw

/* At 0x1000 of the file, as real images have it. */
.balign 4
.globl header
header:
.long 0x1badb002, 0, -0x1badb002

.data
.balign 8
table:
    .quad 0
    .quad 0x00009b000000ffff
    .quad 0x000093000000ffff
    .quad 0x00cf93000000ffff
pointer:
    .word pointer - table - 1
    .long table
idt_pointer:
    .word 0x3ff
    .long 0
source: .ascii "ABCDEF"
target: .skip 8
hits: .byte 0
enter_frame: .word 0
.bss
.balign 16
.skip 8192
stack_top:
