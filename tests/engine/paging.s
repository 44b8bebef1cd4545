# Page tables: error codes, accessed and dirty bits, large pages, reserved bits, SMEP, SMAP, protection keys, flushes.

#: case    a read of an absent page
#: manual  SDM 3A 4.7
#: mode    paged32
#: pte     DATA = 0
#: ends    #PF(0) at fault
#: expect  cr2 = DATA + 0x123
fault:  mov     eax, ds:[DATA + 0x123]

#: case    a write to an absent page
#: manual  SDM 3A 4.7
#: mode    long
#: pte     DATA = 0
#: ends    #PF(2) at fault
#: expect  cr2 = DATA + 0x123
fault:  mov     [DATA + 0x123], eax

#: case    a user's read of an absent page
#: manual  SDM 3A 4.7
#: mode    pae user
#: pte     DATA = 0
#: ends    #PF(4) at fault
fault:  mov     eax, ds:[DATA]

#: case    a user's write to a read-only page
#: manual  SDM 3A 4.7
#: mode    long user
#: pte     DATA = DATA | P | US
#: ends    #PF(7) at fault
#: expect  pte(DATA) = DATA | P | US | A
#: expect  cr2 = DATA + 8
        mov     eax, [DATA]
fault:  mov     [DATA + 8], eax

#: case    a user's read of a supervisor page
#: manual  SDM 3A 4.7
#: mode    long user
#: pte     DATA = DATA | P | RW
#: ends    #PF(5) at fault
#: expect  pte(DATA) = DATA | P | RW
fault:  mov     eax, [DATA]

#: case    a user page below a supervisor directory entry is a supervisor page
#: manual  SDM 3A 4.6.1
#: mode    pae user
#: pde     0x200000 = PT | P | RW
#: ends    #PF(5) at fault
fault:  mov     eax, ds:[0x220000]

#: case    a fetch from a page with NX set
#: manual  SDM 3A 4.6, 4.7
#: mode    long
#: pte     DATA |= NX
#: byte    DATA = 0xf4
#: ends    #PF(0x11) at DATA
#: expect  cr2 = DATA
        mov     eax, DATA
        jmp     rax

#: case    a fetch from an absent page says so only where NX or SMEP are on
#: manual  SDM 3A 4.7
#: mode    paged32
#: pte     DATA = 0
#: ends    #PF(0) at DATA
        mov     eax, DATA
        jmp     eax

#: case    a fetch from an absent page with SMEP on
#: manual  SDM 3A 4.7
#: mode    paged32
#: set     cr4 |= SMEP
#: supervisor 0 .. 0x20000
#: pte     DATA = 0
#: ends    #PF(0x10) at DATA
        mov     eax, DATA
        jmp     eax

#: case    the NX bit is reserved while EFER.NXE is clear
#: manual  SDM 3A 4.5, 4.7
#: mode    long
#: set     efer = SCE | LME | LMA
#: pte     DATA |= NX
#: ends    #PF(9) at fault
fault:  mov     eax, [DATA]

#: case    a bit above the physical address width is reserved
#: manual  SDM 3A 4.4.2, 4.7
#: mode    pae
#: pte     DATA |= 1 << 50
#: ends    #PF(0xb) at fault
fault:  mov     ds:[DATA], eax

#: case    a reserved bit in a directory entry is found before the page's own rights
#: manual  SDM 3A 4.7
#: mode    long user
#: pdpte   0x40000000 = SPARE | P | US | 1 << 51
#: ends    #PF(0xf) at fault
        mov     rbx, 0x40000000
fault:  mov     [rbx], eax

#: case    PS in a PML4E is reserved
#: manual  SDM 3A table 4-15
#: mode    long
#: pml4e   0x8000000000 = SPARE | P | RW | PS
#: ends    #PF(9) at fault
        mov     rbx, 0x8000000000
fault:  mov     eax, [rbx]

