# Address spaces that the guest leaves and comes back to: what CR3, INVLPG, INVPCID and CR4 drop must not be found again.
#
# Two address spaces share the first GiB, which is mapped to itself, and differ at 1 GiB: there PML4 has the page A, and the root
# at SPARE the page B. Their tables are in SPARE: PDPT + 0x1000, PD + 0x2000, PT + 0x3000 of B; PD + 0x4000, PT + 0x5000 of A.

#: case    each address space has its own page, however often it is entered
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0x32, ecx = 0x37
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     ebp, 5
again:  add     eax, [rbx]
        mov     cr3, rdi
        add     ecx, [rbx]
        mov     cr3, rsi
        dec     ebp
        jnz     again
        hlt

#: case    a page that is another one when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xc, ecx = 0xb
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5001], (DATA + 0x2000) >> 8
        mov     cr3, rsi
        mov     eax, [rbx]
        hlt

#: case    a page that is absent when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: ends    #PF(0) at fault
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     cr3, rsi
fault:  mov     eax, [rbx]

#: case    a page that is read-only when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: ends    #PF(3) at fault
#: expect  eax = 0xa
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        and     byte ptr [SPARE + 0x5000], ~RW
        mov     cr3, rsi
        mov     eax, [rbx]
fault:  mov     [rbx], ecx

#: case    a table that is read-only when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: ends    #PF(3) at fault
#: expect  eax = 0xa
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        and     byte ptr [SPARE + 0x4000], ~RW
        mov     cr3, rsi
        mov     eax, [rbx]
fault:  mov     [rbx], ecx

#: case    a table that is absent when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: ends    #PF(0) at fault
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [PDPT + 8], 0
        mov     cr3, rsi
fault:  mov     eax, [rbx]

#: case    a reserved bit that is set when an address space comes back
#: manual  SDM 3A 4.7
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: ends    #PF(9) at fault
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        or      byte ptr [SPARE + 0x5006], 8
        mov     cr3, rsi
fault:  mov     eax, [rbx]

#: case    coming back to an address space sets no accessed and no dirty bit
#: manual  SDM 3A 4.8
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  edx = DATA | P | RW | US, ecx = SPARE + 0x5000 | P | RW | US
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        and     byte ptr [SPARE + 0x5000], ~(A | D)
        and     byte ptr [SPARE + 0x4000], ~A
        mov     cr3, rsi
        mov     edx, [SPARE + 0x5000]
        mov     ecx, [SPARE + 0x4000]
        hlt

#: case    a page that isn't accessed any more is so at the next access
#: manual  SDM 3A 4.8
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  qword(SPARE + 0x5000) = DATA | P | RW | US | A
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        and     byte ptr [SPARE + 0x5000], ~(A | D)
        mov     cr3, rsi
        mov     eax, [rbx]
        hlt

#: case    a table that isn't accessed any more is so at the next access
#: manual  SDM 3A 4.8
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  qword(SPARE + 0x4000) = SPARE + 0x5000 | P | RW | US | A
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        and     byte ptr [SPARE + 0x4000], ~A
        mov     cr3, rsi
        mov     eax, [rbx]
        hlt

#: case    a page that is clean when its address space comes back is dirty after a write
#: manual  SDM 3A 4.8
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  edx = DATA | P | RW | US | A, qword(SPARE + 0x5000) = DATA | P | RW | US | A | D, dword(DATA) = 0xb
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        and     byte ptr [SPARE + 0x5000], ~D
        mov     cr3, rsi
        mov     eax, [rbx]
        mov     edx, [SPARE + 0x5000]
        mov     [rbx], ecx
        hlt

#: case    a root that has become another address space's
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xb
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     [rbx + 8], eax
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     rax, [SPARE]
        mov     [PML4], rax
        mov     cr3, rsi
        mov     eax, [rbx]
        hlt

#: case    a root that is left, loaded into tables, and entered again
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0x22
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        mov     ebp, 3
again:  mov     cr3, rdi
        mov     ecx, [rbx]
        mov     cr3, rsi
        xor     byte ptr [SPARE + 0x3001], 0x30
        add     eax, ecx
        dec     ebp
        jnz     again
        hlt

#: case    loading the same CR3 again drops a page that has changed
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xc, ecx = 0xa
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     eax, [rbx]
        mov     ecx, [DATA]
        mov     byte ptr [SPARE + 0x5001], (DATA + 0x2000) >> 8
        mov     cr3, rsi
        mov     eax, [rbx]
        hlt

