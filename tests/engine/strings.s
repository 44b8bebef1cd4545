# String instructions: whole pages at once and element by element must look the same.

#: case    MOVS of each width moves its bytes and advances by as many
#: manual  SDM 2B MOVS
#: mode    long
#: qword   SCRATCH = 0x1122334455667788, 0x99aabbccddeeff00
#: expect  rsi = SCRATCH + 15, rdi = DATA + 15, qword(DATA) = 0x1122334455667788, qword(DATA + 7) = 0xaabbccddeeff0011
        mov     esi, SCRATCH
        mov     edi, DATA
        movsb
        movsw
        movsd
        movsq
        hlt

#: case    MOVS with DF set goes down
#: manual  SDM 2B MOVS
#: mode    long
#: qword   SCRATCH = 0x1122334455667788, 0x99aabbccddeeff00
#: expect  rsi = SCRATCH + 8 - 15, rdi = DATA + 8 - 15, df = 1
#: expect  qword(DATA + 8) = 0x99aabbccddeeff00, dword(DATA) = 0x55667788, dword(DATA - 4) = 0
        std
        mov     esi, SCRATCH + 8
        mov     edi, DATA + 8
        movsq
        lea     rsi, [rsi + 4]
        lea     rdi, [rdi + 4]
        lea     rsi, [rsi - 4]
        lea     rdi, [rdi - 4]
        movsd
        movsw
        movsb
        hlt

#: case    STOS and LODS of each width
#: manual  SDM 2B STOS, 2A LODS
#: mode    long
#: set     rax = 0x1122334455667788
#: expect  qword(DATA) = 0x8855667788778888, dword(DATA + 7) = 0x55667788, rdi = DATA + 15
#: expect  rbx = 0x1122334455667777, rbp = 0x1122334455667788, rcx = 0x55667788, rdx = 0x5566778811223344, rsi = DATA + 15
        mov     edi, DATA
        stosb
        stosw
        stosd
        stosq
        mov     esi, DATA
        lodsb
        lea     rbx, [rax - 0x11]
        lodsw
        mov     rbp, rax
        lodsd
        mov     rcx, rax
        lodsq
        rorx    rdx, rax, 32
        hlt

#: case    SCAS subtracts memory from the accumulator
#: manual  SDM 2B SCAS
#: mode    long
#: set     rax = 0x8000000080008080
#: qword   DATA = 0x0180018000000180, 0x8000000080008081
#: expect  bl = 0x46, bh = 0x82, cl = 0x97, rdi = DATA + 16
        mov     edi, DATA + 0
        scasb                           # 0x80 - 0x80
        lahf
        mov     bl, ah
        mov     ah, 0x80
        inc     rdi
        scasw                           # 0x8080 - 0
        lahf
        mov     bh, ah
        mov     ah, 0x80
        scasd                           # 0x80008080 - 0x01800180
        mov     edi, DATA + 8
        scasq
        lahf
        mov     cl, ah
        hlt

#: case    CMPS subtracts what RDI points to from what RSI points to
#: manual  SDM 2A CMPS
#: mode    flat32
#: dword   DATA = 5, 0x80000000
#: dword   DATA + 0x1000 = 7, 1
#: expect  bl = 0x93, of = 1, sf = 0, zf = 0, cf = 0, esi = DATA + 8, edi = DATA + 0x1008
        mov     esi, DATA
        mov     edi, DATA + 0x1000
        cmpsd
        lahf
        mov     bl, ah
        cmpsd
        hlt

#: case    CMPS of a byte, a word and a quadword
#: manual  SDM 2A CMPS
#: mode    long user
#: qword   DATA = 0x1122334455667788, 0x99
#: qword   DATA + 0x1000 = 0x1122334455667788, 0x99
#: ends    #GP(0) at end
#: expect  bl = 1, bh = 1, cl = 1, rsi = DATA + 11, rdi = DATA + 0x100b
        mov     esi, DATA
        mov     edi, DATA + 0x1000
        cmpsb
        sete    bl
        cmpsw
        sete    bh
        cmpsq
        sete    cl
end:    hlt

#: case    elements that lie in two pages of either side
#: manual  SDM 2B MOVS
#: mode    long
#: qword   DATA + 0xffc = 0x1122334455667788
#: qword   DATA + 0x1400 = 0x99aabbccddeeff00
#: expect  qword(DATA + 0x5000) = 0x1122334455667788, qword(DATA + 0x5ffe) = 0x99aabbccddeeff00
        mov     esi, DATA + 0xffc
        mov     edi, DATA + 0x5000
        movsq
        mov     esi, DATA + 0x1400
        mov     edi, DATA + 0x5ffe
        movsq
        hlt

