# Faults while delivering faults, traps, debug exceptions, shadows, NMI.

#: case    a fault in #GP's delivery is a double fault with code 0
#: manual  SDM 3A 6.15 interrupt 8
#: mode    flat32
#: gate    13 = int32 CODE32:0 absent
#: ends    #DF(0) at fault
        xor     eax, eax
fault:  mov     ss, ax

#: case    a fault in the double fault's delivery shuts down
#: manual  SDM 3A 6.15 interrupt 8
#: mode    flat32
#: gate    13 = int32 CODE32:0 absent
#: gate    8 = int32 CODE32:0 absent
#: ends    shutdown
        xor     eax, eax
        mov     ss, ax

#: case    a benign exception's failed delivery is no double fault
#: manual  SDM 3A table 6-5
#: mode    flat32
#: gate    6 = int32 CODE32:0 absent
#: ends    #NP(6 * 8 + 3) at fault
fault:  ud2

#: case    a page fault in #GP's delivery is a page fault
#: manual  SDM 3A table 6-5
#: mode    paged32 user
#: pte     STACK1 - 0x800 = 0
#: dword   TSS + 12 = STACK1 - 0x700
#: gate    13 = int32 RING1:0
#: ends    #PF(2) at fault
fault:  hlt

#: case    a #GP in a page fault's delivery is a double fault
#: manual  SDM 3A table 6-5
#: mode    paged32
#: pte     DATA = 0
#: gate    14 = int32 DATA32:0
#: ends    #DF(0) at fault
fault:  mov     eax, ds:[DATA]

#: case    a page fault in a page fault's delivery is a double fault, and CR2 is the second's
#: manual  SDM 3A table 6-5
#: mode    long
#: pte     DATA = 0
#: gate    8 = int64 CODE64:STUBS+0x80 ist=1
#: ends    #DF(0) at fault
#: expect  cr2 = DATA - 8 + 0x800
        mov     esp, DATA + 0x800
fault:  mov     eax, [DATA + 0x100]

#: case    an external interrupt through an absent gate has EXT set
#: manual  SDM 3A 6.13
#: mode    flat32
#: gate    0x40 = int32 CODE32:0 absent
#: ends    #NP(0x40 * 8 + 3) at back
        mov     al, 0x40
        sti
        nop
        out     INTERRUPT_PORT, al
back:   nop
        hlt

#: case    an external interrupt is taken at the boundary after OUT
#: manual  SDM 3A 6.6
#: mode    flat32
#: ends    interrupt 0x40 at back
        mov     al, 0x40
        sti
        nop
        out     INTERRUPT_PORT, al
back:   nop
        hlt

#: case    STI holds interrupts back for one instruction
#: manual  SDM 2B STI
#: mode    flat32
#: ends    interrupt 0x40 at after
#: expect  ebx = 1
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        sti
        inc     ebx
after:  inc     ebx
        hlt

#: case    STI with IF already set holds nothing back
#: manual  SDM 2B STI
#: mode    flat32
#: ends    interrupt 0x40 at after
#: expect  ebx = 1
        mov     al, 0x40
        sti
        sti
        inc     ebx
        out     INTERRUPT_PORT, al
after:  inc     ebx
        hlt

#: case    STI followed by CLI takes nothing
#: manual  SDM 2B STI
#: mode    flat32
#: expect  ebx = 1, if = 0
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        sti
        cli
        inc     ebx
        hlt

#: case    MOV SS holds an NMI back for one instruction
#: manual  SDM 3A 6.8.3
#: mode    flat32
#: gate    2 = int32 CODE32:handler
#: expect  ebx = 2
#: expect  dword(STACK - 12) = after
        mov     ax, DATA32
        mov     ss, ax
        out     NMI_PORT, al
after:  hlt
handler: mov    ebx, 2
        hlt

#: case    a second NMI waits for the first one's IRET
#: manual  SDM 3A 6.7.1
#: mode    flat32
#: gate    2 = int32 CODE32:handler
#: expect  ebx = 2, ecx = 1, edx = 2
        out     NMI_PORT, al
        mov     edx, ebx
        hlt