#: case    an absent entry's other bits are ignored
#: manual  SDM 3A 4.3, 4.4, 4.5
#: mode    long
#: pte     DATA = 0xfffffffffffffffe
#: ends    #PF(0) at fault
fault:  mov     eax, [DATA]

#: case    a read sets the accessed bits of every level and no dirty bit
#: manual  SDM 3A 4.8
#: mode    long
#: pml4e   0x8000000000 = SPARE | P | RW | US
#: qword   SPARE = SPARE + 0x1000 | P | RW | US
#: qword   SPARE + 0x1000 = SPARE + 0x2000 | P | RW | US
#: qword   SPARE + 0x2000 = DATA | P | RW | US
#: expect  pml4e(0x8000000000) = SPARE | P | RW | US | A
#: expect  qword(SPARE) = SPARE + 0x1000 | P | RW | US | A
#: expect  qword(SPARE + 0x1000) = SPARE + 0x2000 | P | RW | US | A
#: expect  qword(SPARE + 0x2000) = DATA | P | RW | US | A
        mov     rbx, 0x8000000000
        mov     eax, [rbx]
        hlt

#: case    a write sets the dirty bit of the page alone
#: manual  SDM 3A 4.8
#: mode    pae
#: pde     0x200000 = SPARE | P | RW | US
#: qword   SPARE = DATA | P | RW | US
#: expect  pde(0x200000) = SPARE | P | RW | US | A
#: expect  qword(SPARE) = DATA | P | RW | US | A | D, dword(DATA) = 5
        mov     dword ptr ds:[0x200000], 5
        hlt

#: case    a write after a read sets the dirty bit too
#: manual  SDM 3A 4.8
#: mode    paged32
#: pte     DATA = DATA | P | RW | US
#: expect  pte(DATA) = DATA | P | RW | US | A | D, ecx = DATA | P | RW | US | A
        mov     eax, ds:[DATA]
        mov     ecx, ds:[PT + DATA / 1024]
        mov     ds:[DATA], eax
        hlt

#: case    a write that faults sets no bit
#: manual  SDM 3A 4.8
#: mode    long
#: pte     DATA = DATA | P | US
#: ends    #PF(3) at fault
#: expect  pte(DATA) = DATA | P | US
fault:  mov     [DATA], eax

#: case    a misaligned MOVAPS sets no dirty bit
#: manual  SDM 3A 4.8, 2B MOVAPS
#: mode    long
#: pte     DATA = DATA | P | RW | US | A
#: ends    #GP(0) at fault
#: expect  pte(DATA) = DATA | P | RW | US | A
        mov     eax, [DATA]
fault:  movaps  [DATA + 8], xmm0

#: case    a page written in a loop is dirty
#: manual  SDM 3A 4.8
#: mode    long
#: pte     DATA = DATA | P | RW | US
#: expect  pte(DATA) = DATA | P | RW | US | A | D, dword(DATA) = 100
        mov     ecx, 100
again:  inc     dword ptr [DATA]
        movaps  [DATA + 16], xmm0
        dec     ecx
        jnz     again
        hlt

#: case    a compare-exchange that fails sets the dirty bit all the same
#: manual  SDM 2A CMPXCHG; 3A 4.8
#: mode    long
#: pte     DATA = DATA | P | RW | US
#: dword   DATA = 9
#: expect  pte(DATA) = DATA | P | RW | US | A | D, zf = 0, eax = 9
        xor     eax, eax
        cmpxchg [DATA], ecx
        hlt

#: case    with CR0.WP clear the supervisor writes to read-only pages
#: manual  SDM 3A 4.6.1
#: mode    long
#: set     cr0 &= ~WP
#: pte     DATA = DATA | P | US
#: expect  dword(DATA) = 7, pte(DATA) = DATA | P | US | A | D
        mov     dword ptr [DATA], 7
        hlt

#: case    with CR0.WP clear users still can't
#: manual  SDM 3A 4.6.1
#: mode    long user
#: set     cr0 &= ~WP
#: pte     DATA = DATA | P | US
#: ends    #PF(7) at fault
fault:  mov     dword ptr [DATA], 7