#: case    MOVS whose target is missing moves nothing
#: manual  SDM 3A 6.15 interrupt 14
#: mode    long user
#: pte     DATA + 0x1000 = 0
#: ends    #PF(6) at fault
#: expect  cr2 = DATA + 0x1ffe, rsi = SCRATCH, rdi = DATA + 0x1ffe, rcx = 1
        mov     ecx, 1
        mov     esi, SCRATCH
        mov     edi, DATA + 0x1ffe
        std
fault:  movsd

#: case    CMPS reports the fault at RDI first
#: manual  SDM 2A CMPS
#: mode    long
#: pte     DATA = 0
#: pte     DATA + 0x1000 = 0
#: ends    #PF(0) at fault
#: expect  cr2 = DATA + 0x1000, pte(SCRATCH) & 0x60 = 0x60
        mov     esi, DATA
        mov     edi, DATA + 0x1000
fault:  cmpsb

#: case    MOVS from a missing page leaves its target's page clean
#: manual  SDM 3A 4.8
#: mode    long
#: pte     DATA = 0
#: pte     DATA + 0x1000 &= ~0x60
#: ends    #PF(0) at fault
#: expect  cr2 = DATA, pte(DATA + 0x1000) & 0x60 = 0
        mov     esi, DATA
        mov     edi, DATA + 0x1000
        mov     ecx, 5
fault:  rep movsb

#: case    an address that isn't canonical is no other address
#: manual  SDM 1 3.3.7.1
#: mode    long
#: set     rdi = 0x10000000020000
#: ends    #GP(0) at fault
#: expect  rdi = 0x10000000020000, byte(DATA) = 1, byte(DATA + 1) = 0
        mov     byte ptr [DATA], 1
        mov     al, 9
fault:  stosb

#: case    the same source in MOVS
#: manual  SDM 1 3.3.7.1
#: mode    long
#: set     rsi = 0x10000000020000, rdi = DATA
#: ends    #GP(0) at fault
#: expect  rsi = 0x10000000020000, rdi = DATA, byte(DATA) = 1
        mov     byte ptr [DATA], 1
fault:  movsb

#: case    with REP, too
#: manual  SDM 1 3.3.7.1
#: mode    long
#: set     rdi = 0x10000000020000, rcx = 3, rax = 9
#: ends    #GP(0) at fault
#: expect  rdi = 0x10000000020000, rcx = 3, byte(DATA) = 1, byte(DATA + 1) = 0
        mov     byte ptr [DATA], 1
fault:  rep stosb

#: case    REP MOVS between pages at different offsets
#: manual  SDM 2B REP
#: mode    long
#: budget  50000
#: expect  rcx = 0, rsi = DATA + 0x2fff, rdi = DATA + 0x8123 + 0x2ffe, ebx = 0, edx = 0x2ffe
        mov     edi, DATA
        mov     ecx, 0x600
        mov     eax, 0x01020304
fill:   stosq
        imul    eax, eax, 0x01010101
        lea     eax, [rax + rcx]
        dec     ecx
        jnz     fill
        mov     esi, DATA + 1
        mov     edi, DATA + 0x8123
        mov     ecx, 0x2ffe
        rep movsb
        push    rsi
        push    rdi
        # Compared with instructions that have no repetition.
        xor     ebx, ebx
        xor     edx, edx
        mov     eax, DATA + 1
again:  mov     r8d, [rax]
        cmp     r8d, [rax + 0x8122]
        setne   r8b
        movzx   r8d, r8b
        add     ebx, r8d
        add     eax, 4
        add     edx, 4
        cmp     edx, 0x2ffc
        jb      again
        movzx   r8d, word ptr [rax]
        xor     r8w, [rax + 0x8122]
        movzx   r8d, r8w
        add     ebx, r8d
        add     edx, 2
        pop     rdi
        pop     rsi
        hlt

