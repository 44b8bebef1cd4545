# Hardware task switches.

#: case    a far jump to a TSS saves and loads everything and moves the busy bit
#: manual  SDM 3A 7.3
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=CF|2 eax=0x11 ebx=0x22 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32 es=0 fs=DATA32 gs=0 ldt=LDTR link=0x77
#: expect  eax = 0x11, ebx = 0x22, esp = 0xc800, cf = 1, nt = 0, tr = SELECTORS, es = 0, fs = DATA32, cr0 & TS = TS
#: expect  dword(TSS + 32) = back, dword(TSS + 40) = 0x5, dword(TSS + 56) = STACK, word(TSS + 76) = CODE32
#: expect  byte(GDT + TR + 5) = 0x89, byte(GDT + SELECTORS + 5) = 0x8b, word(SCRATCH) = 0x77
        mov     eax, 5
        .byte   0xea
        .long   0
        .word   SELECTORS
back:   hlt
other:  hlt

#: case    a far call to a TSS links back and sets NT, and IRET returns
#: manual  SDM 3A 7.4
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32
#: expect  tr = TR, word(SCRATCH) = TR, nt = 0, esp = STACK, eax = 9
#: expect  byte(GDT + TR + 5) = 0x8b, byte(GDT + SELECTORS + 5) = 0x89, dword(SCRATCH + 36) & NT = 0, dword(SCRATCH + 40) = 7
#: expect  dword(SCRATCH + 32) = after
        mov     eax, 9
        .byte   0x9a
        .long   0
        .word   SELECTORS
        hlt
other:  pushfd
        pop     ecx
        mov     eax, 7
        iretd
after:  hlt

#: case    a jump to a busy TSS
#: manual  SDM 3A 7.3
#: mode    flat32
#: ends    #GP(TR) at fault
fault:  .byte   0xea
        .long   0
        .word   TR

#: case    a jump to an absent TSS
#: manual  SDM 3A 7.3
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH absent
#: ends    #NP(SELECTORS) at fault
fault:  .byte   0xea
        .long   0
        .word   SELECTORS

#: case    a TSS whose limit is too small
#: manual  SDM 3A 7.3; 6.15 interrupt 10
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH limit=0x66
#: ends    #TS(SELECTORS) at fault
fault:  .byte   0xea
        .long   0
        .word   SELECTORS

#: case    ring 3 can't jump to a TSS of ring 0
#: manual  SDM 3A 7.3
#: mode    flat32 user
#: gdt     SELECTORS = tss32 base=SCRATCH
#: ends    #GP(SELECTORS) at fault
fault:  .byte   0xea
        .long   0
        .word   SELECTORS + 3

#: case    ring 3 may call a task gate of ring 3
#: manual  SDM 3A 7.2.5
#: mode    flat32 user
#: gdt     SELECTORS = tss32 base=SCRATCH
#: gdt     SELECTORS + 8 = task SELECTORS:0 dpl=3
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32
#: expect  cpl = 0, nt = 1, tr = SELECTORS
        .byte   0x9a
        .long   0
        .word   SELECTORS + 8
other:  hlt

#: case    an exception through a task gate pushes its code in the new task
#: manual  SDM 3A 6.12.2
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: gate    13 = task SELECTORS:0
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32
#: expect  esp = 0xc800 - 4, dword(0xc800 - 4) = DATA16, nt = 1, dword(TSS + 32) = fault, word(SCRATCH) = TR
        mov     ax, DATA16 + 3
fault:  mov     ds, ax
other:  hlt

#: case    a task switch loads CR3
#: manual  SDM 3A 7.3
#: mode    paged32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32 cr3=SPARE
#: dword   SPARE = PT | 7
#: expect  cr3 = SPARE
        .byte   0xea
        .long   0
        .word   SELECTORS
other:  hlt

#: case    the T bit raises #DB before the new task's first instruction
#: manual  SDM 3B 17.3.1.5
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32 trap=1
#: ends    #DB at other
#: expect  dr6 & 0x8000 = 0x8000
        .byte   0xea
        .long   0
        .word   SELECTORS
other:  hlt

#: case    a bad segment in the new task faults there, with the selector
#: manual  SDM 3A 7.3, step 13; 6.15 interrupt 10
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=0x1f8
#: ends    #TS(0x1f8) at other
#: expect  tr = SELECTORS
        .byte   0xea
        .long   0
        .word   SELECTORS
other:  hlt

#: case    a task switch to a 16-bit TSS
#: manual  SDM 3A 7.6
#: mode    flat32
#: gdt     SELECTORS = tss16 base=SCRATCH
#: tss16   SCRATCH: eip=other eflags=2 eax=0x1234 esp=0xc800 cs=CODE16 ss=DATA16 ds=DATA16 ldt=0
#: expect  ax = 0x1234, sp = 0xc800, cs = CODE16, ldtr = 0, tr = SELECTORS
        .byte   0xea
        .long   0
        .word   SELECTORS
        .code16
other:  hlt

