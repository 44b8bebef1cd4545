# Real and virtual-8086 mode.

#: case    a real-mode far jump makes CS's base 16 times the selector
#: manual  SDM 3B 20.1.1
#: mode    real
#: expect  cs = 0x700, cs.base = 0x7000, rip = 6
#: ends    halt at 6
        .byte   0xea
        .word   5, 0x700
        hlt

#: case    a real-mode access across the end of the segment
#: manual  SDM 3B 20.1.1, 20.1.4
#: mode    real
#: ends    #GP at fault
        mov     bx, 0xfffe
        mov     ax, [bx]
fault:  mov     eax, [bx]

#: case    a real-mode access across the end of the stack segment
#: manual  SDM 3B 20.1.4
#: mode    real
#: ends    #SS at fault
        mov     bp, 0xffff
fault:  mov     ax, [bp]

#: case    a word pushed at SP 1 raises #SS and then, without a stack, shuts down
#: manual  SDM 2B PUSH; 3A 6.15 interrupt 8
#: mode    real
#: ends    shutdown
        mov     sp, 1
        push    ax

#: case    a push at SP 0 wraps to the end of the segment
#: manual  SDM 2B PUSH
#: mode    real
#: expect  sp = 0xfffe, word(0xfffe) = 0x1234
        mov     ax, 0x1234
        mov     sp, 0
        push    ax
        hlt

#: case    an address with a 16-bit base and index wraps
#: manual  SDM 1 3.7.5
#: mode    real
#: word    0x6000 = 0x7788
#: expect  ax = 0x7788
        mov     bx, 0xf000
        mov     si, 0x7000
        mov     ax, [bx + si]
        hlt

#: case    a 32-bit address above 64 KiB
#: manual  SDM 3B 20.1.1
#: mode    real
#: ends    #GP at fault
        mov     ebx, 0x10000
fault:  mov     ax, [ebx]

#: case    operand-size and address-size prefixes in 16-bit code
#: manual  SDM 1 3.6
#: mode    real
#: dword   SCRATCH = 0x89abcdef
#: expect  eax = 0x89abcdef, ebx = SCRATCH
        mov     ebx, SCRATCH
        mov     eax, [ebx]
        hlt

#: case    INT pushes FLAGS, CS and IP and clears IF and TF
#: manual  SDM 3B 20.1.4
#: mode    real
#: ends    interrupt 0x21 at back
#: expect  frame.flags = 0x203, frame.cs = 0, sp = STACK - 6, if = 0
        sti
        stc
        int     0x21
back:   hlt

#: case    IRET comes back with the flags
#: manual  SDM 2A IRET
#: mode    real
#: dword   0x21 * 4 = handler
#: expect  sp = STACK, cf = 1, if = 0, bx = 7
        stc
        int     0x21
        hlt
handler: mov    bx, 7
        clc
        iret

#: case    IRETD in real mode keeps VM, VIF and VIP
#: manual  SDM 2A IRET
#: mode    real
#: expect  vm = 0, cf = 1, ac = 1
        push    dword ptr 0x1a0000 | AC | 3
        push    dword ptr 0
        push    dword ptr offset done
        iretd
done:   hlt

#: case    a vector beyond the IDT's limit raises #GP, which is then a double fault, which is then a shutdown
#: manual  SDM 3B 20.1.4; 3A 6.15 interrupt 8
#: mode    real
#: set     idtr.limit = 0x1f
#: ends    shutdown
        int     0x21

#: case    a vector beyond the IDT's limit is a #GP where that one has a handler
#: manual  SDM 3B 20.1.4
#: mode    real
#: set     idtr.limit = 0x7f
#: ends    #GP at fault
fault:  int     0x21

#: case    DIV by zero gives the address of the DIV
#: manual  SDM 3A 6.15 interrupt 0
#: mode    real
#: ends    #DE at fault
        xor     cx, cx
fault:  div     cx

#: case    BOUND faults with its own address
#: manual  SDM 2A BOUND
#: mode    real
#: word    SCRATCH = 1, 5
#: ends    #BR at fault
        mov     ax, 5
        bound   ax, [SCRATCH]
        mov     ax, 6
fault:  bound   ax, [SCRATCH]

#: case    INTO traps with the address behind it
#: manual  SDM 2A INTO; 3A 6.15 interrupt 4
#: mode    real
#: ends    interrupt 4 at back
        into
        mov     al, 0x7f
        add     al, 1
        into
back:   hlt