handler: inc    ebx
        cmp     ebx, 2
        je      second
        out     NMI_PORT, al
        nop
        mov     ecx, ebx
second: iretd

#: case    an NMI ignores IF and has no error code
#: manual  SDM 3A 6.7
#: mode    long
#: ends    interrupt 2 at back
#: expect  nmi_blocked = 1
        out     NMI_PORT, al
back:   hlt

#: case    HLT with IF clear is woken by an NMI
#: manual  SDM 2A HLT
#: mode    long
#: on-halt nmi
#: ends    interrupt 2 at back
        hlt
back:   hlt

#: case    TF traps after each instruction
#: manual  SDM 3B 17.3.1.4
#: mode    flat32
#: ends    #DB at after
#: expect  dr6 & 0x4000 = 0x4000, ebx = 1, frame.flags & TF = TF, tf = 0
        push    TF | 2
        popfd
        inc     ebx
after:  inc     ebx

#: case    TF traps after each iteration of REP
#: manual  SDM 3B 17.3.1.4
#: mode    flat32
#: ends    #DB at string
#: expect  ecx = 3, edi = DATA + 1
        mov     edi, DATA
        mov     ecx, 4
        push    TF | 2
        popfd
string: rep stosb
        hlt

#: case    TF waits while MOV SS shadows
#: manual  SDM 3B 17.3.1.4; 3A 6.8.3
#: mode    flat32
#: ends    #DB at after
#: expect  ebx = 1
        mov     ax, DATA32
        push    TF | 2
        popfd
        mov     ss, ax
        inc     ebx
after:  inc     ebx
        hlt

#: case    TF set by IRET traps after the instruction it returns to
#: manual  SDM 3B 17.3.1.4
#: mode    flat32
#: ends    #DB at after
        push    TF | 2
        push    CODE32
        push    offset target
        iretd
target: inc     ebx
after:  inc     ebx
        hlt

#: case    a fault under TF is delivered without a trap
#: manual  SDM 3A table 6-2
#: mode    flat32
#: ends    #UD at fault
#: expect  dr6 & 0x4000 = 0
        push    TF | 2
        popfd
fault:  ud2

#: case    INT n under TF traps not at the handler
#: manual  SDM 3B 17.3.1.4
#: mode    flat32
#: gate    0x80 = int32 CODE32:handler
#: expect  ebx = 5
        push    TF | 2
        popfd
        int     0x80
        hlt
handler: mov    ebx, 5
        hlt

#: case    SYSCALL under TF with FMASK clearing it
#: manual  SDM 2B SYSCALL; 3B 17.3.1.4
#: mode    long user
#: set     star = 0x003b001800000000, lstar = done, sfmask = TF
#: expect  tf = 0, cpl = 0
        push    TF | 2
        popfq
        syscall
done:   hlt

#: case    INT1 is a trap that ignores the gate's DPL and sets nothing in DR6
#: manual  SDM 2A INT n
#: mode    flat32 user
#: ends    #DB at back
#: expect  dr6 & 0xe00f = 0
        int1
back:   hlt

#: case    INT3 from ring 3 through a ring 0 gate
#: manual  SDM 2A INT n
#: mode    flat32 user
#: gate    3 = int32 CODE32:0
#: ends    #GP(3 * 8 + 2) at fault
fault:  int3

#: case    an instruction breakpoint faults before its instruction with RF in the frame
#: manual  SDM 3B 17.3.1.1
#: mode    flat32
#: set     dr0 = fault, dr7 = 0x402
#: ends    #DB at fault
#: expect  dr6 & 0xf = 1, ebx = 0, frame.flags & RF = RF
        nop
fault:  inc     ebx
        hlt

#: case    RF lets the instruction pass once
#: manual  SDM 3B 17.3.1.1
#: mode    flat32
#: set     dr0 = fault, dr7 = 0x402
#: gate    1 = int32 CODE32:handler
#: expect  ebx = 1, ecx = 1
        nop
fault:  inc     ebx
        hlt
handler: inc    ecx
        iretd