#: case    IRET with NT set and a link that is no busy TSS
#: manual  SDM 2A IRET
#: mode    flat32
#: set     rflags = NT | 2
#: word    TSS = SELECTORS
#: gdt     SELECTORS = tss32 base=SCRATCH
#: ends    #TS(SELECTORS) at fault
fault:  iretd

#: case    a task switch is refused in long mode
#: manual  SDM 3A 7.7
#: mode    compat
#: gdt     SELECTORS = tss64 base=SCRATCH
#: ends    #GP(SELECTORS) at fault
fault:  .byte   0xea
        .long   0
        .word   SELECTORS

#: case    a task switch to virtual-8086 mode
#: manual  SDM 3A 7.3; 3B 20.2.5
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: esp0=STACK0 ss0=DATA32 eip=8 eflags=VM|2 esp=0xff0 cs=0x610 ss=0xc00 ds=0x55
#: byte    0x6108 = 0xf4
#: ends    #GP(0) at 8
#: expect  frame.flags & VM = VM, frame.cs = 0x610, dword(STACK0 - 8) = 0
#: expect  dword(STACK0 - 12) = 0x55
        .byte   0xea
        .long   0
        .word   SELECTORS

#: case    LTR marks the TSS busy
#: manual  SDM 2A LTR
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: expect  byte(GDT + SELECTORS + 5) = 0x8b, tr = SELECTORS, tr.base = SCRATCH
        mov     ax, SELECTORS
        ltr     ax
        hlt

#: case    LTR of a busy TSS
#: manual  SDM 2A LTR
#: mode    flat32
#: ends    #GP(TR) at fault
        mov     ax, TR
fault:  ltr     ax

#: case    LTR of the null selector
#: manual  SDM 2A LTR
#: mode    flat32
#: ends    #GP(0) at fault
        xor     eax, eax
fault:  ltr     ax

#: case    LTR of a TSS in the LDT
#: manual  SDM 2A LTR
#: mode    flat32
#: ldt     8 = tss32 base=SCRATCH
#: ends    #GP(12) at fault
        mov     ax, 12
fault:  ltr     ax

#: case    LTR of an absent TSS
#: manual  SDM 2A LTR
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH absent
#: ends    #NP(SELECTORS) at fault
        mov     ax, SELECTORS
fault:  ltr     ax

#: case    LTR in long mode takes 16 bytes, with a 64-bit base
#: manual  SDM 2A LTR; 3A 7.2.3
#: mode    long
#: gdt     SELECTORS = tss64 base=0xffff800000006000
#: expect  tr.base = 0xffff800000006000
        mov     ax, SELECTORS
        ltr     ax
        hlt

#: case    LTR in ring 3
#: manual  SDM 2A LTR
#: mode    flat32 user
#: ends    #GP(0) at fault
fault:  ltr     ax

#: case    LLDT of null makes local selectors unusable
#: manual  SDM 2A LLDT
#: mode    flat32
#: ldt     8 = data32
#: ends    #GP(12) at fault
        xor     eax, eax
        lldt    ax
        mov     ax, 12
fault:  mov     ds, ax

#: case    LLDT of what is no LDT
#: manual  SDM 2A LLDT
#: mode    flat32
#: ends    #GP(DATA32) at fault
        mov     ax, DATA32
fault:  lldt    ax

#: case    a task switch with PAE loads the PDPTEs
#: manual  SDM 3A 4.4.1, 7.3
#: mode    pae
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32 cr3=SPARE
#: qword   SPARE = SPARE + 0x1000 | P
#: qword   SPARE + 0x1000 = PT | 7
#: qword   SPARE + 0x1008 = P | RW | US | PS
#: dword   DATA = 0x77
#: expect  cr3 = SPARE, eax = 0x77
        .byte   0xea
        .long   0
        .word   SELECTORS
other:  mov     eax, ds:[0x200000 + DATA]
        hlt

#: case    the double fault's own task saves a machine without a stack
#: manual  SDM 3A 6.15 interrupt 8; 7.3
#: mode    flat32
#: gdt     SELECTORS = tss32 base=SCRATCH
#: gdt     SELECTORS + 8 = data32 limit=0xff base=DATA
#: gate    8 = task SELECTORS:0
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32
#: expect  tr = SELECTORS, dword(0xc800 - 4) = 0, dword(TSS + 32) = fault, dword(TSS + 56) = 0x4000, esp = 0xc800 - 4
        mov     ax, SELECTORS + 8
        mov     ss, ax
        mov     esp, 0x4000
fault:  push    eax
other:  hlt

#: case    local breakpoints end with their task, global ones stay
#: manual  SDM 3B 17.2.4
#: mode    flat32
#: set     dr7 = 0x70f
#: gdt     SELECTORS = tss32 base=SCRATCH
#: tss32   SCRATCH: eip=other eflags=2 esp=0xc800 cs=CODE32 ss=DATA32 ds=DATA32
#: expect  dr7 = 0x60a
#: set     dr0 = 0x90000, dr1 = 0x90000
        .byte   0xea
        .long   0
        .word   SELECTORS
other:  hlt