#: case    REP MOVSQ with elements across pages
#: manual  SDM 2B REP
#: mode    long
#: qword   DATA + 0xffd = 0x1122334455667788, 0x99aabbccddeeff00
#: qword   DATA + 0x1ffd = 0x123456789abcdef0
#: expect  rcx = 0, rsi = DATA + 0x2ffd + 0x48, rdi = DATA + 0x7ffb + 0x48
#: expect  qword(DATA + 0x5ffb) = 0x1122334455667788, qword(DATA + 0x6003) = 0x99aabbccddeeff00
#: expect  qword(DATA + 0x6ffb) = 0x123456789abcdef0
        mov     esi, DATA + 5
        mov     edi, DATA + 0x5003
        mov     ecx, 0x608
        rep movsq
        hlt

#: case    REP MOVS down
#: manual  SDM 2B REP
#: mode    long
#: qword   DATA = 0x1122334455667788
#: qword   DATA + 0x1ff8 = 0x99aabbccddeeff00
#: expect  rcx = 0, rsi = DATA - 8, rdi = DATA + 0x2ff8
#: expect  qword(DATA + 0x3000) = 0x1122334455667788, qword(DATA + 0x4ff8) = 0x99aabbccddeeff00
        mov     esi, DATA + 0x1ff8
        mov     edi, DATA + 0x4ff8
        mov     ecx, 0x400
        std
        rep movsq
        hlt

#: case    REP MOVS down between pages at different offsets
#: manual  SDM 2B REP
#: mode    pae
#: word    DATA + 0x1ffd = 0x1234
#: word    DATA + 0xffe = 0x5678
#: expect  ecx = 0, esi = DATA - 1, edi = DATA + 0x4fb7, word(DATA + 0x6fb5) = 0x1234, word(DATA + 0x5fb6) = 0x5678
#: expect  byte(DATA + 0x4fb8) = 0x9a, byte(DATA + 0x4fb7) = 0
        mov     byte ptr ds:[DATA], 0x9a
        mov     esi, DATA + 0x1fff
        mov     edi, DATA + 0x6fb7
        mov     ecx, 0x2000
        std
        rep movsb
        hlt

#: case    REP MOVSD down with elements across pages
#: manual  SDM 2B REP
#: mode    long
#: qword   DATA + 0xffc = 0x1122334455667788
#: qword   DATA + 0x1ffe = 0x99aabbccddeeff00
#: expect  ecx = 0, rsi = DATA - 2, rdi = DATA + 0x5ffc
#: expect  qword(DATA + 0x6ffa) = 0x1122334455667788, qword(DATA + 0x7ffc) = 0x99aabbccddeeff00
        mov     esi, DATA + 0x2002
        mov     edi, DATA + 0x8000
        mov     ecx, 0x801
        std
        rep movsd
        hlt

#: case    REP MOVS down over itself
#: manual  SDM 2B REP
#: mode    long
#: qword   DATA + 0xff9 = 0x1122334455667788
#: expect  qword(DATA + 0xffc) = 0x1122334455667788, ecx = 0, word(DATA + 0xffa) = 0x77
        mov     esi, DATA + 0x1000
        mov     edi, DATA + 0x1003
        mov     ecx, 9
        std
        rep movsb
        hlt

#: case    REP STOS down into a missing page
#: manual  SDM 2B REP
#: mode    long
#: pte     DATA + 0x1000 = 0
#: set     rax = 0x0101010101010101
#: ends    #PF(2) at fault
#: expect  rcx = 2, rdi = DATA + 0x1ff8, cr2 = DATA + 0x1ff8, qword(DATA + 0x2000) = 0x0101010101010101
        mov     edi, DATA + 0x2010
        mov     ecx, 5
        std
fault:  rep stosq

#: case    REPNE SCAS and REPE CMPS down
#: manual  SDM 2B REP
#: mode    long
#: word    DATA + 0x800 = 0x1234
#: expect  ebx = 0x1000 - 0xc00, ebp = DATA + 0x7fe, dl = 1, rcx = 0x1000 - 0xc00, rsi = DATA + 0x7fe, rdi = DATA + 0x47fe
#: expect  zf = 0, cf = 0, sf = 0
        mov     edi, DATA + 0x1ffe
        mov     ecx, 0x1000
        mov     eax, 0x1234
        std
        repne scasw
        mov     rbx, rcx
        mov     rbp, rdi
        sete    dl
        mov     esi, DATA + 0x1ffe
        mov     edi, DATA + 0x5ffe
        mov     ecx, 0x1000
        repe cmpsw
        hlt

