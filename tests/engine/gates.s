# Far transfers, call gates, interrupt gates and IRET: privilege, stacks, frames.

#: case    a far jump to a code segment of another width
#: manual  SDM 2A JMP; 3A 5.8.1
#: mode    flat32
#: expect  cs = CODE16, bx = 5
        .byte   0xea
        .long   target
        .word   CODE16
        .code16
target: mov     bx, 5
        hlt

#: case    a far jump to a data segment
#: manual  SDM 3A 5.8.1
#: mode    flat32
#: ends    #GP(DATA32) at fault
fault:  .byte   0xea
        .long   fault
        .word   DATA32

#: case    a far jump to the null selector
#: manual  SDM 2A JMP
#: mode    flat32
#: ends    #GP(0) at fault
fault:  .byte   0xea
        .long   fault
        .word   3

#: case    a far jump to an absent code segment
#: manual  SDM 2A JMP
#: mode    flat32
#: gdt     SELECTORS = code32 absent
#: ends    #NP(SELECTORS) at fault
fault:  .byte   0xea
        .long   fault
        .word   SELECTORS

#: case    a far jump beyond the new segment's limit faults at the jump
#: manual  SDM 2A JMP
#: mode    flat32
#: gdt     SELECTORS = code32 limit=0x7fff
#: ends    #GP(0) at fault
#: expect  frame.cs = CODE32
fault:  .byte   0xea
        .long   0x8000
        .word   SELECTORS

#: case    ring 3 can't jump to non-conforming ring 0 code
#: manual  SDM 3A 5.8.1.1
#: mode    flat32 user
#: ends    #GP(CODE32) at fault
fault:  .byte   0xea
        .long   fault
        .word   CODE32 + 3

#: case    conforming code runs with its caller's privilege
#: manual  SDM 3A 5.8.1.2
#: mode    flat32 user
#: gdt     SELECTORS = code32 conforming
#: ends    #GP(0) at target
#: expect  frame.cs = SELECTORS + 3
        .byte   0xea
        .long   target
        .word   SELECTORS
target: hlt

#: case    conforming code of a lower privilege can't be reached
#: manual  SDM 3A 5.8.1.2
#: mode    flat32
#: gdt     SELECTORS = code32 conforming dpl=3
#: ends    #GP(SELECTORS) at fault
fault:  .byte   0xea
        .long   fault
        .word   SELECTORS

#: case    a far jump to a segment with both L and D set in long mode
#: manual  SDM 3A 5.2.1
#: mode    long
#: gdt     SELECTORS = raw 0x00ef9b000000ffff
#: ends    #GP(SELECTORS) at fault
#: word    SCRATCH + 4 = SELECTORS
fault:  jmp     fword ptr [SCRATCH]

#: case    a direct far jump is undefined in 64-bit mode
#: manual  SDM 2A JMP
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xea, 0, 0, 0, 0, 0, 0

#: case    a call gate to ring 0 switches stacks and copies parameters
#: manual  SDM 3A 5.8.5
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 CODE32:inner dpl=3 count=2
#: expect  esp = STACK0 - 24, cs = CODE32, ss = DATA32, cpl = 0
#: expect  dword(STACK0 - 24) = back, dword(STACK0 - 20) = USER32
#: expect  dword(STACK0 - 16) = 0x22, dword(STACK0 - 12) = 0x11
#: expect  dword(STACK0 - 8) = STACK - 8, dword(STACK0 - 4) = UDATA
        push    0x11
        push    0x22
        .byte   0x9a
        .long   0
        .word   SELECTORS + 3
back:   hlt
inner:  hlt

#: case    a 16-bit call gate pushes words
#: manual  SDM 3A 5.8.5
#: mode    flat32 user
#: gdt     SELECTORS = callgate16 CODE32:inner dpl=3 count=1
#: expect  esp = STACK0 - 10, cs = CODE32
#: expect  word(STACK0 - 10) = back, word(STACK0 - 8) = USER32
#: expect  word(STACK0 - 6) = 0x11, word(STACK0 - 4) = STACK - 2, word(STACK0 - 2) = UDATA
        pushw   0x11
        .byte   0x9a
        .long   0
        .word   SELECTORS + 3
back:   hlt
inner:  hlt

#: case    a call gate to ring 1 takes that ring's stack
#: manual  SDM 3A 5.8.5
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 RING1:inner dpl=3
#: ends    #GP(0) at inner
#: expect  frame.cs = RING1, frame.sp = STACK1 - 16, frame.ss = DATA1
        .byte   0x9a
        .long   0
        .word   SELECTORS