#: case    setting CR0.WP is seen by the next write
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: set     cr0 &= ~WP
#: pte     DATA = DATA | P | US
#: ends    #PF(3) at fault
#: expect  dword(DATA) = 7
        mov     dword ptr [DATA], 7
        mov     rax, cr0
        or      rax, WP
        mov     cr0, rax
fault:  mov     dword ptr [DATA], 8

#: case    SMEP keeps the supervisor from executing user pages
#: manual  SDM 3A 4.6.1
#: mode    long
#: supervisor 0 .. 0x20000
#: set     cr4 |= SMEP
#: byte    DATA = 0xf4
#: ends    #PF(0x11) at DATA
        mov     eax, DATA
        jmp     rax

#: case    SMAP keeps the supervisor from user pages
#: manual  SDM 3A 4.6.1
#: mode    long
#: supervisor 0 .. 0x20000
#: set     cr4 |= SMAP
#: ends    #PF(1) at fault
fault:  mov     eax, [DATA]

#: case    with EFLAGS.AC set SMAP lets explicit accesses pass
#: manual  SDM 3A 4.6.1
#: mode    long
#: supervisor 0 .. 0x20000
#: set     cr4 |= SMAP
#: dword   DATA = 3
#: ends    #PF(1) at fault
#: expect  ebx = 3
        stac
        mov     ebx, [DATA]
        clac
fault:  mov     eax, [DATA]

#: case    SMAP holds for implicit accesses whatever EFLAGS.AC
#: manual  SDM 3A 4.6.1
#: mode    long
#: supervisor 0 .. 0x20000
#: set     cr4 |= SMAP, ldtr.base = DATA
#: ldt     0x10 = data32
#: ends    #PF(1) at fault
#: expect  cr2 & ~0xfff = DATA
        stac
        mov     ax, 0x14
fault:  mov     ds, ax

#: case    SMAP doesn't concern fetches
#: manual  SDM 3A 4.6.1
#: mode    long
#: supervisor 0 .. 0x20000
#: set     cr4 |= SMAP
#: byte    DATA = 0xf4
#: ends    halt at DATA + 1
        mov     eax, DATA
        jmp     rax

#: case    a protection key with AD set denies user pages to the supervisor as well
#: manual  SDM 3A 4.6.2, 4.7
#: mode    long
#: set     cr4 |= PKE, pkru = 0x4
#: pte     DATA |= 1 << 59
#: ends    #PF(0x21) at fault
fault:  mov     eax, [DATA]

#: case    a protection key with WD set denies a user's writes alone
#: manual  SDM 3A 4.6.2, 4.7
#: mode    long user
#: set     cr4 |= PKE, pkru = 0x8
#: pte     DATA |= 1 << 59
#: ends    #PF(0x27) at fault
        mov     eax, [DATA]
fault:  mov     [DATA], eax

#: case    a protection key with WD set binds the supervisor only with CR0.WP
#: manual  SDM 3A 4.6.2
#: mode    long
#: set     cr4 |= PKE, pkru = 0x8, cr0 &= ~WP
#: pte     DATA |= 1 << 59
#: expect  dword(DATA) = 6
        mov     dword ptr [DATA], 6
        hlt

#: case    WRPKRU is in force at once
#: manual  SDM 2D WRPKRU
#: mode    long user
#: set     cr4 |= PKE
#: pte     DATA |= 1 << 59
#: ends    #PF(0x25) at fault
        mov     ebx, [DATA]
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, 4
        wrpkru
fault:  mov     ebx, [DATA]

#: case    protection keys don't concern supervisor pages
#: manual  SDM 3A 4.6.2
#: mode    long
#: set     cr4 |= PKE, pkru = 0xffffffff
#: supervisor 0 .. 0x30000
#: pte     DATA |= 1 << 59
#: expect  eax = 0
        mov     eax, [DATA]
        hlt