#: case    REP MOVS over itself at each distance
#: manual  SDM 2B REP
#: mode    long
#: expect  qword(DATA + 0x100) = 0x3231353433323130, qword(DATA + 0x108) = 0x3534333231353433, word(DATA + 0x110) = 0x3231
#: expect  qword(DATA + 0x200) = 0x3635373635343332, qword(DATA + 0x208) = 0x3837003837363837
        mov     rax, 0x3736353433323130
        mov     [DATA + 0x100], rax
        # Five bytes further, then doublewords three bytes further.
        lea     rsi, [DATA + 0x101]
        lea     rdi, [DATA + 0x106]
        mov     ecx, 12
        rep movsb
        mov     rax, 0x3938373635343332
        mov     [DATA + 0x200], rax
        lea     rsi, [DATA + 0x203]
        lea     rdi, [DATA + 0x206]
        mov     ecx, 3
        rep movsd
        hlt

#: case    REP MOVS through two addresses of one page
#: manual  SDM 2B REP
#: mode    long
#: pte     DATA + 0x1000 = DATA | 0x67
#: byte    DATA = 0x5a
#: expect  byte(DATA + 0x10) = 0x5a, byte(DATA + 0x11) = 0, rdi = DATA + 0x1011
        mov     esi, DATA
        mov     edi, DATA + 0x1001
        mov     ecx, 0x10
        rep movsb
        hlt

#: case    REP MOVS keeps flags and registers
#: manual  SDM 2B REP
#: mode    long
#: set     rax = 0x1111111111111111, rdx = 0x2222222222222222, r9 = 9, r10 = 10, r11 = 11, r15 = 15
#: expect  rax = 0x1111111111111111, rdx = 0x2222222222222222, r9 = 9, r10 = 10, r11 = 11, r15 = 15, rbx = 0, ebp = 0
        xor     ebp, ebp
        xor     r8d, r8d
        # Every set of the six arithmetic flags.
again:  pext    rbx, r8, [ones]
        pdep    rbx, rbx, [flags]
        push    rbx
        popfq
        mov     esi, SCRATCH
        mov     edi, DATA
        mov     ecx, 3
        rep movsd
        pushfq
        pop     r12
        xor     r12, rbx
        and     r12d, 0x8d5
        or      rbp, r12
        push    rbx
        popfq
        mov     edi, DATA + 0xffe
        mov     ecx, 4
        rep stosb
        pushfq
        pop     r12
        xor     r12, rbx
        and     r12d, 0x8d5
        or      rbp, r12
        inc     r8d
        cmp     r8d, 64
        jb      again
        xor     ebx, ebx
        hlt
        .balign 8
ones:   .quad   -1
flags:  .quad   0x8d5

#: case    REP STOS that runs into a missing page
#: manual  SDM 2B REP
#: mode    long user
#: pte     DATA + 0x2000 = 0
#: set     rax = 0x0101010101010101
#: ends    #PF(6) at fault
#: expect  rcx = 0x100, rdi = DATA + 0x2000, cr2 = DATA + 0x2000, dword(DATA + 0x1ffc) = 0x01010101, rax = 0x0101010101010101
        mov     edi, DATA + 0x800
        mov     ecx, 0x400
fault:  rep stosq

#: case    REP STOS whose last element of the page lies in the missing one, too
#: manual  SDM 2B REP
#: mode    long
#: pte     DATA + 0x1000 = 0
#: set     rax = 0x0101010101010101
#: ends    #PF(2) at fault
#: expect  rcx = 2, rdi = DATA + 0xffc, cr2 = DATA + 0x1000, dword(DATA + 0xff8) = 0x01010101, dword(DATA + 0xffc) = 0
        mov     edi, DATA + 0xfec
        mov     ecx, 4
fault:  rep stosq

#: case    REP MOVS that runs out of its source
#: manual  SDM 2B REP
#: mode    pae
#: pte     DATA + 0x1000 = 0
#: word    DATA + 0xffe = 0x1234
#: ends    #PF(0) at fault
#: expect  ecx = 0x10, esi = DATA + 0x1000, edi = DATA + 0x5008, cr2 = DATA + 0x1000, word(DATA + 0x5006) = 0x1234
        mov     esi, DATA + 0xff8
        mov     edi, DATA + 0x5000
        mov     ecx, 0x14
fault:  rep movsw

