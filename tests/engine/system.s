# Instructions about segments, MSRs, ports, flags; what is undefined.

#: case    LAR gives the access rights and sets ZF
#: manual  SDM 2A LAR
#: mode    flat32
#: expect  eax = 0x00cf9300, zf = 1
        mov     ecx, DATA32
        lar     eax, ecx
        hlt

#: case    LAR of what may not be seen clears ZF and leaves the register
#: manual  SDM 2A LAR
#: mode    flat32 user
#: ends    #GP(0) at done
#: expect  eax = 5, frame.flags & ZF = 0
        mov     eax, 5
        mov     ecx, DATA32
        lar     eax, ecx
done:   hlt

#: case    LAR knows call gates, LSL doesn't
#: manual  SDM 2A LAR, LSL
#: mode    flat32
#: gdt     SELECTORS = callgate32 CODE32:0 dpl=3
#: expect  bl = 1, zf = 0
        mov     ecx, SELECTORS
        lar     eax, ecx
        setz    bl
        lsl     eax, ecx
        hlt

#: case    LAR of an interrupt gate
#: manual  SDM 2A LAR
#: mode    flat32
#: gdt     SELECTORS = int32 CODE32:0
#: expect  zf = 0
        mov     ecx, SELECTORS
        lar     eax, ecx
        hlt

#: case    LSL applies the granularity
#: manual  SDM 2A LSL
#: mode    flat32
#: gdt     SELECTORS = data16 limit=0x123
#: expect  eax = 0xffffffff, ebx = 0x123, zf = 1
        mov     ecx, DATA32
        lsl     eax, ecx
        mov     ecx, SELECTORS
        lsl     ebx, ecx
        hlt

#: case    LSL of null and of what is beyond the table
#: manual  SDM 2A LSL
#: mode    flat32
#: expect  bl = 0, zf = 0
        xor     ecx, ecx
        lsl     eax, ecx
        setz    bl
        mov     ecx, 0xfff8
        lsl     eax, ecx
        hlt

#: case    VERR and VERW of code and read-only data
#: manual  SDM 2B VERR
#: mode    flat32
#: gdt     SELECTORS = code32 execute-only
#: gdt     SELECTORS + 8 = data32 read-only
#: expect  al = 0, bl = 1, cl = 0, dl = 1
        mov     esi, SELECTORS
        verr    si
        setz    al
        mov     esi, SELECTORS + 8
        verr    si
        setz    bl
        verw    si
        setz    cl
        mov     esi, DATA32
        verw    si
        setz    dl
        hlt

#: case    ARPL raises the RPL and sets ZF
#: manual  SDM 2A ARPL
#: mode    flat32
#: expect  bl = 1, cl = 0, ax = 0x13
        mov     eax, 0x10
        mov     edx, 3
        arpl    ax, dx
        setz    bl
        arpl    ax, dx
        setz    cl
        hlt

#: case    SMSW, SLDT, STR, SGDT and SIDT are open to ring 3
#: manual  SDM 2B SLDT, STR
#: mode    flat32 user
#: ends    #GP(0) at done
#: expect  ebx = LDTR, ecx = TR, dword(SCRATCH + 2) = GDT
        sldt    ebx
        str     ecx
        sgdt    ds:[SCRATCH]
done:   hlt

#: case    UMIP keeps ring 3 from SGDT
#: manual  SDM 2B SGDT; 3A 2.5
#: mode    flat32 user
#: set     cr4 |= UMIP
#: ends    #GP(0) at fault
fault:  sgdt    ds:[SCRATCH]

#: case    UMIP keeps ring 3 from SMSW
#: manual  SDM 2B SMSW; 3A 2.5
#: mode    long user
#: set     cr4 |= UMIP
#: ends    #GP(0) at fault
fault:  smsw    eax

#: case    UMIP doesn't bind ring 0
#: manual  SDM 2B STR; 3A 2.5
#: mode    long
#: set     cr4 |= UMIP
#: expect  eax = TR
        str     eax
        hlt

#: case    LGDT of a base that isn't canonical
#: manual  SDM 2A LGDT
#: mode    long
#: qword   SCRATCH + 2 = 1 << 47
#: ends    #GP(0) at fault
fault:  lgdt    [SCRATCH]

#: case    RDMSR of what doesn't exist
#: manual  SDM 2B RDMSR
#: mode    long
#: ends    #GP(0) at fault
        mov     ecx, 0x12345678
