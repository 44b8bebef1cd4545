# From one mode to another and back.

#: case    from real to protected mode, 16 and then 32 bits
#: manual  SDM 3A 9.9.1
#: mode    real
#: expect  cs = CODE32, ss = DATA32, eax = 0x12345678, cs.base = 0
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        .byte   0xea
        .word   half, CODE16
half:   mov     ax, DATA32
        mov     ss, ax
        .byte   0x66, 0xea
        .long   wide
        .word   CODE32
        .code32
wide:   mov     eax, 0x12345678
        hlt

#: case    after CR0.PE is set CS keeps its real-mode base until it is loaded
#: manual  SDM 3A 9.9.1
#: mode    real
#: ends    halt
#: expect  cs.base = 0x7000, cs = 0x700, cpl = 0
        .byte   0xea
        .word   5, 0x700
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        nop
        hlt

#: case    from real to long mode by way of protected mode, and out again
#: manual  SDM 3A 9.8.5
#: mode    real
#: qword   PML4 = PDPT | 7
#: expect  ebx = 0x31415926, efer & LMA = 0, cr0 & PG = 0, ecx = LMA
        cli
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        .byte   0x66, 0xea
        .long   wide
        .word   CODE32
        .code32
wide:   mov     eax, DATA32
        mov     ds, eax
        mov     ss, eax
        mov     eax, cr4
        or      eax, PAE
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xc0000080
        mov     eax, LME
        xor     edx, edx
        wrmsr
        mov     eax, cr0
        or      eax, PG
        mov     cr0, eax
        .byte   0xea
        .long   long
        .word   CODE64
        .code64
long:   mov     rbx, 0x3141592600000000
        shr     rbx, 32
        mov     ecx, 0xc0000080
        rdmsr
        push    rax
        push    CODE32
        push    offset compat
        rex.w retf
        .code32
compat: mov     eax, cr0
        and     eax, ~PG
        mov     cr0, eax
        mov     esi, ds:[STACK - 8]
        and     esi, LMA
        mov     ecx, esi
        hlt

#: case    from protected mode back to real mode
#: manual  SDM 3A 9.9.2
#: mode    flat32
#: expect  cs = 0, cr0 & PE = 0, ax = 7
        .byte   0xea
        .long   half
        .word   CODE16
        .code16
half:   mov     ax, DATA16
        mov     ss, ax
        mov     eax, cr0
        and     al, 0xfe
        mov     cr0, eax
        .byte   0xea
        .word   real, 0
real:   mov     ax, 7
        hlt

#: case    setting PG without PE
#: manual  SDM 2B MOV control registers
#: mode    real
#: ends    #GP at fault
        mov     eax, cr0
        or      eax, PG
fault:  mov     cr0, eax

#: case    setting NW without CD
#: manual  SDM 2B MOV control registers
#: mode    flat32
#: ends    #GP(0) at fault
        mov     eax, cr0
        or      eax, NW
fault:  mov     cr0, eax

#: case    setting a bit of CR0's upper half
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, cr0
        bts     rax, 32
fault:  mov     cr0, rax

#: case    undefined bits of CR0 are ignored and ET stays
#: manual  SDM 3A 2.5
#: mode    flat32
#: expect  cr0 = PE | 0x10
        mov     eax, PE | 1 << 7 | 1 << 20
        mov     cr0, eax
        hlt

#: case    clearing PG in 64-bit code
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, cr0
        btr     rax, 31
fault:  mov     cr0, rax

#: case    setting PG with LME and without PAE
#: manual  SDM 2B MOV control registers; 3A 9.8.5
#: mode    flat32
#: set     efer = LME
#: ends    #GP(0) at fault
        mov     eax, cr0
        or      eax, PG
fault:  mov     cr0, eax

#: case    setting PG with LME while CS has its L bit set
#: manual  SDM 3A 9.8.5
#: mode    flat32
#: set     efer = LME, cr4 |= PAE, cs.attributes |= 0x2000
#: ends    #GP(0) at fault
        mov     eax, cr0
        or      eax, PG
fault:  mov     cr0, eax

#: case    setting PG with PAE and a bad PDPTE
#: manual  SDM 3A 4.4.1
#: mode    flat32
#: set     cr4 |= PAE, cr3 = SPARE
#: qword   SPARE = PD | P | RW
#: ends    #GP(0) at fault
        mov     eax, cr0
        or      eax, PG
fault:  mov     cr0, eax

#: case    clearing CR4.PAE in long mode
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, cr4
        btr     rax, 5
fault:  mov     cr4, rax

#: case    setting a reserved bit of CR4
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, cr4
        bts     rax, 31
fault:  mov     cr4, rax

#: case    setting CR4.PCIDE outside long mode
#: manual  SDM 2B MOV control registers
#: mode    pae
#: ends    #GP(0) at fault
        mov     eax, cr4
        or      eax, PCIDE
fault:  mov     cr4, eax

#: case    clearing PG while CR4.PCIDE is set
#: manual  SDM 2B MOV control registers
#: mode    compat
#: set     cr4 |= PCIDE
#: ends    #GP(0) at fault
        mov     eax, cr0
        and     eax, ~PG
fault:  mov     cr0, eax

#: case    changing EFER.LME with paging on
#: manual  SDM 3A 2.2.1
#: mode    pae
#: ends    #GP(0) at fault
        mov     ecx, 0xc0000080
        mov     eax, LME | NXE
        xor     edx, edx
fault:  wrmsr

#: case    a reserved bit of EFER
#: manual  SDM 2B WRMSR; 3A 2.2.1
#: mode    long
#: ends    #GP(0) at fault
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 2
fault:  wrmsr

#: case    CR1 and CR5 are undefined
#: manual  SDM 2B MOV control registers
#: mode    flat32
#: ends    #UD at fault
fault:  .byte   0x0f, 0x20, 0xc8        # mov eax, cr1

#: case    MOV of CR8 with reserved bits
#: manual  SDM 3A 10.8.6
#: mode    long
#: ends    #GP(0) at fault
#: expect  rbx = 5
        mov     eax, 5
        mov     cr8, rax
        mov     rbx, cr8
        mov     eax, 16
fault:  mov     cr8, rax

#: case    control registers belong to ring 0
#: manual  SDM 2B MOV control registers
#: mode    long user
#: ends    #GP(0) at fault
fault:  mov     rax, cr0

#: case    LMSW sets PE and can't clear it
#: manual  SDM 2A LMSW
#: mode    flat32
#: expect  cr0 & 0xf = PE | TS
        mov     ax, TS
        lmsw    ax
        hlt

#: case    code in compatibility mode has 32-bit addresses
#: manual  SDM 1 3.3.7
#: mode    compat
#: dword   DATA = 0x99
#: expect  eax = 0x99
        mov     ebx, 0xfffffff0
        mov     eax, ds:[ebx + DATA + 0x10]
        hlt

#: case    a 32-bit write of a register in 64-bit mode clears its upper half, a 16-bit one doesn't
#: manual  SDM 1 3.4.1.1
#: mode    long
#: set     rax = -1, rbx = -1
#: expect  rax = 1, rbx = 0xffffffffffff0001
        mov     eax, 1
        mov     bx, 1
        hlt