#: case    a fault in REPE CMPS shows the flags from before it
#: manual  SDM 2B REP
#: mode    long
#: pte     DATA + 0x1000 = 0
#: ends    #PF(0) at fault
#: expect  rcx = 4, rsi = DATA + 0x1000, rdi = DATA + 0x3008, frame.flags & 0x8d5 = 0x891
        mov     esi, DATA + 0xff8
        mov     edi, DATA + 0x3000
        mov     ecx, 12
        push    0x893
        popfq
fault:  repe cmpsb

#: case    a fault in REPNE SCAS shows the flags from before it
#: manual  SDM 2B REP
#: mode    paged32
#: pte     DATA + 0x1000 = 0
#: ends    #PF(0) at fault
#: expect  ecx = 4, edi = DATA + 0x1000, frame.flags & 0x8d5 = 0x844
        mov     edi, DATA + 0xff0
        mov     ecx, 8
        mov     eax, 1
        push    0x846
        popfd
fault:  repne scasd

#: case    a count of 0 changes nothing, whatever the addresses
#: manual  SDM 2B REP
#: mode    long
#: set     rsi = 0x10000000020000, rdi = 0x10000000030000, rcx = 0, rax = 5
#: expect  rsi = 0x10000000020000, rdi = 0x10000000030000, rcx = 0, rax = 5, zf = 1, cf = 1, of = 1, sf = 0, pf = 0, af = 0
        push    0x843
        popfq
        rep movsb
        rep stosw
        rep lodsd
        repe cmpsq
        repne cmpsb
        repe scasw
        repne scasd
        hlt

#: case    REPE CMPS ends behind the first difference
#: manual  SDM 2B REP
#: mode    long
#: byte    DATA + 0x1234 = 3
#: byte    DATA + 0x5234 = 4
#: expect  rcx = 0x2000 - 0x1235, rsi = DATA + 0x1235, rdi = DATA + 0x5235, cf = 1, zf = 0, sf = 1
        mov     esi, DATA
        mov     edi, DATA + 0x4000
        mov     ecx, 0x2000
        repe cmpsb
        hlt

#: case    REPE CMPS of equal memory ends with ZF set
#: manual  SDM 2B REP
#: mode    flat32
#: expect  ecx = 0, esi = DATA + 0x2000, edi = DATA + 0x6000, zf = 1, cf = 0, pf = 1
        mov     esi, DATA
        mov     edi, DATA + 0x4000
        mov     ecx, 0x800
        repe cmpsd
        hlt

#: case    REPE CMPS whose last elements differ
#: manual  SDM 2B REP
#: mode    long
#: word    DATA + 0x1ffe = 3
#: expect  ecx = 0, rsi = DATA + 0x2000, rdi = DATA + 0x6000, zf = 0, cf = 0
        mov     esi, DATA
        mov     edi, DATA + 0x4000
        mov     ecx, 0x1000
        repe cmpsw
        hlt

#: case    REPNE CMPS ends behind the first equal elements
#: manual  SDM 2B REP
#: mode    long
#: qword   DATA = 1, 2, 3, 4
#: qword   DATA + 0x1000 = 5, 6, 3, 7
#: expect  ecx = 7, rsi = DATA + 24, rdi = DATA + 0x1018, zf = 1
        mov     esi, DATA
        mov     edi, DATA + 0x1000
        mov     ecx, 10
        repne cmpsq
        hlt

#: case    REPNE SCAS finds a byte pages away
#: manual  SDM 2B REP
#: mode    long user
#: byte    DATA + 0x2fff = 0x7f
#: ends    #GP(0) at end
#: expect  rcx = -1 - 0x3000, rdi = DATA + 0x3000, zf = 1, rax = 0xff7f
        mov     eax, 0xff7f
        mov     edi, DATA
        mov     rcx, -1
        repne scasb
end:    hlt

#: case    REPE SCAS skips what is equal
#: manual  SDM 2B REP
#: mode    flat32
#: word    DATA + 0x1010 = 1
#: expect  ecx = 0x1000 - 0x809, edi = DATA + 0x1012, zf = 0, cf = 1
        xor     eax, eax
        mov     edi, DATA
        mov     ecx, 0x1000
        repe scasw
        hlt

#: case    REPNE SCAS that finds nothing
#: manual  SDM 2B REP
#: mode    long
#: expect  ecx = 0, rdi = DATA + 0x2000, zf = 0, cf = 0, sf = 1
        mov     rax, 0x8000000000000001
        mov     edi, DATA
        mov     ecx, 0x400
        repne scasq
        hlt