inner:  hlt

#: case    a call gate whose DPL is below CPL
#: manual  SDM 3A 5.8.4
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 CODE32:fault
#: ends    #GP(SELECTORS) at fault
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS + 3

#: case    an absent call gate
#: manual  SDM 2A CALL
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 CODE32:fault dpl=3 absent
#: ends    #NP(SELECTORS) at fault
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS + 3

#: case    a jump through a call gate can't raise privilege
#: manual  SDM 3A 5.8.4
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 CODE32:fault dpl=3
#: ends    #GP(CODE32) at fault
fault:  .byte   0xea
        .long   0
        .word   SELECTORS + 3

#: case    a call gate with a null stack segment in the TSS
#: manual  SDM 2A CALL
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 RING1:fault dpl=3
#: word    TSS + 16 = 0
#: ends    #TS(0) at fault
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS + 3

#: case    a call gate whose inner stack segment is absent
#: manual  SDM 2A CALL
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 RING1:fault dpl=3
#: gdt     SELECTORS + 8 = data32 dpl=1 absent
#: word    TSS + 16 = SELECTORS + 8 + 1
#: ends    #SS(SELECTORS + 8) at fault
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS + 3

#: case    a call gate whose inner stack has no room
#: manual  SDM 2A CALL
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 RING1:fault dpl=3
#: gdt     SELECTORS + 8 = data32 dpl=1 limit=0xff
#: word    TSS + 16 = SELECTORS + 8 + 1
#: ends    #SS(SELECTORS + 8) at fault
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS + 3

#: case    a 64-bit call gate from ring 3 pushes 8 bytes each and a null SS
#: manual  SDM 3A 5.8.5.1
#: mode    long user
#: gdt     SELECTORS = callgate64 CODE64:inner dpl=3
#: word    SCRATCH + 4 = SELECTORS + 3
#: expect  rsp = STACK0 - 32, ss = 0, cpl = 0
#: expect  qword(STACK0 - 32) = back, qword(STACK0 - 24) = USER64
#: expect  qword(STACK0 - 16) = STACK, qword(STACK0 - 8) = UDATA
        call    fword ptr [SCRATCH]
back:   hlt
inner:  hlt

#: case    a 64-bit call gate must lead to 64-bit code
#: manual  SDM 3A 5.8.3.1
#: mode    long user
#: gdt     SELECTORS = callgate64 CODE32:0 dpl=3
#: word    SCRATCH + 4 = SELECTORS + 3
#: ends    #GP(CODE32) at fault
fault:  call    fword ptr [SCRATCH]

#: case    a 64-bit call gate's second half must have type 0
#: manual  SDM 3A 5.8.3.1
#: mode    long user
#: gdt     SELECTORS = callgate64 CODE64:0 dpl=3
#: dword   GDT + SELECTORS + 12 = 0x1f00
#: word    SCRATCH + 4 = SELECTORS + 3
#: ends    #GP(SELECTORS) at fault
fault:  call    fword ptr [SCRATCH]

#: case    a far return to an outer ring takes SS:ESP from the stack and frees parameters on both
#: manual  SDM 2B RET
#: mode    flat32
#: ends    #GP(0) at outer
#: expect  frame.cs = USER32, frame.ss = UDATA, frame.sp = 0xc808
        push    UDATA
        push    0xc800
        push    0
        push    0
        push    USER32
        push    offset outer
        retf    8
outer:  hlt

#: case    a far return to an outer ring nulls segments that it may not keep
#: manual  SDM 2B RET
#: mode    flat32
#: gdt     SELECTORS = code32 conforming
#: ends    #GP(0) at outer
#: expect  ds = 0, es = UDATA, fs = SELECTORS, gs = 0
        mov     ax, UDATA
        mov     es, ax
        mov     ax, SELECTORS
        mov     fs, ax
        push    UDATA
        push    0xc800
        push    USER32
        push    offset outer
        retf
outer:  hlt

#: case    a far return to an inner ring
#: manual  SDM 2B RET
#: mode    flat32 user
#: ends    #GP(CODE32) at fault
        push    CODE32
        push    offset fault
fault:  retf

#: case    a far return whose stack segment has another RPL
#: manual  SDM 2B RET
#: mode    flat32
#: ends    #GP(DATA32) at fault
        push    DATA32
        push    0xc800
        push    USER32
        push    offset fault
fault:  retf