#: case    a 4 MiB page
#: manual  SDM 3A 4.3
#: mode    paged32
#: pde     0x400000 = 0 | P | RW | US | PS
#: dword   DATA = 0x55
#: expect  eax = 0x55, pde(0x400000) = P | RW | US | PS | A
        mov     eax, ds:[0x400000 + DATA]
        hlt

#: case    with CR4.PSE clear bit 7 of a directory entry is ignored
#: manual  SDM 3A 4.3
#: mode    paged32
#: set     cr4 &= ~PSE
#: pde     0 |= PS
#: dword   DATA = 0x55
#: expect  eax = 0x55
        mov     eax, ds:[DATA]
        hlt

#: case    a 4 MiB page above 4 GiB by PSE-36
#: manual  SDM 3A 4.3
#: mode    paged32
#: pde     0x400000 = 1 << 13 | P | RW | US | PS
#: dword   HIGH + 0x20 = 0x36
#: expect  eax = 0x36
        mov     eax, ds:[0x400020]
        hlt

#: case    bit 21 of a 4 MiB page is reserved
#: manual  SDM 3A 4.3
#: mode    paged32
#: pde     0x400000 = 1 << 21 | P | RW | US | PS
#: ends    #PF(9) at fault
fault:  mov     eax, ds:[0x400000]

#: case    a 2 MiB page with a reserved address bit
#: manual  SDM 3A table 4-17
#: mode    long
#: pde     0x200000 = 1 << 13 | P | RW | US | PS
#: ends    #PF(9) at fault
fault:  mov     eax, [0x200000]

#: case    a 2 MiB page, its accessed and dirty bits
#: manual  SDM 3A 4.8
#: mode    long
#: pde     0x200000 = P | RW | US | PS
#: expect  dword(DATA) = 8, pde(0x200000) = P | RW | US | PS | A | D
        mov     dword ptr [0x200000 + DATA], 8
        hlt

#: case    a 1 GiB page
#: manual  SDM 3A table 4-15
#: mode    long
#: pdpte   0x40000000 = P | RW | US | PS
#: expect  dword(DATA) = 8, pdpte(0x40000000) = P | RW | US | PS | A | D
        mov     dword ptr [0x40000000 + DATA], 8
        hlt

#: case    a 1 GiB page with a reserved address bit
#: manual  SDM 3A table 4-15
#: mode    long
#: pdpte   0x40000000 = 1 << 21 | P | RW | US | PS
#: ends    #PF(9) at fault
fault:  mov     eax, [0x40000000]

#: case    a stale translation may stay until INVLPG
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pte     DATA = DATA | P | RW | US | A | D
#: ends    #PF(0) at fault
        mov     eax, [DATA]
        mov     qword ptr [PT + DATA / 512], 0
        invlpg  [DATA]
fault:  mov     eax, [DATA]

#: case    INVLPG drops a global page
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pte     DATA |= G
#: ends    #PF(0) at fault
        mov     eax, [DATA]
        mov     qword ptr [PT + DATA / 512], 0
        invlpg  [DATA + 0xfff]
fault:  mov     eax, [DATA]

#: case    a change of CR4.PGE drops global pages
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pte     DATA |= G
#: ends    #PF(0) at fault
        mov     eax, [DATA]
        mov     qword ptr [PT + DATA / 512], 0
        mov     rax, cr4
        xor     rax, PGE
        mov     cr4, rax
fault:  mov     eax, [DATA]

#: case    a page that becomes present needs no flush
#: manual  SDM 3A 4.10.4.3
#: mode    long
#: pte     DATA = 0
#: gate    14 = int64 CODE64:mend
#: dword   DATA = 0x44
#: expect  eax = 0x44, ebx = 1
        mov     eax, [DATA]
        hlt
mend:   inc     ebx
        mov     qword ptr [PT + DATA / 512], DATA + 7
        add     rsp, 8
        iretq