#: case    REP LODS leaves the last element
#: manual  SDM 2A LODS
#: mode    long
#: word    DATA + 0x1ffe = 0x1234
#: set     rax = 0x1111111111111111
#: expect  rax = 0x1111111111111234, ecx = 0, rsi = DATA + 0x2000
        mov     esi, DATA + 0x800
        mov     ecx, 0xc00
        rep lodsw
        hlt

#: case    REPNE before MOVS and STOS repeats as REP does
#: manual  SDM 2B REP
#: mode    long
#: byte    SCRATCH = 1, 2, 3, 4
#: expect  dword(DATA) = 0x04030201, dword(DATA + 4) = 0x07070707, rcx = 0
        mov     esi, SCRATCH
        mov     edi, DATA
        mov     ecx, 4
        .byte   0xf2, 0xa4
        mov     ecx, 4
        mov     al, 7
        .byte   0xf2, 0xaa
        hlt

#: case    32-bit addresses in 64-bit mode, in each instruction
#: manual  SDM 2B REP; 1 3.7.5
#: mode    long
#: set     rcx = 0x500000002, rdi = 0x700000000 + DATA, rsi = 0x900000000 + SCRATCH, rax = 0x1234
#: word    DATA + 4 = 1, 0x34
#: expect  rbx = DATA + 2, rbp = SCRATCH + 2, rdx = 1, r8 = DATA + 6, r9 = SCRATCH + 6, r10 = 0, rdi = DATA + 11, rsi = SCRATCH + 11
#: expect  word(DATA + 6) = 0x34, dword(DATA + 7) = 0, rcx = 0x500000003
        rep movsb es:[edi], ds:[esi]
        mov     rbx, rdi
        mov     rbp, rsi
        mov     rcx, 0x700000003
        bts     rdi, 40
        bts     rsi, 41
        .byte   0x67, 0xf3, 0x66, 0xa7  # repe cmpsw
        mov     rdx, rcx
        mov     r8, rdi
        mov     r9, rsi
        mov     rcx, 0x700000001
        bts     rdi, 40
        .byte   0x67, 0xf2, 0xae        # repne scasb
        mov     r10, rcx
        mov     rcx, 0x500000003
        bts     rdi, 40
        bts     rsi, 41
        .byte   0x67, 0xa5              # movsd
        .byte   0x67, 0xac              # lodsb
        hlt

#: case    a fault in the first iteration with 32-bit addresses
#: manual  SDM 2B REP
#: mode    long
#: pte     DATA = 0
#: set     rcx = 0x500000002, rsi = 0x700000000 + DATA
#: ends    #PF(0) at fault
#: expect  rcx = 2, rsi = 0x700000000 + DATA, cr2 = DATA
        nop
fault:  rep lods eax, dword ptr [esi]

#: case    REP STOS over the end of 32-bit addresses
#: manual  SDM 1 3.3.1
#: mode    paged32
#: pde     0xffc00000 = SPARE | 7
#: dword   8 = 0x1234
#: dword   SPARE + 0xffc = DATA | 0x67
#: set     eax = 0x5a5a5a5a
#: expect  edi = 8, ecx = 0, qword(DATA + 0xff8) = 0x5a5a5a5a5a5a5a5a, qword(0) = 0x5a5a5a5a5a5a5a5a, dword(8) = 0x1234
        mov     edi, 0xfffffff8
        mov     ecx, 16
        rep stosb
        hlt

#: case    REP STOS from RAM into what is none
#: manual  SDM 2B REP
#: mode    flat32
#: set     eax = 0x5a5a5a5a
#: expect  edi = 0x1000008, ecx = 0, writes(0x1000000) = 1, written(0x1000004) = 0x5a5a5a5a, writes(0x1000008) = 0, ebx = 0x5a5a5a5a
        mov     edi, 0xfffff8
        mov     ecx, 4
        rep stosd
        mov     ebx, ds:[0xfffffc]
        hlt

#: case    REP MOVS from what is no RAM
#: manual  SDM 2B REP
#: mode    flat32
#: expect  esi = 0x1000008, edi = DATA + 16, ecx = 0, qword(DATA) = 0x0000000200000001, qword(DATA + 8) = 0xffffffffffffffff, reads(0x1000000) = 1
        mov     dword ptr ds:[0xfffff8], 1
        mov     dword ptr ds:[0xfffffc], 2
        mov     esi, 0xfffff8
        mov     edi, DATA
        mov     ecx, 4
        rep movsd
        hlt

