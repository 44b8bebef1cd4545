# Code of the user's that is met at one address after another: what was translated at one of them serves at the others, but for what
# depends on the address.
#
# The PDPT in SPARE maps the same two pages of code and the page DATA behind them at 0x550000000000 and nine times 1 GiB further on.

#: case    a page of code at ten addresses, in turn
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: budget  200000
#: qword   PML4 + 0x550 = SPARE | P | RW | US | A
#: qword   SPARE + 0x0 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x8 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x10 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x18 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x20 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x28 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x30 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x38 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x40 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x48 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = CODE | P | RW | US | A | D
#: qword   SPARE + 0x2008 = CODE + 0x1000 | P | RW | US | A | D
#: qword   SPARE + 0x2010 = DATA | P | RW | US | A | D
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0x3ff00
#: set     r8 = 0, r9 = 0, r10 = 0, r13 = 0, rbp = 0
#: dword   DATA + 0x10 = 0x1234
#: expect  cpl = 0, r8 = 480 * 0x20a, r9 = 480 * 0x1234, r10 = 480 * 0x1100, r13 = 480 * 7, rbp = 480 * 0x1004, rsi = 480, rdi = 480
start:  mov     ebx, 40
        movabs  r12, 0x550000000000
        mov     r14, r12
round:  push    UDATA
        lea     rax, [r14 + 0x2800]
        push    rax
        push    2
        push    USER64
        lea     rax, [r14 + outer - start]
        push    rax
        iretq
        # Back in ring 0: everything is forgotten, and the next address's turn comes.
        .org    0x100
        mov     rsp, STACK
        mov     eax, PML4
        mov     cr3, rax
        movabs  rax, 0x40000000
        add     r14, rax
        mov     rdx, r14
        sub     rdx, r12
        shr     rdx, 30
        cmp     edx, 10
        jb      onward
        mov     r14, r12
onward: dec     ebx
        jnz     round
        mov     esi, [DATA + 0x18]
        mov     edi, [DATA + 0x20]
        hlt
        .org    0x200
outer:  mov     esi, 12
again:  call    further
        # 0x20a
        dec     esi
        jnz     again
        syscall
nearby: inc     dword ptr [rip + start + 0x2020]
        jmp     across
        .org    0xffd
        # Goes on on the next page.
across: lea     r13, [r13 + 7]
        lea     rdx, [rip]
        # 0x1008
        sub     rdx, r14
        lea     rbp, [rbp + rdx - 4]
        ret
        .org    0x1100
further:
        mov     rax, [rsp]
        sub     rax, r14
        add     r8, rax
        lea     rdx, [rip + further]
        sub     rdx, r14
        add     r10, rdx
        mov     eax, [rip + start + 0x2010]
        add     r9, rax
        add     dword ptr [rip + start + 0x2018], 1
        jmp     nearby

#: case    a page of code at ten addresses at once
#: manual  SDM 3A 4.10.4.1
#: mode    long
#: budget  200000
#: qword   PML4 + 0x550 = SPARE | P | RW | US | A
#: qword   SPARE + 0x0 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x8 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x10 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x18 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x20 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x28 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x30 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x38 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x40 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x48 = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = CODE | P | RW | US | A | D
#: qword   SPARE + 0x2008 = CODE + 0x1000 | P | RW | US | A | D
#: qword   SPARE + 0x2010 = DATA | P | RW | US | A | D
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0x3ff00
#: set     r8 = 0, r9 = 0, r10 = 0, r13 = 0
#: dword   DATA + 0x10 = 0x1234
#: expect  cpl = 0, r8 = 40 * 100 * 0x21d, r9 = 4000 * 0x1234, r10 = 4000 * 0x1100, r13 = 40 * 10 * 45
start:  mov     ebx, 40
        movabs  r12, 0x550000000000
        mov     r14, r12
round:  push    UDATA
        lea     rax, [r14 + 0x2800]
        push    rax
        push    2
        push    USER64
        lea     rax, [r14 + outer - start]
        push    rax
        iretq
        # Back in ring 0: everything is forgotten, and the next address's turn comes.
        .org    0x100
        mov     rsp, STACK
        mov     eax, PML4
        mov     cr3, rax
        movabs  rax, 0x40000000
        add     r14, rax
        mov     rdx, r14
        sub     rdx, r12
        shr     rdx, 30
        cmp     edx, 10
        jb      onward
        mov     r14, r12
onward: dec     ebx
        jnz     round
        mov     esi, [DATA + 0x18]
        mov     edi, [DATA + 0x20]
        hlt
        .org    0x200
outer:  mov     esi, 10
again:  xor     edi, edi
each:   mov     rbp, rdi
        shl     rbp, 30
        add     rbp, r12
        lea     rdx, [rbp + further - start]
        add     r13, rdi
        call    rdx
        # 0x21d
        inc     edi
        cmp     edi, 10
        jne     each
        dec     esi
        jnz     again
        syscall
        .org    0x1100
further:
        mov     rax, [rsp]
        sub     rax, r14
        add     r8, rax
        lea     rdx, [rip + further]
        sub     rdx, rbp
        add     r10, rdx
        mov     eax, [rip + start + 0x2010]
        add     r9, rax
        ret