fault:  rdmsr

#: case    RDMSR in ring 3
#: manual  SDM 2B RDMSR
#: mode    long user
#: ends    #GP(0) at fault
        mov     ecx, 0xc0000080
fault:  rdmsr

#: case    WRMSR of an address that isn't canonical
#: manual  SDM 2B WRMSR
#: mode    long
#: ends    #GP(0) at fault
        mov     ecx, 0xc0000082
        xor     eax, eax
        mov     edx, 0x8000
fault:  wrmsr

#: case    WRMSR of a memory type that PAT doesn't know
#: manual  SDM 3A 11.12.4
#: mode    long
#: ends    #GP(0) at fault
        mov     ecx, 0x277
        mov     eax, 2
        xor     edx, edx
fault:  wrmsr

#: case    WRFSBASE with CR4.FSGSBASE
#: manual  SDM 2B WRFSBASE
#: mode    long user
#: set     cr4 |= FSGSBASE
#: ends    #GP(0) at done
#: expect  fs.base = 0xffff800000001234
        mov     rax, 0xffff800000001234
        wrfsbase rax
done:   hlt

#: case    WRFSBASE without CR4.FSGSBASE
#: manual  SDM 2B WRFSBASE
#: mode    long
#: ends    #UD at fault
fault:  wrfsbase rax

#: case    WRGSBASE of an address that isn't canonical
#: manual  SDM 2B WRFSBASE
#: mode    long
#: set     cr4 |= FSGSBASE, rax = 1 << 60
#: ends    #GP(0) at fault
fault:  wrgsbase rax

#: case    RDTSC in ring 3 with CR4.TSD
#: manual  SDM 2B RDTSC
#: mode    long user
#: set     cr4 |= TSD
#: ends    #GP(0) at fault
fault:  rdtsc

#: case    XSETBV without x87's bit
#: manual  SDM 2D XSETBV
#: mode    long
#: ends    #GP(0) at fault
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, 6
fault:  xsetbv

#: case    XSETBV of AVX without SSE
#: manual  SDM 2D XSETBV
#: mode    long
#: ends    #GP(0) at fault
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, 5
fault:  xsetbv

#: case    XSETBV of another register
#: manual  SDM 2D XSETBV
#: mode    long
#: ends    #GP(0) at fault
        mov     ecx, 1
        xor     edx, edx
        mov     eax, 7
fault:  xsetbv

#: case    XSETBV in ring 3
#: manual  SDM 2D XSETBV
#: mode    long user
#: ends    #GP(0) at fault
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, 7
fault:  xsetbv

#: case    XSETBV without CR4.OSXSAVE
#: manual  SDM 2D XSETBV
#: mode    long
#: set     cr4 &= ~OSXSAVE
#: ends    #UD at fault
fault:  xsetbv

#: case    XSETBV and XGETBV
#: manual  SDM 2D XSETBV
#: mode    long
#: expect  xcr0 = 3, eax = 3, edx = 0
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, 3
        xsetbv
        mov     edx, 5
        xgetbv
        hlt

#: case    XGETBV in a loop tells the guest's XCR0, not the host's
#: manual  SDM 2D XGETBV
#: mode    long
#: expect  xcr0 = 3, eax = 3, edx = 0, ebx = 30
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, 3
        xsetbv
        xor     ebx, ebx
        mov     edi, 10
again:  mov     esi, 1
        mov     edx, 5
        xor     ecx, ecx
        xgetbv
        add     ebx, eax
        dec     edi
        jnz     again
        hlt

#: case    XGETBV of register 1 in a loop tells what is in use
#: manual  SDM 1 13.6
#: mode    long
#: expect  eax = 2, edx = 0, ebx = 10
        fninit
        mov     edi, 10
        xor     ebx, ebx
again:  pcmpeqd xmm1, xmm1
        mov     ecx, 1
        xgetbv
        and     eax, 3
        cmp     eax, 2
        sete    cl
        movzx   ecx, cl
        add     ebx, ecx
        dec     edi
        jnz     again
        hlt

#: case    I/O with IOPL below CPL goes by the permission bitmap
#: manual  SDM 1 18.5.2
#: mode    long user
#: byte    TSS + 0x88 + 0x10 = 0xfc
#: port    0x80 = 0x1234
#: ends    #GP(0) at fault
#: expect  al = 0x34, outs(0x81) = 1, ins(0x80) = 1
        in      al, 0x80
        out     0x81, al