#: case    INT n through a gate of ring 0 from ring 3 gives the vector and the IDT bit
#: manual  SDM 3A 6.12.1.1, 6.13
#: mode    flat32 user
#: ends    #GP(0x21 * 8 + 2) at fault
fault:  int     0x21

#: case    INT n through an absent gate
#: manual  SDM 3A 6.13
#: mode    flat32
#: gate    0x21 = int32 CODE32:0 absent
#: ends    #NP(0x21 * 8 + 2) at fault
fault:  int     0x21

#: case    INT n beyond the IDT's limit
#: manual  SDM 3A 6.13
#: mode    flat32
#: set     idtr.limit = 0x107
#: ends    #GP(0x21 * 8 + 2) at fault
fault:  int     0x21

#: case    INT n through what is no gate
#: manual  SDM 3A 6.13
#: mode    flat32
#: dword   IDT + 0x21 * 8 + 4 = 0x8c00
#: ends    #GP(0x21 * 8 + 2) at fault
fault:  int     0x21

#: case    an interrupt gate clears IF, a trap gate keeps it
#: manual  SDM 3A 6.12.1.3
#: mode    flat32
#: gate    0x80 = trap32 CODE32:trap
#: gate    0x81 = int32 CODE32:done
#: expect  ebx = IF, if = 0
        sti
        int     0x80
trap:   pushfd
        pop     ebx
        and     ebx, IF
        int     0x81
done:   hlt

#: case    an interrupt from ring 3 takes ring 0's stack and pushes the old one
#: manual  SDM 3A 6.12.1
#: mode    flat32 user
#: ends    interrupt 0x80 at back
#: expect  frame.cs = USER32, frame.sp = STACK, frame.ss = UDATA, esp = STACK0 - 20, ss = DATA32
        int     0x80
back:   hlt

#: case    an interrupt to an outer ring
#: manual  SDM 3A 6.12.1.1
#: mode    flat32
#: gate    0x80 = int32 USER32:0
#: ends    #GP(USER32 & ~3) at fault
fault:  int     0x80

#: case    a 16-bit interrupt gate pushes words
#: manual  SDM 3A 6.12.1
#: mode    flat32
#: gate    0x80 = int16 CODE32:done
#: expect  esp = STACK - 6, word(STACK - 6) = back, word(STACK - 4) = CODE32
        int     0x80
back:   hlt
done:   hlt

#: case    in long mode the stack is aligned and SS:RSP always pushed
#: manual  SDM 3A 6.14.2
#: mode    long
#: set     rsp = STACK - 3
#: ends    interrupt 0x80 at back
#: expect  rsp = STACK - 16 - 40, frame.sp = STACK - 3, frame.ss = DATA32
        int     0x80
back:   hlt

#: case    in long mode a stack switch loads SS with null
#: manual  SDM 3A 6.14.3
#: mode    long user
#: ends    interrupt 0x80 at back
#: expect  ss = 0, rsp = STACK0 - 40, frame.ss = UDATA
        int     0x80
back:   hlt

#: case    an IST stack is taken without a change of ring, too
#: manual  SDM 3A 6.14.5
#: mode    long
#: gate    0x80 = int64 CODE64:done ist=2
#: expect  rsp = IST2 - 40, ss = DATA32
        int     0x80
done:   hlt

#: case    a long-mode gate to code that isn't 64-bit
#: manual  SDM 3A 6.14.1
#: mode    long
#: gate    0x80 = int64 CODE32:0
#: ends    #GP(CODE32) at fault
fault:  int     0x80

#: case    a gate's address that isn't canonical
#: manual  SDM 3A 6.14.1
#: mode    long
#: gate    0x80 = int64 CODE64:0x800000000000
#: ends    #GP(0) at fault
fault:  int     0x80

#: case    a task gate is no gate in long mode
#: manual  SDM 3A 6.14.5
#: mode    long
#: gate    0x21 = task TR:0
#: ends    #GP(0x21 * 8 + 2) at fault
fault:  int     0x21

#: case    IRET to the same ring leaves SS:ESP alone
#: manual  SDM 2A IRET
#: mode    flat32
#: expect  esp = STACK, cf = 1, if = 1
#: set     rflags = 2
        push    0x203
        push    CODE32
        push    offset done
        iretd
done:   cli
        pushfd
        pop     eax
        sti
        nop
        hlt

#: case    IRET in 64-bit mode always takes SS:RSP
#: manual  SDM 2A IRET
#: mode    long
#: expect  rsp = 0xc800
        push    DATA32
        push    0xc800
        push    2
        push    CODE64
        push    offset done
        iretq