#: case    a data breakpoint on a write traps after it
#: manual  SDM 3B 17.3.1.2
#: mode    flat32
#: set     dr1 = SCRATCH + 2, dr7 = 0x400 | 1 << 3 | 1 << 20
#: ends    #DB at after
#: expect  dr6 & 0xf = 2, dword(SCRATCH) = 7
        mov     eax, ds:[SCRATCH]
        mov     dword ptr ds:[SCRATCH], 7
after:  hlt

#: case    a data breakpoint on reads and writes
#: manual  SDM 3B 17.2.4
#: mode    long
#: set     dr3 = SCRATCH + 4, dr7 = 0x400 | 1 << 7 | 0xf << 28
#: ends    #DB at after
#: expect  dr6 & 0xf = 8
        mov     eax, [SCRATCH]
        mov     rax, [SCRATCH]
after:  hlt

#: case    an I/O breakpoint
#: manual  SDM 3B 17.3.1.3
#: mode    flat32
#: set     dr2 = 0x80, dr7 = 0x400 | 1 << 5 | 2 << 24, cr4 |= DE
#: ends    #DB at after
#: expect  dr6 & 0xf = 4, outs(0x80) = 1
        out     0x81, al
        out     0x80, al
after:  hlt

#: case    DR7.GD makes MOV of debug registers fault and is cleared
#: manual  SDM 3B 17.2.4
#: mode    flat32
#: set     dr7 = 0x2400
#: ends    #DB at fault
#: expect  dr6 & 0x2000 = 0x2000, dr7 = 0x400
fault:  mov     eax, dr0

#: case    DR4 is DR6 without CR4.DE
#: manual  SDM 3B 17.2.2
#: mode    flat32
#: expect  eax = 0xffff0ff0
        mov     eax, dr4
        hlt

#: case    DR4 is undefined with CR4.DE
#: manual  SDM 3B 17.2.2
#: mode    flat32
#: set     cr4 |= DE
#: ends    #UD at fault
fault:  mov     eax, dr4

#: case    MOV to DR7 with upper bits set
#: manual  SDM 2B MOV debug registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, 1 << 32
fault:  mov     dr7, rax

#: case    DIV overflow leaves its registers
#: manual  SDM 2A DIV; 3A 6.5
#: mode    long
#: ends    #DE at fault
#: expect  rax = 5, rdx = 7
        mov     eax, 5
        mov     edx, 7
        mov     ebx, 7
fault:  div     ebx

#: case    IDIV of the smallest number by -1
#: manual  SDM 2A IDIV
#: mode    flat32
#: ends    #DE at fault
        mov     eax, 0x80000000
        cdq
        mov     ebx, -1
fault:  idiv    ebx

#: case    #AC for an unaligned access in ring 3 with AM and AC set
#: manual  SDM 3A 6.15 interrupt 17
#: mode    long user
#: set     cr0 |= AM, rflags = AC | 2
#: ends    #AC(0) at fault
        mov     eax, [DATA]
        mov     al, [DATA + 1]
fault:  mov     eax, [DATA + 2]

#: case    no #AC in ring 0
#: manual  SDM 3A 6.15 interrupt 17
#: mode    long
#: set     cr0 |= AM, rflags = AC | 2
        mov     eax, [DATA + 2]
        hlt

#: case    #NM with CR0.TS set comes before the operand's page fault
#: manual  SDM 3A table 6-2, 2.5
#: mode    long
#: set     cr0 |= TS
#: pte     DATA = 0
#: ends    #NM at fault
fault:  movaps  xmm0, [DATA]

#: case    CLTS
#: manual  SDM 2A CLTS
#: mode    long
#: set     cr0 |= TS
#: expect  cr0 & TS = 0
        clts
        fnop
        hlt

#: case    WAIT raises #NM only with MP and TS
#: manual  SDM 2D WAIT
#: mode    flat32
#: set     cr0 |= TS | MP
#: ends    #NM at fault
fault:  .byte   0x9b

#: case    WAIT with MP clear
#: manual  SDM 2D WAIT
#: mode    flat32
#: set     cr0 = PE | TS | 0x10
        .byte   0x9b
        hlt

#: case    x87 with CR0.EM set
#: manual  SDM 3A 2.5
#: mode    flat32
#: set     cr0 |= EM
#: ends    #NM at fault
fault:  fld1