fault:  in      ax, 0x81

#: case    I/O with the bitmap beyond the TSS's limit
#: manual  SDM 1 18.5.2
#: mode    long user
#: word    TSS + 102 = 0x109
#: ends    #GP(0) at fault
fault:  in      al, 0

#: case    I/O with IOPL 3 needs no bitmap
#: manual  SDM 1 18.5.1
#: mode    long user
#: set     rflags |= IOPL
#: ends    #GP(0) at done
#: expect  out(0x3f8) = 0x41
        mov     dx, 0x3f8
        mov     al, 0x41
        out     dx, al
done:   hlt

#: case    REP OUTSB sends each byte
#: manual  SDM 2B OUTS
#: mode    long
#: byte    DATA = 1, 2, 3
#: expect  outs(0x80) = 3, out(0x80) = 3, rsi = DATA + 3, ecx = 0
        mov     esi, DATA
        mov     ecx, 3
        mov     dx, 0x80
        rep outsb
        hlt

#: case    REP INSB into a page that isn't there
#: manual  SDM 2A INS
#: mode    long
#: pte     DATA = 0
#: ends    #PF(2) at fault
#: expect  ecx = 3, rdi = DATA
        mov     edi, DATA
        mov     ecx, 3
        mov     dx, 0x80
fault:  rep insb

#: case    CLI with IOPL below CPL
#: manual  SDM 2A CLI
#: mode    flat32 user
#: ends    #GP(0) at fault
fault:  cli

#: case    with CR4.PVI ring 3's CLI and STI change VIF
#: manual  SDM 3B 20.4
#: mode    flat32 user
#: set     cr4 |= PVI
#: ends    #GP(0) at done
#: expect  frame.flags & (VIF | IF) = VIF
        sti
done:   hlt

#: case    POPF in ring 3 leaves IF and IOPL and takes TF, NT, AC and ID
#: manual  SDM 2B POPF
#: mode    flat32 user
#: ends    #GP(0) at done
#: expect  frame.flags & ~RF = AC | ID | NT | 2
        push    AC | ID | NT | IOPL | IF | 2
        popfd
done:   hlt

#: case    POPF in ring 0 takes neither VM nor RF
#: manual  SDM 2B POPF
#: mode    flat32
#: expect  vm = 0, rf = 0, iopl = 3
        push    VM | RF | IOPL | 2
        popfd
        hlt

#: case    PUSHF shows VM and RF clear
#: manual  SDM 2B PUSHF
#: mode    flat32
#: expect  eax = 2
        pushfd
        pop     eax
        hlt

#: case    UD2
#: manual  SDM 2B UD
#: mode    long
#: ends    #UD at fault
fault:  ud2

#: case    UD1 with a memory operand
#: manual  SDM 2B UD
#: mode    long
#: ends    #UD at fault
fault:  .byte   0x0f, 0xb9, 0x00

#: case    UD0
#: manual  SDM 2B UD
#: mode    long
#: ends    #UD at fault
fault:  .byte   0x0f, 0xff, 0xc0

#: case    LOCK on an instruction without a memory destination
#: manual  SDM 2A LOCK
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xf0, 0x01, 0xc0        # lock add eax, eax

#: case    LOCK on an instruction that can't be locked
#: manual  SDM 2A LOCK
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xf0, 0x89, 0x03        # lock mov [rbx], eax

#: case    LOCK on a comparison
#: manual  SDM 2A LOCK
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xf0, 0x39, 0x03        # lock cmp [rbx], eax

#: case    LOCK on NOP
#: manual  SDM 2A LOCK
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xf0, 0x90

#: case    PUSH ES and DAA are undefined in 64-bit mode
#: manual  SDM 2D table A-2
#: mode    long
#: ends    #UD at fault
fault:  .byte   0x06

#: case    SALC is no instruction in 64-bit mode
#: manual  SDM 2D table A-2
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xd6

#: case    an undefined group member
#: manual  SDM 2D table A-6
#: mode    long
#: ends    #UD at fault
fault:  .byte   0xc6, 0xc8, 0x00        # group 11, /1

#: case    LES is VEX in 64-bit mode, and BOUND is EVEX; neither with a legacy prefix
#: manual  SDM 2A 2.3.2
#: mode    long
#: ends    #UD at fault
fault:  .byte   0x66, 0xc5, 0xf8, 0x58, 0xc1