#: case    a MOV to CR3 with another PCID and back keeps to the new tables
#: manual  SDM 3A 4.10.1
#: mode    long
#: set     cr4 |= PCIDE
#: qword   SPARE = PDPT | 7
#: expect  rcx = PML4, eax = SPARE + 1
        mov     eax, SPARE + 1
        mov     cr3, rax
        mov     rax, cr3
        mov     ecx, PML4
        mov     cr3, rcx
        mov     rcx, cr3
        hlt

#: case    bit 63 of a MOV to CR3 isn't kept
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: set     cr4 |= PCIDE
#: expect  rax = PML4 + 3
        mov     rax, PML4 + 3
        bts     rax, 63
        mov     cr3, rax
        mov     rax, cr3
        hlt

#: case    bit 63 of a MOV to CR3 is reserved without PCIDs
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, PML4
        bts     rax, 63
fault:  mov     cr3, rax

#: case    INVPCID of one address drops it
#: manual  SDM 2A INVPCID
#: mode    long
#: set     cr4 |= PCIDE
#: qword   SCRATCH = 0
#: qword   SCRATCH + 8 = DATA
#: ends    #PF(0) at fault
        mov     eax, [DATA]
        mov     qword ptr [PT + DATA / 512], 0
        xor     eax, eax
        invpcid rax, [SCRATCH]
fault:  mov     eax, [DATA]

#: case    INVPCID of everything drops global pages
#: manual  SDM 2A INVPCID
#: mode    long
#: pte     DATA |= G
#: ends    #PF(0) at fault
        mov     eax, [DATA]
        mov     qword ptr [PT + DATA / 512], 0
        mov     eax, 2
        invpcid rax, [SCRATCH]
fault:  mov     eax, [DATA]

#: case    INVPCID of an unknown type
#: manual  SDM 2A INVPCID
#: mode    long
#: ends    #GP(0) at fault
        mov     eax, 4
fault:  invpcid rax, [SCRATCH]

#: case    INVPCID of an address that isn't canonical
#: manual  SDM 2A INVPCID
#: mode    long
#: qword   SCRATCH + 8 = 1 << 60
#: ends    #GP(0) at fault
        xor     eax, eax
fault:  invpcid rax, [SCRATCH]

#: case    INVPCID of a PCID other than 0 without CR4.PCIDE
#: manual  SDM 2A INVPCID
#: mode    long
#: qword   SCRATCH = 1
#: ends    #GP(0) at fault
        mov     eax, 1
fault:  invpcid rax, [SCRATCH]

#: case    setting CR4.PCIDE while CR3 has a PCID
#: manual  SDM 2B MOV control registers
#: mode    long
#: set     cr3 = PML4 + 1
#: ends    #GP(0) at fault
        mov     rax, cr4
        or      rax, PCIDE
fault:  mov     cr4, rax

#: case    MOV to CR3 with a reserved bit in a PDPTE
#: manual  SDM 3A 4.4.1
#: mode    pae
#: qword   SPARE = PD | P | RW
#: ends    #GP(0) at fault
#: expect  cr3 = PDPT
        mov     eax, SPARE
fault:  mov     cr3, eax

#: case    MOV to CR3 ignores reserved bits of an absent PDPTE
#: manual  SDM 3A 4.4.1
#: mode    pae
#: qword   SPARE = PD | P
#: qword   SPARE + 8 = 0xfffffffffffffffe
#: expect  cr3 = SPARE
        mov     eax, SPARE
        mov     cr3, eax
        hlt

#: case    PDPTEs are read when CR3 is loaded and not later
#: manual  SDM 3A 4.4.1
#: mode    pae
#: dword   DATA = 0x31
#: expect  eax = 0x31
        mov     dword ptr ds:[PDPT], 0
        invlpg  ds:[DATA]
        mov     eax, ds:[DATA]
        hlt

#: case    5-level paging reaches addresses with 57 bits
#: manual  SDM 3A 4.5.4
#: mode    long5
#: pml5e   0xff00000000000000 = PML4 | P | RW
#: dword   DATA = 0x57
#: expect  eax = 0x57
        mov     rbx, 0xff00000000000000 + DATA
        mov     eax, [rbx]
        hlt