#: case    SSE with CR0.EM set
#: manual  SDM 3A 2.5
#: mode    flat32
#: set     cr0 |= EM | TS
#: ends    #UD at fault
fault:  addps   xmm0, xmm1

#: case    SSE with CR4.OSFXSR clear
#: manual  SDM 3A 2.5
#: mode    flat32
#: set     cr4 &= ~OSFXSR
#: ends    #UD at fault
fault:  addps   xmm0, xmm1

#: case    AVX with CR4.OSXSAVE clear
#: manual  SDM 1 14.3
#: mode    long
#: set     cr4 &= ~OSXSAVE
#: ends    #UD at fault
fault:  vaddps  ymm0, ymm0, ymm1

#: case    AVX without XCR0's bit
#: manual  SDM 1 14.3
#: mode    long
#: set     xcr0 = 3
#: ends    #UD at fault
fault:  vaddps  ymm0, ymm0, ymm1

#: case    an unaligned MOVAPS is #GP(0)
#: manual  SDM 2A 2.4
#: mode    long
#: ends    #GP(0) at fault
fault:  movaps  xmm0, [DATA + 8]

#: case    a MOVAPS that crosses a page is #GP(0)
#: manual  SDM 2A 2.4
#: mode    long
#: ends    #GP(0) at fault
fault:  movaps  xmm0, [DATA + 0xff8]

#: case    a SIMD exception with CR4.OSXMMEXCPT
#: manual  SDM 3A 6.15 interrupt 19
#: mode    long
#: ends    #XM at fault
#: dword   SCRATCH = 0x1d80
        ldmxcsr [SCRATCH]
        xorps   xmm1, xmm1
        mov     eax, 0x3f800000
        movd    xmm0, eax
fault:  divss   xmm0, xmm1

#: case    a SIMD exception without CR4.OSXMMEXCPT is undefined
#: manual  SDM 3A 6.15 interrupt 6
#: mode    long
#: set     cr4 &= ~OSXMMEXCPT
#: ends    #UD at fault
#: dword   SCRATCH = 0x1d80
        ldmxcsr [SCRATCH]
        xorps   xmm1, xmm1
        mov     eax, 0x3f800000
        movd    xmm0, eax
fault:  divss   xmm0, xmm1

#: case    LDMXCSR of a reserved bit
#: manual  SDM 2A LDMXCSR
#: mode    long
#: dword   SCRATCH = 0x10000
#: ends    #GP(0) at fault
fault:  ldmxcsr [SCRATCH]

#: case    an x87 exception waits for the next waiting instruction
#: manual  SDM 1 8.7; 3A 6.15 interrupt 16
#: mode    long
#: word    SCRATCH = 0x37b
#: ends    #MF at fault
#: expect  ebx = 1
        fldcw   [SCRATCH]
        fld1
        fldz
        fdivp
        fnstsw  ax
        mov     ebx, 1
fault:  .byte   0x9b

#: case    FNSTSW and FNCLEX don't wait
#: manual  SDM 1 8.3.12
#: mode    flat32
#: word    SCRATCH = 0x37b
#: expect  eax & 0x84 = 0x84
        fldcw   ds:[SCRATCH]
        fld1
        fldz
        fdivp
        fnstsw  ax
        fnclex
        .byte   0x9b
        hlt

#: case    an IRET that faults unblocks NMIs all the same
#: manual  SDM 3A 6.7.1
#: mode    flat32
#: gate    2 = int32 CODE32:handler
#: ends    #GP(0x1f8) at fault
#: expect  nmi_blocked = 0
        out     NMI_PORT, al
        hlt
handler: push   2
        push    0x1f8
        push    0
fault:  iretd

#: case    a data breakpoint in REP MOVS traps after the iteration that hit
#: manual  SDM 3B 17.3.1.2
#: mode    long
#: set     dr0 = DATA + 8, dr7 = 0x402 | 1 << 16 | 3 << 18
#: ends    #DB at fault
#: expect  rcx = 1, rdi = DATA + 12, dr6 & 0xf = 1
        mov     esi, SCRATCH
        mov     edi, DATA
        mov     ecx, 4
fault:  rep movsd