#: case    CMPXCHG16B of an unaligned operand
#: manual  SDM 2A CMPXCHG8B
#: mode    long
#: ends    #GP(0) at fault
fault:  cmpxchg16b [DATA + 8]

#: case    HLT in ring 3
#: manual  SDM 2A HLT
#: mode    long user
#: ends    #GP(0) at fault
fault:  hlt

#: case    an instruction of exactly 15 bytes
#: manual  SDM 2A 2.3.11
#: mode    long
#: expect  rip = done + 1
        .byte   0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
done:   hlt

#: case    16 bytes are too many, and that is found before the rest is fetched
#: manual  SDM 2A 2.3.11
#: mode    long
#: pte     0x8000 = 0
#: ends    #GP(0) at fault
        jmp     fault
        .org    0x1000 - 15
fault:  .rept   15
        .byte   0x66
        .endr

#: case    RDPMC in ring 3 without CR4.PCE
#: manual  SDM 2B RDPMC
#: mode    long user
#: ends    #GP(0) at fault
fault:  rdpmc

#: case    INVLPG in ring 3
#: manual  SDM 2A INVLPG
#: mode    long user
#: ends    #GP(0) at fault
fault:  invlpg  [DATA]

#: case    INVLPG of a register is undefined
#: manual  SDM 2A INVLPG
#: mode    long
#: ends    #UD at fault
fault:  .byte   0x0f, 0x01, 0xff

#: case    INVLPG of an address that isn't canonical does nothing
#: manual  SDM 2A INVLPG
#: mode    long
#: set     rbx = 1 << 60
        invlpg  [rbx]
        hlt

#: case    WBINVD in ring 3
#: manual  SDM 2D WBINVD
#: mode    flat32 user
#: ends    #GP(0) at fault
fault:  wbinvd

#: case    STAC in ring 3
#: manual  SDM 2B STAC
#: mode    long user
#: ends    #UD at fault
fault:  stac

#: case    RDPKRU without CR4.PKE
#: manual  SDM 2B RDPKRU
#: mode    long
#: ends    #UD at fault
fault:  rdpkru

#: case    RDPKRU with ECX other than 0
#: manual  SDM 2B RDPKRU
#: mode    long
#: set     cr4 |= PKE
#: ends    #GP(0) at fault
        mov     ecx, 1
fault:  rdpkru

#: case    WRPKRU with EDX other than 0
#: manual  SDM 2D WRPKRU
#: mode    long
#: set     cr4 |= PKE
#: ends    #GP(0) at fault
        mov     edx, 1
fault:  wrpkru

#: case    XGETBV of a register that isn't there
#: manual  SDM 2D XGETBV
#: mode    long
#: ends    #GP(0) at fault
        mov     ecx, 7
fault:  xgetbv

#: case    FXSAVE to an unaligned address
#: manual  SDM 2A FXSAVE
#: mode    long
#: ends    #GP(0) at fault
fault:  fxsave  [DATA + 8]

#: case    XSAVE to an address that isn't aligned to 64
#: manual  SDM 2D XSAVE
#: mode    long
#: ends    #GP(0) at fault
        mov     eax, 7
        xor     edx, edx
fault:  xsave   [DATA + 32]

#: case    XRSTOR of a header with reserved bytes
#: manual  SDM 2D XRSTOR
#: mode    long
#: qword   DATA + 512 + 16 = 1
#: ends    #GP(0) at fault
        mov     eax, 7
        xor     edx, edx
fault:  xrstor  [DATA]

#: case    VMX instructions without VMX
#: manual  SDM 3C 30
#: mode    long
#: ends    #UD at fault
fault:  vmcall

#: case    RSM outside SMM
#: manual  SDM 2B RSM
#: mode    long
#: ends    #UD at fault
fault:  rsm

#: case    CMPXCHG8B with a register is undefined
#: manual  SDM 2A CMPXCHG8B
#: mode    flat32
#: ends    #UD at fault
fault:  .byte   0x0f, 0xc7, 0xc8

#: case    LOCK CMPXCHG8B with a register is undefined and does not hang
#: manual  SDM 2A CMPXCHG8B
#: mode    flat32
#: ends    #UD at fault
fault:  .byte   0xf0, 0x0f, 0xc7, 0xc8