#: case    two addresses of one page lose it separately
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: qword   SPARE + 0x5008 = DATA | P | RW | US | A | D
#: expect  eax = 0xc, ecx = 0xc
        mov     ebx, 0x40000000
        mov     eax, [rbx]
        mov     ecx, [rbx + 0x1000]
        mov     byte ptr [SPARE + 0x5001], (DATA + 0x2000) >> 8
        mov     byte ptr [SPARE + 0x5009], (DATA + 0x2000) >> 8
        invlpg  [rbx]
        mov     eax, [rbx]
        mov     rsi, cr3
        mov     cr3, rsi
        mov     ecx, [rbx + 0x1000]
        hlt

#: case    a table mapped into its own address space changes the page beside it
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: qword   SPARE + 0x5008 = SPARE + 0x5000 | P | RW | US | A | D
#: ends    #PF(0) at fault
#: expect  eax = 0xc
        mov     ebx, 0x40000000
        mov     eax, [rbx]
        mov     byte ptr [rbx + 0x1001], (DATA + 0x2000) >> 8
        mov     rsi, cr3
        mov     cr3, rsi
        mov     eax, [rbx]
        mov     byte ptr [rbx + 0x1000], 0
        invlpg  [rbx]
fault:  mov     ecx, [rbx]

#: case    code at one address is each address space's own
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: dword   DATA + 0x100 = 0xc301c083
#: dword   DATA + 0x1100 = 0xc310c083
#: expect  eax = 0x44
        mov     ebx, 0x40000100
        mov     esi, PML4
        mov     edi, SPARE
        mov     ebp, 4
again:  call    rbx
        mov     cr3, rdi
        call    rbx
        mov     cr3, rsi
        dec     ebp
        jnz     again
        hlt

#: case    code that is another page's when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: dword   DATA + 0x100 = 0xc301c083
#: dword   DATA + 0x1100 = 0xc310c083
#: expect  eax = 0x22
        mov     ebx, 0x40000100
        mov     esi, PML4
        mov     edi, SPARE
        mov     ebp, 4
again:  call    rbx
        mov     cr3, rdi
        xor     byte ptr [SPARE + 0x5001], 0x10
        mov     cr3, rsi
        dec     ebp
        jnz     again
        hlt

#: case    code that may not be executed when its address space comes back
#: manual  SDM 3A 4.6, 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: dword   DATA + 0x100 = 0xc301c083
#: ends    #PF(0x11) at 0x40000100
#: expect  eax = 1
        mov     ebx, 0x40000100
        mov     esi, PML4
        mov     edi, SPARE
        call    rbx
        mov     cr3, rdi
        or      byte ptr [SPARE + 0x5007], 0x80
        mov     cr3, rsi
        call    rbx
        hlt

#: case    a user's page that is the supervisor's when its address space comes back, for accesses under SMAP
#: manual  SDM 3A 4.6.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: supervisor 0 .. 0xa0000
#: set     cr4 |= SMAP
#: ends    #PF(1) at fault
#: expect  eax = 0xa, ecx = 0xb, edx = 0xa
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     edi, SPARE
        stac
        mov     eax, [rbx]
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     cr3, rsi
        mov     edx, [rbx]
        clac
fault:  mov     eax, [rbx]

#: case    a change of CR4.PGE drops what isn't global, too
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xc
        mov     ebx, 0x40000000
        mov     eax, [rbx]
        mov     byte ptr [SPARE + 0x5001], (DATA + 0x2000) >> 8
        mov     rcx, cr4
        xor     rcx, PGE
        mov     cr4, rcx
        mov     eax, [rbx]
        hlt

#: case    a page that is global only while CR4.PGE is set
#: manual  SDM 3A 4.10.2.4
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D | G
#: expect  eax = 0xc
        mov     ebx, 0x40000000
        mov     rcx, cr4
        and     rcx, ~PGE
        mov     cr4, rcx
        mov     eax, [rbx]
        mov     rcx, cr3
        mov     byte ptr [SPARE + 0x5001], (DATA + 0x2000) >> 8
        mov     cr3, rcx
        mov     eax, [rbx]
        hlt

#: case    a page that isn't global any more is dropped by CR3
#: manual  SDM 3A 4.10.2.4
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D | G
#: ends    #PF(0) at fault
        mov     ebx, 0x40000000
        mov     eax, [rbx]
        mov     rcx, cr3
        mov     qword ptr [SPARE + 0x5000], DATA + 0x67
        invlpg  [rbx]
        mov     eax, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     cr3, rcx