#: case    a data breakpoint hit by MOV SS's successor and one hit by MOV SS come together
#: manual  SDM 3A 6.8.3
#: mode    flat32
#: set     dr0 = SCRATCH, dr7 = 0x402 | 3 << 16 | 1 << 18
#: word    SCRATCH = DATA32
#: ends    #DB at after
#: expect  ebx = 1, dr6 & 0xf = 1
        mov     ss, word ptr ds:[SCRATCH]
        inc     ebx
after:  hlt

#: case    an instruction breakpoint on what follows MOV SS is lost
#: manual  SDM 3A 6.8.3
#: mode    flat32
#: set     dr0 = next, dr7 = 0x402
#: expect  ebx = 1
        mov     ax, DATA32
        mov     ss, ax
next:   inc     ebx
        hlt

#: case    a breakpoint that isn't enabled hits nothing
#: manual  SDM 3B 17.2.4
#: mode    flat32
#: set     dr0 = next, dr7 = 0x400
#: expect  ebx = 1
next:   inc     ebx
        hlt

#: case    TF and a data breakpoint are told by one #DB
#: manual  SDM 3B 17.2.3
#: mode    flat32
#: set     dr0 = SCRATCH, dr7 = 0x402 | 1 << 16
#: ends    #DB at after
#: expect  dr6 & 0x400f = 0x4001
        push    TF | 2
        popfd
        mov     byte ptr ds:[SCRATCH], 1
after:  hlt

#: case    an interrupt in ring 3 goes to ring 0's stack
#: manual  SDM 3A 6.12.1
#: mode    long user
#: set     rflags |= IOPL | IF
#: ends    interrupt 0x40 at after
#: expect  frame.cs = USER64, frame.sp = STACK, rsp = STACK0 - 40
        mov     al, 0x40
        out     INTERRUPT_PORT, al
after:  nop
        jmp     after

#: case    a page fault on ring 0's stack while a user's page fault is delivered
#: manual  SDM 3A table 6-5
#: mode    long user
#: pte     DATA = 0
#: qword   TSS + 4 = DATA + 0x100
#: gate    8 = int64 CODE64:STUBS+0x80 ist=1
#: ends    #DF(0) at fault
#: expect  frame.cs = USER64
fault:  mov     eax, [DATA]

#: case    a stack that isn't canonical while a fault is delivered
#: manual  SDM 2A INT n; 3A 6.13
#: mode    long user
#: qword   TSS + 4 = 1 << 50
#: gate    12 = int64 CODE64:STUBS+0xc0 ist=1
#: ends    #SS(1) at fault
fault:  ud2

#: case    #DE on top of #DE is a double fault
#: manual  SDM 3A table 6-5
#: mode    flat32
#: gate    0 = int32 CODE32:0 absent
#: ends    #DF(0) at fault
        xor     ebx, ebx
fault:  div     ebx

#: case    a #GP because of #UD's delivery has EXT set and the vector
#: manual  SDM 3A 6.13
#: mode    flat32
#: gate    6 = int32 DATA32:0
#: ends    #GP(DATA32 + 1) at fault
fault:  ud2

#: case    a PUSH to a 16-bit stack wraps at 64 KiB and keeps ESP's upper half
#: manual  SDM 1 6.2.3
#: mode    flat32
#: expect  esp = 0x1234fffc, dword(0xfffc) = 0x55
        mov     ax, DATA16
        mov     ss, ax
        mov     esp, 0x12340000
        push    0x55
        hlt

#: case    POP to an address that ESP makes uses ESP after the pop
#: manual  SDM 2B POP
#: mode    flat32
#: dword   STACK - 8 = 0x77
#: set     esp = STACK - 8
#: expect  dword(STACK - 4) = 0x77, esp = STACK - 4
        pop     dword ptr [esp]
        hlt

#: case    PUSH ESP pushes the old value
#: manual  SDM 2B PUSH
#: mode    flat32
#: expect  dword(STACK - 4) = STACK
        push    esp
        hlt

#: case    POPA skips ESP
#: manual  SDM 2B POPA
#: mode    flat32
#: expect  esp = STACK, eax = 1, edi = 7
        mov     eax, 1
        mov     edi, 7
        pushad
        mov     dword ptr [esp + 12], 0x99
        xor     eax, eax
        popad
        hlt