#: case    a locked addition across pages
#: manual  SDM 3A 8.1.2
#: mode    long
#: pte     DATA + 0x1000 = SPARE | 7
#: dword   DATA + 0xffc = 0xff000000
#: expect  byte(DATA + 0xfff) = 0, byte(SPARE) = 1
        lock add dword ptr [DATA + 0xfff], 1
        hlt

#: case    a locked addition whose second page is read-only changes nothing
#: manual  SDM 3A 8.1.2, 6.5
#: mode    long
#: pte     DATA + 0x1000 = SPARE | P | US
#: dword   DATA + 0xffc = 0xff000000
#: ends    #PF(3) at fault
#: expect  byte(DATA + 0xfff) = 0xff, cr2 = DATA + 0x1000
fault:  lock add dword ptr [DATA + 0xfff], 1

#: case    a read-modify-write of a read-only page is a write fault
#: manual  SDM 3A 4.7
#: mode    long
#: pte     DATA = DATA | P | US
#: ends    #PF(3) at fault
fault:  add     dword ptr [DATA], 1

#: case    XCHG with memory that faults changes neither operand
#: manual  SDM 2D XCHG; 3A 6.5
#: mode    long
#: pte     DATA = DATA | P | US
#: ends    #PF(3) at fault
#: expect  eax = 5
        mov     eax, 5
fault:  xchg    [DATA], eax

#: case    MOVS with DF set across pages
#: manual  SDM 2B MOVS
#: mode    long
#: pte     DATA = 0
#: ends    #PF(2) at fault
#: expect  rcx = 2, rdi = DATA + 0xffc, cr2 = DATA + 0xffc
        std
        mov     esi, SCRATCH + 0x100
        mov     edi, DATA + 0x1004
        mov     ecx, 4
fault:  rep movsd

#: case    REP with ECX 0 touches nothing
#: manual  SDM 2B REP
#: mode    long
#: pte     DATA = 0
#: expect  rdi = DATA
        mov     edi, DATA
        xor     ecx, ecx
        rep stosd
        hlt

#: case    REP MOVS with 32-bit addresses in 64-bit mode clears the upper halves
#: manual  SDM 2B REP; 1 3.7.5
#: mode    long
#: set     rcx = 0x500000002, rdi = 0x700000000 + DATA, rsi = SCRATCH
#: expect  rcx = 0, rdi = DATA + 2
        rep movsb es:[edi], ds:[esi]
        hlt

#: case    SYSCALL and SYSENTER in real mode
#: manual  SDM 2B SYSENTER
#: mode    real
#: ends    #GP at fault
fault:  sysenter

#: case    LEAVE with a bad frame pointer leaves RSP
#: manual  SDM 2A LEAVE
#: mode    long
#: pte     DATA = 0
#: ends    #PF(0) at fault
#: expect  frame.sp = STACK, rbp = DATA
        mov     ebp, DATA
fault:  leave

#: case    IRET to a 16-bit stack from ring 0 loads SP
#: manual  SDM 2A IRET
#: mode    flat32
#: ends    #GP(0) at outer
#: expect  frame.ss = UDATA16, frame.sp & 0xffff = 0x8000
        push    UDATA16
        push    0x8000
        push    2
        push    USER32
        push    offset outer
        iretd
outer:  hlt

#: case    MWAIT and MONITOR in ring 3
#: manual  SDM 2B MONITOR
#: mode    long user
#: ends    #UD at fault
fault:  monitor

#: case    PUSH of a segment register in 64-bit mode moves RSP by 8
#: manual  SDM 2B PUSH
#: mode    long
#: set     fs = 0x1234
#: expect  rsp = STACK - 8, word(STACK - 8) = 0x1234
        push    fs
        hlt

#: case    ENTER's look at the new top of the stack hits no breakpoint
#: manual  SDM 2A ENTER; 3B 17.2.4
#: mode    flat32
#: set     dr0 = STACK - 20, dr7 = 0x402 | 0xd << 16
#: expect  esp = STACK - 20, ebp = STACK - 4, dr6 & 0xf = 0
        enter   16, 0
        hlt

#: case    ENTER's push hits one
#: manual  SDM 2A ENTER; 3B 17.2.4
#: mode    flat32
#: set     dr0 = STACK - 4, dr7 = 0x402 | 0xd << 16
#: ends    #DB at after
#: expect  dr6 & 0xf = 1, ebp = STACK - 4
        enter   16, 0
after:  hlt