#: case    segments with a base
#: manual  SDM 2B MOVS
#: mode    flat32
#: gdt     SELECTORS = data32 base=DATA
#: dword   DATA + 0x100 = 0x11223344
#: expect  dword(DATA + 0x200) = 0x11223344, esi = 0x104, edi = DATA + 0x204, dword(DATA + 0x300) = 0x11223344
        mov     eax, SELECTORS
        mov     fs, eax
        mov     esi, 0x100
        mov     edi, DATA + 0x200
        movsd   es:[edi], fs:[esi]
        push    es
        mov     es, eax
        push    esi
        mov     esi, DATA + 0x200
        mov     edi, 0x300
        mov     ecx, 1
        rep movsd
        pop     esi
        pop     es
        mov     edi, DATA + 0x204
        hlt

#: case    segments with a base from 64-bit mode
#: manual  SDM 1 3.4.4
#: mode    long
#: set     fs.base = DATA, gs.base = DATA + 0x100
#: dword   DATA + 0x40 = 0x11223344
#: dword   DATA + 0x140 = 0x55667788
#: expect  dword(DATA + 0x1000) = 0x11223344, dword(DATA + 0x1004) = 0x55667788, rsi = 0x44
        mov     esi, 0x40
        mov     edi, DATA + 0x1000
        movsd   es:[rdi], fs:[rsi]
        mov     esi, 0x40
        mov     ecx, 1
        rep movsd es:[rdi], gs:[rsi]
        hlt

#: case    REP STOS over code that has run
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  ebx = 0x05050505, eax = 0xb8b8b8b8
        call    code
        mov     ebx, eax
        mov     edi, offset code + 1 - 0x900
        mov     ecx, 0x904
        mov     al, 0xb8                # the MOV is one still
        rep stosb
        call    code
        hlt
        .org    0x1100
code:   mov     eax, 0x05050505
        ret

#: case    REP MOVS of 16 pages and REP STOS of as many
#: manual  SDM 2B REP
#: mode    long
#: qword   DATA + 0xfff8 = 0x1122334455667788
#: expect  qword(DATA + 0x1fff8) = 0x1122334455667788, qword(DATA + 0xfff8) = 7, qword(DATA) = 7, qword(DATA + 0x10000) = 0, ecx = 0
#: expect  rdi = DATA + 0x10000, rsi = DATA + 0x10000
        mov     esi, DATA
        mov     edi, DATA + 0x10000
        mov     ecx, 0x2000
        rep movsq
        mov     edi, DATA
        mov     ecx, 0x2000
        mov     eax, 7
        rep stosq
        hlt

#: case    string instructions between many other accesses
#: manual  SDM 2B MOVS
#: mode    long
#: qword   SCRATCH = 0x1122334455667788
#: expect  qword(DATA) = 0x1122334455667788, rbx = 0x1122334455667788 * 2, rsi = SCRATCH + 16, rdi = DATA + 16, zf = 1
        mov     esi, SCRATCH
        mov     edi, DATA
        mov     ebp, 2
again:  xor     ebx, ebx
        mov     rax, [rsi]
        add     rbx, rax
        movsq
        add     rbx, [rdi - 8]
        add     rax, [rdi]
        cmpsq
        mov     rdx, [rsi - 8]
        mov     rdx, [rsi - 16]
        lea     rsi, [rsi - 16]
        lea     rdi, [rdi - 16]
        movsq
        cmpsb
        mov     r8, [rsi]
        lea     rsi, [rsi + 7]
        lea     rdi, [rdi + 7]
        dec     ebp
        jz      end
        lea     rsi, [rsi - 16]
        lea     rdi, [rdi - 16]
        jmp     again
end:    hlt

#: case    an iteration after which the handler returns with RF: the flag lasts to the end, and no longer
#: manual  SDM 3B 17.3.1.1
#: mode    long
#: dword   DATA = 0x11223344
#: expect  rcx = 0, rsi = DATA + 300, rdi = DATA + 304, eax = 0x11223344, ebx = 2
        mov     rdx, rsp
        push    DATA64
        push    rdx
        push    RF | 2
        push    CODE64
        push    offset again
        mov     esi, DATA
        mov     edi, DATA + 4
        mov     ecx, 300
        iretq
again:  rep movsb
        pushfq
        pop     rbx
        mov     eax, [DATA + 300]
        hlt