#: case    TF traps once more after the last iteration of REP
#: manual  SDM 3B 17.3.1.4
#: mode    flat32
#: gate    1 = int32 CODE32:handler
#: expect  ebx = 4, ecx = 0
        mov     edi, DATA
        mov     ecx, 4
        push    TF | 2
        popfd
        rep stosb
after:  nop
        hlt
handler: inc    ebx
        cmp     dword ptr [esp], offset after
        je     stop
        iretd
stop:   hlt

#: case    TF traps after a taken jump with the target's address
#: manual  SDM 3B 17.3.1.4
#: mode    long
#: ends    #DB at target
        push    TF | 2
        popfq
        jmp     target
        nop
target: hlt

#: case    TF and a HLT: the trap is taken, the CPU doesn't wait
#: manual  SDM 2A HLT; 3B 17.3.1.4
#: mode    flat32
#: ends    #DB at after
        push    TF | 2
        popfd
        hlt
after:  nop

#: case    POPF that clears TF is still trapped
#: manual  SDM 3B 17.3.1.4
#: mode    flat32
#: ends    #DB at after
#: expect  frame.flags & TF = 0
        push    2
        push    TF | 2
        popfd
        popfd
after:  hlt

#: case    a debug exception keeps what DR6 said of BS
#: manual  SDM 3B 17.2.3
#: mode    flat32
#: set     dr6 = 0xffff4ff0, dr0 = fault, dr7 = 0x402
#: ends    #DB at fault
#: expect  dr6 & 0xf = 1, dr6 & 0x4000 = 0x4000
fault:  nop

#: case    MOV to DR6 keeps its fixed bits
#: manual  SDM 3B 17.2.3
#: mode    flat32
#: expect  dr6 & 0xffff1ff0 = 0xffff0ff0
        xor     eax, eax
        mov     dr6, eax
        hlt

#: case    ENTER with a nesting level copies frame pointers
#: manual  SDM 2A ENTER
#: mode    flat32
#: dword   DATA - 4 = 0x1111
#: set     ebp = DATA
#: expect  ebp = STACK - 4, esp = STACK - 12 - 8, dword(STACK - 4) = DATA, dword(STACK - 8) = 0x1111, dword(STACK - 12) = STACK - 4
        enter   8, 2
        hlt

#: case    an instruction breakpoint comes before the page fault of fetching the instruction
#: manual  SDM 3A table 6-2
#: mode    long
#: pte     DATA = 0
#: set     dr0 = DATA, dr7 = 0x402
#: ends    #DB
#: expect  dr6 & 0xf = 1, frame.ip = DATA
        mov     eax, DATA
        jmp     rax

#: case    an instruction that runs beyond its segment's limit is a #GP whatever page is there
#: manual  SDM 3A 6.15 interrupt 13
#: mode    paged32
#: gdt     SELECTORS = code32 limit=DATA+0xfff
#: byte    DATA + 0xffe = 0x90, 0xb8
#: pte     DATA + 0x1000 = 0
#: ends    #GP(0)
#: expect  frame.ip = DATA + 0xfff
        push    SELECTORS
        push    DATA + 0xffe
        retf

#: case    the immediates of EXTRQ are not fetched by a processor that lacks it
#: manual  SDM 3A 6.15 interrupt 6
#: mode    paged32
#: byte    DATA + 0xffc = 0x66, 0x0f, 0x78, 0xc1
#: pte     DATA + 0x1000 = 0
#: ends    #UD
#: expect  frame.ip = DATA + 0xffc
        mov     eax, DATA + 0xffc
        jmp     eax

#: case    its ModRM byte is fetched
#: manual  SDM 3A 6.15 interrupt 14
#: mode    paged32
#: byte    DATA + 0xffd = 0x66, 0x0f, 0x78
#: pte     DATA + 0x1000 = 0
#: ends    #PF(0)
#: expect  cr2 = DATA + 0x1000, frame.ip = DATA + 0xffd
        mov     eax, DATA + 0xffd
        jmp     eax