fault:  mov     eax, [rbx]

#: case    a MOV to CR3 with a PCID drops what is kept for it
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    INVPCID of an address in another PCID drops it there
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: qword   SCRATCH = 1
#: qword   SCRATCH + 8 = 0x40000000
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     edx, 0
        invpcid rdx, [SCRATCH]
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    INVPCID of another PCID drops what it has
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: qword   SCRATCH = 1
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     edx, 1
        invpcid rdx, [SCRATCH]
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    INVPCID of all PCIDs but for global pages drops what another one has
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     edx, 3
        invpcid rdx, [SCRATCH]
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    INVPCID of all PCIDs drops what another one has
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     edx, 2
        invpcid rdx, [SCRATCH]
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    INVPCID of the PCID in force drops its pages
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: qword   SCRATCH = 1
#: ends    #PF(0) at fault
#: expect  eax = 0xa
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     cr3, rsi
        mov     eax, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     edx, 1
        invpcid rdx, [SCRATCH]
fault:  mov     edx, [rbx]

#: case    INVPCID of all PCIDs but for global pages drops those of the one in force
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: ends    #PF(0) at fault
#: expect  eax = 0xa
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     cr3, rsi
        mov     eax, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     edx, 3
        invpcid rdx, [SCRATCH]
fault:  mov     edx, [rbx]

#: case    INVLPG drops a global page for all PCIDs
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D | G
#: qword   SPARE + 0x3000 = DATA | P | RW | US | A | D | G
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xa
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     byte ptr [SPARE + 0x3000], 0
        invlpg  [rbx]
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    INVPCID of everything drops a global page of another PCID
#: manual  SDM 2A INVPCID
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D | G
#: qword   SPARE + 0x3000 = DATA | P | RW | US | A | D | G
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xa
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     byte ptr [SPARE + 0x3000], 0
        mov     edx, 2
        invpcid rdx, [SCRATCH]
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    a change of CR4.PGE drops what all PCIDs have
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     rdx, cr4
        xor     rdx, PGE
        mov     cr4, rdx
        bts     rsi, 63
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    clearing CR4.PCIDE drops what all PCIDs have
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: ends    #PF(0) at fault
#: expect  eax = 0xa, ecx = 0xb
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5000], 0
        mov     rdx, cr4
        xor     rdx, PCIDE
        mov     cr4, rdx
        mov     esi, PML4
        mov     cr3, rsi
fault:  mov     edx, [rbx]

#: case    the current PCID's page is what INVLPG drops, not another's
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: set     cr4 |= PCIDE
#: expect  eax = 0xa, ecx = 0xb, edx = 0xa
        mov     ebx, 0x40000000
        mov     rsi, PML4 + 1
        mov     rdi, SPARE + 2
        mov     cr3, rsi
        mov     eax, [rbx]
        bts     rdi, 63
        mov     cr3, rdi
        mov     ecx, [rbx]
        invlpg  [rbx]
        bts     rsi, 63
        mov     cr3, rsi
        mov     edx, [rbx]
        hlt

#: case    two address spaces with 32-bit paging
#: manual  SDM 3A 4.10.4.1
#: mode    paged32
#: pde     0x40000000 = SPARE + 0x2000 | P | RW | US | A
#: dword   SPARE + 0x2000 = DATA | P | RW | US | A | D
#: dword   SPARE = PT | P | RW | US | A
#: dword   SPARE + 0x400 = SPARE + 0x1000 | P | RW | US | A
#: dword   SPARE + 0x1000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0x1e, ecx = 0x22
        mov     ebx, 0x40000000
        mov     esi, PD
        mov     edi, SPARE
        mov     ebp, 3
again:  add     eax, ds:[ebx]
        mov     cr3, edi
        add     ecx, ds:[ebx]
        xor     byte ptr ds:[SPARE + 0x1001], 0x30
        mov     cr3, esi
        dec     ebp
        jnz     again
        hlt

#: case    two address spaces with PAE paging
#: manual  SDM 3A 4.10.4.1
#: mode    pae
#: pdpte   0x40000000 = SPARE + 0x4000 | P
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = PD | P
#: qword   SPARE + 8 = SPARE + 0x2000 | P
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0x1e, ecx = 0x22
        mov     ebx, 0x40000000
        mov     esi, PDPT
        mov     edi, SPARE
        mov     ebp, 3
        mov     cr3, esi