#: case    an address with 58 bits isn't canonical even with 5 levels
#: manual  SDM 1 3.3.7.1
#: mode    long5
#: ends    #GP(0) at fault
        mov     rbx, 0x0100000000000000
fault:  mov     eax, [rbx]

#: case    CR4.LA57 can't be changed in long mode
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, cr4
        or      rax, LA57
fault:  mov     cr4, rax

#: case    an address that isn't canonical raises #GP(0) through DS
#: manual  SDM 1 3.3.7.1
#: mode    long
#: ends    #GP(0) at fault
        mov     rbx, 0x800000000000
fault:  mov     eax, [rbx]

#: case    an address that isn't canonical raises #SS(0) through RSP and RBP
#: manual  SDM 1 3.3.7.1; 3A 6.15 interrupt 12
#: mode    long
#: ends    #SS(0) at fault
        mov     rbp, 0x800000000000
fault:  mov     eax, [rbp]

#: case    an access that begins below the canonical hole and ends in it
#: manual  SDM 1 3.3.7.1
#: mode    long
#: ends    #GP(0) at fault
        mov     rbx, 0x7ffffffffffd
fault:  mov     eax, [rbx]

#: case    a jump to an address that isn't canonical faults at the jump
#: manual  SDM 2A JMP
#: mode    long
#: ends    #GP(0) at fault
        mov     rbx, 0x800000000000
fault:  jmp     rbx

#: case    a read across pages faults with the second page's address
#: manual  SDM 3A 4.7, 6.15 interrupt 14
#: mode    long
#: pte     DATA + 0x1000 = 0
#: ends    #PF(0) at fault
#: expect  cr2 = DATA + 0x1000, rax = 1
        mov     eax, 1
fault:  mov     rax, [DATA + 0xffd]

#: case    a write across pages that faults on the second writes nothing to the first
#: manual  SDM 3A 6.5
#: mode    long
#: pte     DATA + 0x1000 = DATA + 0x1000 | P | US
#: ends    #PF(3) at fault
#: expect  cr2 = DATA + 0x1000, dword(DATA + 0xffc) = 0
        mov     rax, -1
fault:  mov     [DATA + 0xffd], rax

#: case    a write across pages sets both dirty bits
#: manual  SDM 3A 4.8
#: mode    long
#: pte     DATA = DATA | P | RW | US
#: pte     DATA + 0x1000 = SPARE | P | RW | US
#: expect  pte(DATA) & 0x60 = 0x60, pte(DATA + 0x1000) & 0x60 = 0x60
#: expect  byte(DATA + 0xfff) = 0x11, byte(SPARE) = 0x22
        mov     word ptr [DATA + 0xfff], 0x2211
        hlt

#: case    writes across pages that lie apart in memory reach both, and nothing else
#: manual  SDM 3A 4.2
#: mode    long
#: pte     DATA + 0x1000 = SPARE | P | RW | US
#: budget  10000
#: expect  rbx = 0x22446688aaccef10, qword(DATA + 0xff8) = 0xccef100000000000, qword(SPARE) = 0x22446688aa
#: expect  rdx & 0xcd5 = 0x401, rdi = 0x1122334455667788, qword(DATA) = 0
        mov     rax, 0x1122334455667788
        mov     ecx, 20
again:  mov     [DATA + 0xffd], rax
        mov     rdi, [DATA + 0xffd]
        std
        stc
        mov     [DATA + 0xffd], rax
        pushfq
        pop     rdx
        cld
        add     [DATA + 0xffd], rax
        mov     rbx, [DATA + 0xffd]
        dec     ecx
        jnz     again
        hlt

#: case    both elements of a comparison may lie across pages that lie apart
#: manual  SDM 2A CMPS
#: mode    long
#: pte     DATA + 0x1000 = SPARE | P | RW | US
#: pte     DATA + 0x2000 = SPARE + 0x2000 | P | RW | US
#: byte    DATA + 0xfff = 0x11
#: byte    SPARE = 0x22
#: byte    SPARE + 0xfff = 0x11
#: byte    SPARE + 0x2000 = 0x33
#: budget  10000
#: expect  rdx = 0x42, rbx = 0
        mov     ebx, 20