#: case    instructions for protected mode are undefined
#: manual  SDM 2B VERR, 3A 9.9
#: mode    real
#: ends    #UD at fault
fault:  .byte   0x0f, 0x00, 0xe0        # verr ax

#: case    LLDT is undefined in real mode
#: manual  SDM 2A LLDT
#: mode    real
#: ends    #UD at fault
fault:  .byte   0x0f, 0x00, 0xd0        # lldt ax

#: case    LAR is undefined in real mode
#: manual  SDM 2A LAR
#: mode    real
#: ends    #UD at fault
fault:  .byte   0x0f, 0x02, 0xc0        # lar ax, ax

#: case    LOADALL's opcodes and other holes are undefined
#: manual  SDM 2D A.3
#: mode    real
#: ends    #UD at fault
fault:  .byte   0x0f, 0x04

#: case    LGDT with a 16-bit operand takes 24 bits of base
#: manual  SDM 2A LGDT
#: mode    real
#: word    SCRATCH = 0x1234, 0x5678, 0xff9a
#: expect  gdtr.limit = 0x1234, gdtr.base = 0x9a5678
        lgdt    [SCRATCH]
        hlt

#: case    unreal mode: a limit loaded in protected mode holds in real mode
#: manual  SDM 3A 9.9.2
#: mode    real
#: dword   0x100000 = 0x31415926
#: expect  eax = 0x31415926, ds = 0x10, ds.base = 0
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        mov     bx, DATA32
        mov     ds, bx
        and     al, 0xfe
        mov     cr0, eax
        mov     ebx, 0x100000
        mov     eax, [ebx]
        hlt

#: case    unreal mode: a segment load in real mode changes the base and keeps the limit
#: manual  SDM 3B 20.1.1; 3A 9.9.2
#: mode    real
#: set     ds.limit = 0xffffffff
#: expect  ds.base = 0x6000, ds.limit = 0xffffffff, ds = 0x600
        mov     ax, 0x600
        mov     ds, ax
        hlt

#: case    HLT is allowed in real mode and wakes by an interrupt
#: manual  SDM 2A HLT
#: mode    real
#: on-halt interrupt 0x40
#: ends    interrupt 0x40 at back
        sti
        hlt
back:   hlt

#: case    an undefined ModRM form of LEA
#: manual  SDM 2A LEA
#: mode    real
#: ends    #UD at fault
fault:  .byte   0x8d, 0xc0

#: case    an instruction of more than 15 bytes
#: manual  SDM 2A 2.3.11
#: mode    real
#: ends    #GP at fault
fault:  .rept   15
        .byte   0x66
        .endr
        nop

#: case    code at the end of a 64 KiB segment doesn't wrap
#: manual  SDM 3A 5.3
#: mode    real
#: byte    0xffff = 0x90
#: ends    #GP
        mov     ax, 0xffff
        jmp     ax

#: case    v86: INT with IOPL 3 goes through the IDT to ring 0
#: manual  SDM 3B 20.3.1
#: mode    v86
#: set     rflags |= IOPL
#: ends    interrupt 0x21 at back
#: expect  frame.flags & (VM | IOPL) = VM | IOPL, frame.cs = 0, frame.sp = STACK
#: expect  dword(STACK0 - 4) = 0, esp = STACK0 - 36, vm = 0, cpl = 0, ds = 0, cs = CODE32
#: gate    0x21 = int32 CODE32:STUBS+0x210 dpl=3
        int     0x21
back:   hlt

#: case    v86: INT with IOPL below 3 is a #GP
#: manual  SDM 3B 20.3.2
#: mode    v86
#: ends    #GP(0) at fault
#: gate    0x21 = int32 CODE32:STUBS+0x210 dpl=3
fault:  int     0x21

#: case    v86: INT3 ignores IOPL
#: manual  SDM 3B 20.3.3
#: mode    v86
#: ends    interrupt 3 at back
        int3
back:   hlt

#: case    v86: with CR4.VME a clear redirection bit sends INT to the program's own vector
#: manual  SDM 3B 20.3.3.4
#: mode    v86
#: set     cr4 |= VME, rflags |= IOPL
#: byte    TSS + 0x68 + 4 = 0xfd
#: dword   0x21 * 4 = 0x06000008
#: byte    0x6008 = 0xf4
#: ends    #GP(0) at 8
#: expect  frame.cs = 0x600, frame.sp = STACK - 6, word(STACK - 6) = back, word(STACK - 2) & IOPL = IOPL
        int     0x21