done:   hlt

#: case    IRET to compatibility mode
#: manual  SDM 2A IRET
#: mode    long
#: ends    #GP(0) at outer
#: expect  frame.cs = USER32, frame.ss = UDATA, frame.sp = 0xc800
        push    UDATA
        push    0xc800
        push    2
        push    USER32
        push    offset outer
        iretq
outer:  hlt

#: case    IRET from ring 3 changes neither IOPL nor IF
#: manual  SDM 2A IRET, POPF
#: mode    flat32 user
#: ends    #GP(0) at done
#: expect  frame.flags & (IOPL | IF | CF) = CF
        push    0x3203
        push    USER32
        push    offset done
        iretd
done:   hlt

#: case    IRET with NT set in long mode
#: manual  SDM 2A IRET
#: mode    long
#: set     rflags = NT | 2
#: ends    #GP(0) at fault
fault:  iretq

#: case    IRET to an address that isn't canonical
#: manual  SDM 2A IRET
#: mode    long
#: ends    #GP(0) at fault
        push    DATA32
        push    0xc800
        push    2
        push    CODE64
        mov     rax, 0x800000000000
        push    rax
fault:  iretq

#: case    IRET to 64-bit ring 0 may load a null SS
#: manual  SDM 2A IRET
#: mode    long
#: expect  ss = 0
        push    0
        push    0xc800
        push    2
        push    CODE64
        push    offset done
        iretq
done:   hlt

#: case    IRET to 64-bit ring 3 may not load a null SS
#: manual  SDM 2A IRET
#: mode    long
#: ends    #GP(0) at fault
        push    3
        push    0xc800
        push    2
        push    USER64
        push    offset fault
fault:  iretq

#: case    IRET to virtual-8086 mode loads all segments from the stack
#: manual  SDM 2A IRET; 3B 20.2.5
#: mode    flat32
#: ends    #GP(0)
#: expect  frame.ip = 0x5678, frame.cs = 0x10, frame.sp = 0x1000, frame.ss = 0xc00, frame.flags & VM = VM
#: expect  dword(STACK0 - 16) = 0x111, dword(STACK0 - 12) = 0x222, dword(STACK0 - 8) = 0x333, dword(STACK0 - 4) = 0x444
#: expect  ds = 0, es = 0, fs = 0, gs = 0
#: byte    0x5778 = 0xf4
        push    0x444
        push    0x333
        push    0x222
        push    0x111
        push    0xc00
        push    0x1000
        push    VM | 2
        push    0x10
        push    0x5678
        iretd

#: case    SYSCALL and SYSRET from 64-bit code
#: manual  SDM 2B SYSCALL, SYSRET
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x40, sfmask = CF | IF, rflags = IF | CF | 2
#: ends    #GP(0) at back
#: expect  frame.cs = USER64, frame.ss = UDATA, frame.flags & (IF | CF) = IF | CF
#: expect  rcx = back, rbx = 2, r11 = IF | CF | 2
        syscall
back:   hlt
        .org    0x40
        pushfq
        pop     rbx
        sysretq

#: case    SYSCALL loads flat segments whatever the descriptors say
#: manual  SDM 2B SYSCALL
#: mode    long user
#: set     star = 0x003b00a000000000, lstar = done
#: expect  cs = SELECTORS, ss = SELECTORS + 8, cpl = 0, cs.limit = 0xffffffff, rsp = STACK
        syscall
done:   hlt

#: case    SYSCALL without EFER.SCE
#: manual  SDM 2B SYSCALL
#: mode    long user
#: set     efer = LME | LMA
#: ends    #UD at fault
fault:  syscall

#: case    SYSRET to 32-bit code
#: manual  SDM 2B SYSRET
#: mode    long
#: set     star = 0x003b001800000000, rcx = outer, r11 = 2
#: ends    #GP(0) at outer
#: expect  frame.cs = USER32, frame.ss = UDATA
        .byte   0x0f, 0x07              # sysret without REX.W
outer:  hlt

#: case    SYSRET to an address that isn't canonical faults in ring 0
#: manual  SDM 2B SYSRET
#: mode    long
#: set     star = 0x003b001800000000, rcx = 1 << 47
#: ends    #GP(0) at fault
#: expect  frame.cs = CODE64
fault:  sysretq

#: case    SYSRET in ring 3
#: manual  SDM 2B SYSRET
#: mode    long user
#: ends    #GP(0) at fault
fault:  sysretq