again:  mov     al, [DATA]
        mov     al, [DATA + 0x1000]
        mov     al, [DATA + 0x2000]
        mov     esi, DATA + 0x1fff
        mov     edi, DATA + 0xfff
        cmpsw
        seta    dl
        mov     esi, DATA + 0xfff
        mov     edi, DATA + 0x1fff
        cmpsw
        setb    dh
        movzx   ecx, dl
        movzx   eax, dh
        lea     edx, [rcx + rax * 2]
        shl     edx, 4
        add     edx, 0x12
        dec     ebx
        jnz     again
        hlt

#: case    a read-modify-write across pages that lie apart sets the flags of its result
#: manual  SDM 3A 4.2
#: mode    long
#: pte     DATA + 0x1000 = SPARE | P | RW | US
#: byte    DATA + 0xffe = 0xff, 0xff
#: byte    SPARE = 0xff, 0x7f
#: expect  rax & 0x8d5 = 0x894, dword(DATA + 0xffc) = 0, dword(SPARE) = 0x8000
        inc     dword ptr [DATA + 0xffe]
        pushfq
        pop     rax
        hlt

#: case    pushes and vectors are written across pages that lie apart
#: manual  SDM 3A 4.2
#: mode    long
#: pte     DATA + 0x1000 = SPARE | P | RW | US
#: budget  10000
#: expect  rsp = DATA + 0xffd, rdx = 0x8877665544332211, rbx = 0x5544332211, esi = 0x887766
#: expect  qword(DATA + 0xff8) = 0x3322110000000000, qword(SPARE) = 0x8877665544
        mov     rax, 0x8877665544332211
        movq    xmm0, rax
        mov     ecx, 20
again:  movups  [DATA + 0xffb], xmm0
        mov     rbx, [DATA + 0xff8]
        shr     rbx, 24
        mov     esi, [SPARE]
        mov     esp, DATA + 0x1005
        mov     qword ptr [DATA + 0xff8], 0
        mov     dword ptr [SPARE], 0
        push    rax
        mov     rdx, [rsp]
        dec     ecx
        jnz     again
        hlt

#: case    a push that faults leaves RSP
#: manual  SDM 2B PUSH
#: mode    long
#: pte     DATA = 0
#: gate    14 = int64 CODE64:handler ist=1
#: expect  qword(IST1 - 16) = DATA + 8, cr2 = DATA
        mov     esp, DATA + 8
fault:  push    rax
handler: hlt

#: case    a pop to memory that faults leaves RSP
#: manual  SDM 2B POP
#: mode    long
#: pte     DATA = 0
#: ends    #PF(2) at fault
#: expect  frame.sp = STACK - 8
        push    5
fault:  pop     qword ptr [DATA]

#: case    a call that can't push doesn't jump
#: manual  SDM 2A CALL
#: mode    long
#: pte     DATA = 0
#: gate    14 = int64 CODE64:handler ist=1
#: expect  qword(IST1 - 16) = DATA + 8, qword(IST1 - 40) = fault
        mov     esp, DATA + 8
fault:  call    handler
handler: hlt

#: case    ENTER probes the stack before it changes RBP
#: manual  SDM 2A ENTER
#: mode    long
#: pte     DATA = 0
#: gate    14 = int64 CODE64:handler ist=1
#: expect  rbp = 7, qword(IST1 - 16) = DATA + 8
        mov     ebp, 7
        mov     esp, DATA + 8
fault:  enter   16, 0
handler: hlt

#: case    REP MOVS stops at a fault with its registers at the element
#: manual  SDM 2B REP; 3A 6.6
#: mode    long
#: pte     DATA + 0x1000 = 0
#: ends    #PF(2) at fault
#: expect  rcx = 6, rsi = SCRATCH + 8, rdi = DATA + 0x1000, cr2 = DATA + 0x1000
#: expect  dword(DATA + 0xffc) = 0x88
#: dword   SCRATCH + 4 = 0x88
        mov     esi, SCRATCH
        mov     edi, DATA + 0xff8
        mov     ecx, 8