again:  add     eax, ds:[ebx]
        mov     cr3, edi
        add     ecx, ds:[ebx]
        xor     byte ptr ds:[SPARE + 0x3001], 0x30
        mov     cr3, esi
        dec     ebp
        jnz     again
        hlt

#: case    a large page that is split when its address space comes back
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: qword   SPARE + 0x4000 = P | RW | US | A | D | PS
#: qword   SPARE + 0x5100 = DATA + 0x2000 | P | RW | US | A | D
#: ends    #PF(0) at fault
#: expect  eax = 0xc, ecx = 0xb
        mov     ebx, 0x40020000
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, [rbx]
        mov     ecx, [rbx + 0x1000]
        mov     cr3, rdi
        mov     qword ptr [SPARE + 0x4000], SPARE + 0x5000 + 0x27
        mov     cr3, rsi
        mov     eax, [rbx]
fault:  mov     ecx, [rbx + 0x1000]

#: case    entries written byte by byte, misaligned, and by a locked compare-exchange
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  ecx = 0x56
        mov     ebx, 0x40000000
        mov     ebp, 2
again:  add     ecx, [rbx]
        mov     byte ptr [SPARE + 0x5001], (DATA + 0x1000) >> 8
        invlpg  [rbx]
        add     ecx, [rbx]
        mov     word ptr [SPARE + 0x5001], (DATA + 0x2000) >> 8
        invlpg  [rbx]
        add     ecx, [rbx]
        mov     rax, [SPARE + 0x5000]
        mov     edx, DATA + 0x67
        lock cmpxchg [SPARE + 0x5000], rdx
        invlpg  [rbx]
        add     ecx, [rbx]
        dec     ebp
        jnz     again
        hlt

#: case    an entry that is written twice before it is used
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xa, ecx = 0xc
        mov     ebx, 0x40000000
        mov     eax, [rbx]
        mov     qword ptr [SPARE + 0x5000], DATA + 0x1067
        mov     qword ptr [SPARE + 0x5000], DATA + 0x2067
        invlpg  [rbx]
        mov     ecx, [rbx]
        hlt

#: case    a table that becomes data, and a table again
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE + 0x6000 = DATA + 0x1000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xa, ecx = 0xb, edx = 0xc
        mov     ebx, 0x40000000
        mov     esi, PML4
        mov     eax, [rbx]
        mov     qword ptr [SPARE + 0x4000], SPARE + 0x6027
        mov     cr3, rsi
        mov     ecx, [rbx]
        mov     edi, SPARE + 0x5000
        mov     ebp, 512
fill:   mov     qword ptr [rdi], 0x55555555
        add     rdi, 8
        dec     ebp
        jnz     fill
        invlpg  [rbx]
        cmp     ecx, [rbx]
        jne     wrong
        mov     qword ptr [SPARE + 0x5000], DATA + 0x2067
        mov     qword ptr [SPARE + 0x4000], SPARE + 0x5027
        mov     cr3, rsi
        mov     edx, [rbx]
wrong:  hlt

#: case    a frame that is a directory and the table below it
#: manual  SDM 3A 4.5.4
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x4000 | P | RW | US | A | D
#: qword   SPARE + 0x4008 = DATA | P | RW | US | A | D
#: qword   DATA = DATA + 0x2000 | P | RW | US | A | D
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0xc, ecx = 0xb, edx = DATA + 0x1067
        mov     ebx, 0x40200000
        mov     eax, [rbx]
        mov     qword ptr [0x40001000], DATA + 0x1067
        invlpg  [rbx]
        mov     ecx, [rbx]
        mov     edx, [DATA]
        hlt

#: case    REP MOVS writes a table over the one in use
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE + 0x5008 = DATA + 0x1000 | P | RW | US | A | D
#: qword   SPARE + 0x6000 = DATA + 0x1000 | P | RW | US | A | D
#: qword   SPARE + 0x6008 = DATA + 0x2000 | P | RW | US | A | D
#: dword   DATA = 0xa
#: dword   DATA + 0x1000 = 0xb
#: dword   DATA + 0x2000 = 0xc
#: expect  eax = 0x15, edx = 0x17
        mov     ebx, 0x40000000
        mov     eax, [rbx]
        add     eax, [rbx + 0x1000]
        mov     esi, SPARE + 0x6000
        mov     edi, SPARE + 0x5000
        mov     ecx, 512
        rep movsq
        mov     esi, PML4
        mov     cr3, rsi
        mov     edx, [rbx]
        add     edx, [rbx + 0x1000]
        hlt