back:   hlt

#: case    v86: redirected with IOPL below 3 the pushed IF is VIF, and VIF is cleared
#: manual  SDM 3B 20.3.3.4
#: mode    v86
#: set     cr4 |= VME, rflags |= VIF
#: byte    TSS + 0x68 + 4 = 0xfd
#: dword   0x21 * 4 = 0x06000008
#: byte    0x6008 = 0xf4
#: ends    #GP(0) at 8
#: expect  word(STACK - 2) & (IOPL | IF) = IOPL | IF, frame.flags & (VIF | IF) = 0
        int     0x21

#: case    v86: CLI and STI with VME and IOPL 0 change VIF
#: manual  SDM 3B 20.3.3
#: mode    v86
#: set     cr4 |= VME, rflags |= IF
#: ends    #GP(0)
#: expect  frame.flags & (VIF | IF) = VIF | IF
        sti
        hlt

#: case    v86: STI with VIP set is a #GP
#: manual  SDM 2B STI; 3B 20.3.3
#: mode    v86
#: set     cr4 |= VME, rflags |= VIP
#: ends    #GP(0) at fault
fault:  sti

#: case    v86: PUSHF with VME and IOPL 0 shows VIF as IF and IOPL 3
#: manual  SDM 2B PUSHF
#: mode    v86
#: set     cr4 |= VME, rflags |= VIF
#: ends    #GP(0)
#: expect  word(STACK - 2) & (IF | IOPL) = IF | IOPL
        pushf
        hlt

#: case    v86: PUSHF without VME and with IOPL below 3
#: manual  SDM 2B PUSHF
#: mode    v86
#: ends    #GP(0) at fault
fault:  pushf

#: case    v86: PUSHFD with VME and IOPL below 3
#: manual  SDM 2B PUSHF
#: mode    v86
#: set     cr4 |= VME
#: ends    #GP(0) at fault
fault:  pushfd

#: case    v86: CLI with IOPL below 3
#: manual  SDM 2A CLI
#: mode    v86
#: ends    #GP(0) at fault
fault:  cli

#: case    v86: IRET with IOPL below 3
#: manual  SDM 2A IRET
#: mode    v86
#: ends    #GP(0) at fault
fault:  iret

#: case    v86: I/O goes by the permission bitmap whatever IOPL
#: manual  SDM 1 18.5.2; 3B 20.2.8
#: mode    v86
#: set     rflags |= IOPL
#: byte    TSS + 0x88 + 0x10 = 0xfe
#: port    0x80 = 0x42
#: ends    #GP(0) at fault
#: expect  al = 0x42, ins(0x80) = 1, ins(0x81) = 0
        in      al, 0x80
fault:  in      al, 0x81

#: case    v86: privileged instructions
#: manual  SDM 3B 20.2.3
#: mode    v86
#: ends    #GP(0) at fault
fault:  mov     eax, cr0

#: case    v86: a segment ends at 64 KiB
#: manual  SDM 3B 20.2.1
#: mode    v86
#: ends    #GP(0) at fault
        mov     bx, 0xffff
fault:  mov     ax, [bx]

#: case    v86: a handler in conforming code is refused
#: manual  SDM 3A 6.12.1; 2A INT n
#: mode    v86
#: set     rflags |= IOPL
#: gdt     SELECTORS = code32 conforming
#: gate    0x21 = int32 SELECTORS:0 dpl=3
#: ends    #GP(SELECTORS) at fault
fault:  int     0x21

#: case    v86: IRET from ring 0 comes back with all segments
#: manual  SDM 2A IRET; 3B 20.2.5
#: mode    v86
#: set     rflags |= IOPL
#: gate    0x80 = int32 CODE32:handler dpl=3
#: ends    #GP(0) at done
#: expect  dword(STACK0 - 12) = 0x600, frame.cs = 0, dword(STACK0 - 8) = 0
        mov     ax, 0x600
        mov     ds, ax
        int     0x80
done:   hlt
        .code32
handler: iretd

#: case    v86: AC outlives an INT that the redirection bitmap sends to the program
#: manual  SDM 3B 20.3.3.4
#: mode    v86
#: set     cr4 |= VME, rflags |= IOPL | AC
#: byte    TSS + 0x68 + 4 = 0xfd
#: dword   0x21 * 4 = 0x06000008
#: byte    0x6008 = 0xf4
#: ends    #GP(0) at 8
#: expect  frame.flags & (AC | IOPL) = AC | IOPL
        int     0x21