#: case    SYSENTER and SYSEXIT
#: manual  SDM 2B SYSENTER, SYSEXIT
#: mode    flat32 user
#: set     sysenter_cs = RING2 - 2, sysenter_eip = inner, sysenter_esp = STACK0, rflags = IF | 2
#: expect  cs = 0x90, ss = 0x98, esp = STACK0, cpl = 0, if = 0
        sysenter
inner:  hlt

#: case    SYSEXIT to 32-bit code
#: manual  SDM 2B SYSEXIT
#: mode    flat32
#: set     sysenter_cs = 0x28, ecx = 0xc800, edx = outer
#: ends    #GP(0) at outer
#: expect  frame.cs = USER32, frame.ss = UDATA, frame.sp = 0xc800
        sysexit
outer:  hlt

#: case    SYSENTER with a null code selector
#: manual  SDM 2B SYSENTER
#: mode    flat32 user
#: ends    #GP(0) at fault
fault:  sysenter

#: case    SYSENTER in long mode goes to 64-bit code
#: manual  SDM 2B SYSENTER
#: mode    compat user
#: set     sysenter_cs = CODE64, sysenter_eip = inner, sysenter_esp = STACK0
#: expect  cs = CODE64, ss = DATA64, rax = 0x100000000
        sysenter
        .code64
inner:  mov     rax, 0x100000000
        hlt

#: case    SWAPGS exchanges the base with the MSR
#: manual  SDM 2B SWAPGS
#: mode    long
#: set     gs.base = 0x1111, kernel_gs_base = 0xffff800000000000
#: expect  gs.base = 0xffff800000000000, kernel_gs_base = 0x1111
        swapgs
        hlt

#: case    SWAPGS in ring 3
#: manual  SDM 2B SWAPGS
#: mode    long user
#: ends    #GP(0) at fault
fault:  swapgs

#: case    SWAPGS outside 64-bit mode
#: manual  SDM 2B SWAPGS
#: mode    compat
#: ends    #UD at fault
fault:  .byte   0x0f, 0x01, 0xf8

#: case    a call gate to conforming code of ring 0 stays in ring 3
#: manual  SDM 3A 5.8.4
#: mode    flat32 user
#: gdt     SELECTORS = callgate32 SELECTORS+8:inner dpl=3
#: gdt     SELECTORS + 8 = code32 conforming
#: ends    #GP(0) at inner
#: expect  frame.cs = SELECTORS + 8 + 3, frame.sp = STACK - 8, dword(STACK - 8) = back, dword(STACK - 4) = USER32
        .byte   0x9a
        .long   0
        .word   SELECTORS
back:   hlt
inner:  hlt

#: case    a call gate's parameters are read with ring 3's stack, and a fault there leaves all
#: manual  SDM 2A CALL; 3A 5.8.5
#: mode    paged32 user
#: gdt     SELECTORS = callgate32 CODE32:fault dpl=3 count=2
#: pte     DATA + 0x1000 = 0
#: set     esp = DATA + 0xffc
#: ends    #PF(4) at fault
#: expect  cr2 = DATA + 0x1000, frame.sp = DATA + 0xffc, frame.cs = USER32
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS

#: case    an inner stack that faults leaves the outer ring's registers
#: manual  SDM 3A 6.12.1
#: mode    paged32 user
#: gdt     SELECTORS = callgate32 RING1:fault dpl=3
#: dword   TSS + 12 = DATA + 8
#: pte     DATA = 0
#: ends    #PF(2) at fault
#: expect  frame.cs = USER32, frame.ss = UDATA, frame.sp = STACK
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS

#: case    a far return in 64-bit code with REX.W
#: manual  SDM 2B RET
#: mode    long
#: ends    #GP(0) at outer
#: expect  frame.cs = USER64, frame.ss = UDATA, frame.sp = 0xc800
        push    UDATA
        push    0xc800
        push    USER64
        push    offset outer
        rex.w retf
outer:  hlt

#: case    a far return to the null selector
#: manual  SDM 2B RET
#: mode    flat32
#: ends    #GP(0) at fault
        push    3
        push    offset fault
fault:  retf

#: case    a far return to an absent segment leaves ESP
#: manual  SDM 2B RET
#: mode    flat32
#: gdt     SELECTORS = code32 absent
#: ends    #NP(SELECTORS) at fault
#: expect  esp = STACK - 8 - 16
        push    SELECTORS
        push    offset fault
fault:  retf