fault:  rep movsd

#: case    REP STOS goes on after its fault is mended
#: manual  SDM 2B REP
#: mode    pae
#: pte     DATA + 0x1000 = 0
#: gate    14 = int32 CODE32:mend
#: expect  ecx = 0, edi = DATA + 0x1800, ebx = 1, dword(DATA + 0x17fc) = 0x5a5a5a5a
        mov     edi, DATA + 0x800
        mov     ecx, 0x400
        mov     eax, 0x5a5a5a5a
        cld
        rep stosd
        hlt
mend:   inc     ebx
        mov     dword ptr ds:[PT + DATA / 512 + 8], DATA + 0x1000 + 7
        add     esp, 4
        iretd

#: case    the accessed bit of a PML5E
#: manual  SDM 3A 4.8
#: mode    long5
#: pml5e   0x1000000000000 = PML4 | P | RW | US
#: expect  pml5e(0x1000000000000) = PML4 | P | RW | US | A
        mov     rbx, 0x1000000000000 + DATA
        mov     eax, [rbx]
        hlt

#: case    setting CR4.SMEP is in force for the next fetch
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: ends    shutdown
        mov     rax, cr4
        or      rax, SMEP
        mov     cr4, rax
        nop

#: case    setting CR4.SMAP is in force for the next access
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: supervisor 0 .. 0x20000
#: ends    #PF(1) at fault
        mov     ebx, [DATA]
        mov     rax, cr4
        or      rax, SMAP
        mov     cr4, rax
fault:  mov     ebx, [DATA]

#: case    clearing EFER.NXE makes NX bits reserved
#: manual  SDM 3A 4.5
#: mode    long
#: pte     DATA |= NX
#: ends    #PF(9) at fault
        mov     ebx, [DATA]
        mov     ecx, 0xc0000080
        rdmsr
        and     eax, ~NXE
        wrmsr
        mov     rax, cr3
        mov     cr3, rax
fault:  mov     ebx, [DATA]

#: case    CR3 loaded outside long mode has 32 bits and no reserved ones
#: manual  SDM 2B MOV control registers
#: mode    paged32
#: expect  eax = PD | 0x18
        mov     eax, PD | 0x18
        mov     cr3, eax
        mov     eax, cr3
        hlt

#: case    CR3 with bits above the physical address width
#: manual  SDM 2B MOV control registers
#: mode    long
#: ends    #GP(0) at fault
        mov     rax, 1 << 50
fault:  mov     cr3, rax

#: case    a fetch with SMEP from a user page through a large page
#: manual  SDM 3A 4.6.1
#: mode    long
#: supervisor 0 .. 0x20000
#: set     cr4 |= SMEP
#: pde     0x200000 = P | RW | US | PS
#: byte    DATA = 0xf4
#: ends    #PF(0x11) at 0x200000 + DATA
        mov     eax, 0x200000 + DATA
        jmp     rax

#: case    protection keys don't concern fetches
#: manual  SDM 3A 4.6.2
#: mode    long
#: set     cr4 |= PKE, pkru = 4
#: pte     DATA |= 1 << 59
#: byte    DATA = 0xf4
#: ends    halt at DATA + 1
        mov     eax, DATA
        jmp     rax

#: case    PUSHA writes nothing where it can't write all
#: manual  SDM 2B PUSHA; 3A 6.5
#: mode    paged32
#: pte     DATA = 0
#: dword   DATA + 0x1000 = 0x11
#: dword   DATA + 0x1008 = 0x22
#: ends    #PF(2) at fault
#: expect  dword(DATA + 0x1000) = 0x11, dword(DATA + 0x1008) = 0x22, cr2 = DATA + 0xffc
        mov     esp, DATA + 0x101c
fault:  pushad