#: case    IRET of a frame across an absent page leaves RSP
#: manual  SDM 2A IRET; 3A 6.5
#: mode    long
#: pte     DATA + 0x1000 = 0
#: gate    14 = int64 CODE64:handler ist=1
#: expect  qword(IST1 - 16) = DATA + 0xff0, cr2 = DATA + 0x1000
        mov     esp, DATA + 0xff0
        iretq
handler: hlt

#: case    SYSRET clears RF and keeps what R11 says otherwise
#: manual  SDM 2B SYSRET
#: mode    long
#: set     star = 0x003b001800000000, rcx = outer, r11 = RF | VM | AC | ID | IOPL | 3
#: ends    #GP(0) at fault
#: expect  frame.flags & (AC | ID | IOPL | CF | VM) = AC | ID | IOPL | CF
        sysretq
outer:  nop
fault:  mov     rax, cr0

#: case    SYSCALL saves RFLAGS with RF clear and masks all that FMASK says
#: manual  SDM 2B SYSCALL
#: mode    long user
#: set     star = 0x003b001800000000, lstar = done, sfmask = 0xffffffff, rflags = AC | ID | DF | CF | 2
#: expect  rflags = 2, r11 = AC | ID | DF | CF | 2
        syscall
done:   hlt

#: case    SYSCALL in compatibility mode goes to CSTAR's address on no CPU of Intel's
#: manual  SDM 2B SYSCALL
#: mode    compat user
#: set     star = 0x003b001800000000, cstar = CODE
#: ends    #UD at fault
fault:  syscall

#: case    a near return to an address that isn't canonical faults at the return
#: manual  SDM 2B RET
#: mode    long
#: ends    #GP(0) at fault
#: expect  frame.sp = STACK - 8
        mov     rax, 0x800000000000
        push    rax
fault:  ret

#: case    an IDT in an absent page
#: manual  SDM 3A 6.12.1; 4.6.1
#: mode    long user
#: set     idtr.base = DATA
#: pte     DATA + 0x1000 = IDT | 7
#: pte     DATA = 0
#: ends    shutdown
        ud2

#: case    a gate in an absent page is a supervisor's read even from ring 3
#: manual  SDM 3A 4.6.1
#: mode    paged32 user
#: set     idtr.base = DATA + 0xf80, idtr.limit = 0x7ff
#: pte     DATA + 0x1000 = 0
#: qword   DATA + 0xf80 + 14 * 8 = 0x00008e00000850e0
#: ends    #PF(0) at fault
#: expect  cr2 = DATA + 0xf80 + 0x21 * 8, frame.cs = USER32
fault:  int     0x21

#: case    a TSS in an absent page is a supervisor's read even from ring 3
#: manual  SDM 3A 4.6.1
#: mode    paged32 user
#: gdt     SELECTORS = callgate32 RING1:fault dpl=3
#: set     tr.base = DATA + 0xff0
#: pte     DATA + 0x1000 = 0
#: dword   DATA + 0xff0 + 4 = STACK0
#: word    DATA + 0xff0 + 8 = DATA32
#: ends    #PF(0) at fault
#: expect  cr2 & ~0xff = DATA + 0x1000
fault:  .byte   0x9a
        .long   0
        .word   SELECTORS

#: case    ring 3 loads segments from a GDT that it may not touch
#: manual  SDM 3A 4.6.1
#: mode    long user
#: supervisor 0x1000 .. 0x2000
#: ends    #PF(5) at fault
#: expect  ds = UDATA
        mov     ax, UDATA
        mov     ds, ax
fault:  mov     eax, [GDT]

#: case    the last vector that an IDT in long mode holds needs 16 bytes
#: manual  SDM 3A 6.14.1
#: mode    long
#: set     idtr.limit = 0x21 * 16 + 14
#: ends    #GP(0x21 * 8 + 2) at fault
fault:  int     0x21

#: case    code that runs off the end of the canonical addresses
#: manual  SDM 1 3.3.7.1
#: mode    long
#: pml4e   0x7ffffffff000 = SPARE | 7
#: qword   SPARE + 511 * 8 = SPARE + 0x1000 | 7
#: qword   SPARE + 0x1000 + 511 * 8 = SPARE + 0x2000 | 7
#: qword   SPARE + 0x2000 + 511 * 8 = DATA | 7
#: byte    DATA + 0xfff = 0x90
#: ends    #GP(0) at 0x800000000000
        mov     rax, 0x7fffffffffff
        jmp     rax
