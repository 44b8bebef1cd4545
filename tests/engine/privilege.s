# Changes of privilege that happen again and again, as an engine that remembers things would like them to, and what it must not remember.

#: case    SYSCALL and SYSRET again and again
#: manual  SDM 2B SYSCALL, SYSRET
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = CF | DF | IF, rflags = IF | 2
#: set     r8 = 0, r9 = 0, r10 = 0x1234, r12 = 0, r13 = 0x99, r14 = 0, r15 = 0x77
#: ends    #GP(0) at back
#: expect  frame.cs = USER64, frame.ss = UDATA, r9 = 0, r8 = 20 * (IF | CF | DF), r12 = 20, r14 = 210
#: expect  r10 = 0x1234, r13 = 0x99, r15 = 0x77, rcx = after, r11 = IF | CF | DF | 2, rdx = CODE64, rsi = DATA64
        mov     ebx, 20
again:  std
        stc
        syscall
after:  pushfq
        pop     rax
        and     eax, CF | DF | IF
        add     r8, rax
        dec     ebx
        jnz     again
back:   hlt
        .org    0x100
        pushfq
        pop     rax
        and     eax, CF | DF | IF
        or      r9, rax
        mov     edx, cs
        mov     esi, ss
        inc     r12
        add     r14, rbx
        sysretq

#: case    IRETQ to ring 3 again and again, and back by SYSCALL
#: manual  SDM 2A IRET, 2B SYSCALL
#: mode    long
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0x3ff00
#: set     r8 = 0, r10 = 0x1234, r12 = 0, r13 = 0, r14 = 0
#: expect  cpl = 0, cs = CODE64, ss = DATA64, r8 = 20 * UDATA, r10 = 0x1234, r12 = 20 * USER64, r13 = 20, r14 = 20 * 0xc800
        mov     ebx, 20
next:   push    UDATA
        push    0xc800
        push    CF | DF | 2
        push    USER64
        push    offset outer
        iretq
outer:  jnc     outer
        mov     eax, ss
        add     r8, rax
        mov     eax, cs
        add     r12, rax
        add     r14, rsp
        syscall
        .org    0x100
        inc     r13
        mov     rsp, STACK
        dec     ebx
        jnz     next
        hlt

#: case    IRETQ within ring 0 again and again, with SS and with none
#: manual  SDM 2A IRET
#: mode    long
#: set     r8 = 0, rflags = 2
#: expect  cpl = 0, ss = DATA64, r8 = 11 * DATA64, rsp = 0xc800, cf = 1
        mov     ebx, 20
        mov     edx, DATA64
next:   mov     rsp, STACK
        push    rdx
        push    0xc800
        push    CF | 2
        push    CODE64
        push    offset back
        iretq
back:   mov     eax, ss
        lea     r8, [r8 + rax]
        xor     edx, DATA64
        dec     ebx
        jns     again
        stc
        hlt
again:  jmp     next

#: case    a descriptor that is made absent between two IRETQs
#: manual  SDM 2A IRET
#: mode    long
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0x3ff00
#: ends    #NP(USER64 - 3) at fault
#: expect  ebx = 0
        mov     ebx, 6
next:   mov     rsp, STACK
        push    UDATA
        push    0xc800
        push    2
        push    USER64
        push    offset outer
fault:  iretq
outer:  syscall
        .org    0x100
        dec     ebx
        jnz     next
        and     byte ptr [GDT + USER64 - 3 + 5], 0x7f
        jmp     next

#: case    a stack segment that is made read-only between two IRETQs
#: manual  SDM 2A IRET
#: mode    long
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0x3ff00
#: ends    #GP(UDATA - 3) at fault
#: expect  ebx = 0
        mov     ebx, 6
next:   mov     rsp, STACK
        push    UDATA
        push    0xc800
        push    2
        push    USER64
        push    offset outer
fault:  iretq
outer:  syscall
        .org    0x100
        dec     ebx
        jnz     next
        and     byte ptr [GDT + UDATA - 3 + 5], 0xfd
        jmp     next

#: case    IRETQ that sets TF after many that didn't
#: manual  SDM 2A IRET
#: mode    long
#: ends    #DB at trapped
#: expect  ebx = 0, frame.cs = CODE64
        mov     ebx, 6
        mov     edx, 2
next:   mov     rsp, STACK
        push    DATA64
        push    0xc800
        push    rdx
        push    CODE64
        push    offset back
        iretq
back:   nop
trapped: dec    ebx
        jnz     next
        mov     edx, TF | 2
        jmp     next

#: case    IRETQ with NT set after many without
#: manual  SDM 2A IRET
#: mode    long
#: ends    #GP(0) at fault
#: expect  ebx = 0
        mov     ebx, 6
next:   mov     rsp, STACK
        push    DATA64
        push    STACK
        push    2
        push    CODE64
        push    offset back
fault:  iretq
back:   dec     ebx
        jnz     next
        push    NT | 2
        popfq
        jmp     next

#: case    IRETQ to an address that isn't canonical after many that were
#: manual  SDM 2A IRET
#: mode    long
#: ends    #GP(0) at fault
#: expect  ebx = 0, frame.sp = STACK - 40
        mov     ebx, 6
        mov     rdx, offset back
        mov     rax, 0x800000000000
next:   mov     rsp, STACK
        push    DATA64
        push    STACK
        push    2
        push    CODE64
        push    rdx
fault:  iretq
back:   dec     ebx
        jnz     next
        mov     rdx, rax
        jmp     next

#: case    IRETQ nulls a data segment of ring 0 after many that had none to null
#: manual  SDM 2A IRET
#: mode    long
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0x3ff00, ds = 0, es = 0, fs = 0, gs = 0
#: expect  ebx = 0, r8d = 0, es = 0, ds = 0
        mov     ebx, 6
next:   mov     rsp, STACK
        push    UDATA
        push    0xc800
        push    2
        push    USER64
        push    offset outer
        iretq
outer:  mov     r8d, es
        syscall
        .org    0x100
        dec     ebx
        js      done
        jnz     next
        mov     eax, DATA64
        mov     es, eax
        jmp     next
done:   xor     ebx, ebx
        hlt

#: case    SYSRET with AC in R11 after many without
#: manual  SDM 2B SYSRET
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = AC
#: ends    #GP(0) at done
#: expect  frame.flags & AC = AC, ebx = 0
        mov     ebx, 6
again:  syscall
        dec     ebx
        jnz     again
        syscall
done:   hlt
        .org    0x100
        test    ebx, ebx
        jnz     plain
        or      r11d, AC
plain:  sysretq

#: case    SYSRET to an address that isn't canonical after many that were
#: manual  SDM 2B SYSRET
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x100
#: ends    #GP(0) at fault
#: expect  frame.cs = CODE64
        mov     ebx, 6
again:  syscall
        dec     ebx
        jmp     again
        .org    0x100
        test    ebx, ebx
        jnz     fault
        mov     rcx, 0x800000000000
fault:  sysretq

#: case    SYSCALL goes where LSTAR leads to now, and masks what FMASK says now
#: manual  SDM 2B SYSCALL
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, sfmask = 0, r8 = 0, r12 = 0, rflags = 2
#: expect  r12 = 10, r8 = 10 * CF, cf = 0, cpl = 0
        mov     ebx, 10
again:  stc
        syscall
        jmp     again
        .org    0x100
        pushfq
        pop     rax
        and     eax, CF
        add     r8, rax
        inc     r12
        dec     ebx
        jnz     back
        mov     rdi, rcx
        mov     rsi, r11
        mov     ecx, 0xc0000082
        mov     eax, CODE + 0x180
        xor     edx, edx
        wrmsr
        mov     ecx, 0xc0000084
        mov     eax, CF
        wrmsr
        mov     rcx, rdi
        mov     r11, rsi
back:   sysretq
        .org    0x180
        hlt

#: case    a return in ring 0 to where ring 3 called from stays in ring 0
#: manual  SDM 3A 5.5
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x100
#: expect  cpl = 0, ebx = 1, cs = CODE64
        mov     ebx, 12
again:  call    inner
here:   mov     eax, cs
        test    al, 3
        jz      ended
        dec     ebx
        jmp     again
inner:  syscall
        ret
ended:  hlt
        .org    0x100
        cmp     ebx, 1
        je      steal
        sysretq
steal:  ret

#: case    a return to the same address of another address space
#: manual  SDM 3A 4.10.4.1
#: mode    long user
#: set     star = 0x003b001800000000, lstar = CODE + 0x100, r12 = 0, r13 = 0
#: pdpte   0x40000000 = SPARE + 0x4000 | P | RW | US | A
#: qword   SPARE + 0x4000 = SPARE + 0x5000 | P | RW | US | A
#: qword   SPARE + 0x5000 = DATA | P | RW | US | A | D
#: qword   SPARE = SPARE + 0x1000 | P | RW | US | A
#: qword   SPARE + 0x1000 = PD | P | RW | US | A
#: qword   SPARE + 0x1008 = SPARE + 0x2000 | P | RW | US | A
#: qword   SPARE + 0x2000 = SPARE + 0x3000 | P | RW | US | A
#: qword   SPARE + 0x3000 = DATA + 0x1000 | P | RW | US | A | D
#: qword   DATA = 0xc4ff490000000be8
#: word    DATA + 8 = 0xf6eb
#: dword   DATA + 0x10 = 0xc3050f
#: qword   DATA + 0x1000 = 0xc5ff490000000be8
#: word    DATA + 0x1008 = 0xf6eb
#: dword   DATA + 0x1010 = 0xc3050f
#: expect  cpl = 0, r12 = 10, r13 = 10
        # There: call +0x10; inc r12 (in the other: r13); jmp back. At +0x10: syscall; ret
        mov     ebx, 21
        mov     esi, PML4
        mov     edi, SPARE
        mov     eax, 0x40000000
        jmp     rax
        .org    0x100
        dec     ebx
        jz      done
        xchg    rsi, rdi
        mov     cr3, rsi
        sysretq
done:   hlt

#: case    FS and GS bases are written and read, in ring 3 too
#: manual  SDM 2B RDFSBASE, WRFSBASE
#: mode    long user
#: set     cr4 |= FSGSBASE, rcx = 0xffff800012345678, r11 = 0x7fffffffffff, r13 = DATA, r8 = 0, r9 = 0
#: qword   DATA + 8 = 0x55
#: ends    #GP(0) at done
#: expect  r8 = 0xffff800012345678, r9 = 0x7fffffffffff, r10 = 0x12345678, r14 = 0x55, fs.base = DATA, gs.base = 0xffffffff
        mov     ebx, 4
again:  wrfsbase rcx
        rdfsbase r8
        rdfsbase r10d
        wrgsbase r11
        rdgsbase r9
        wrgsbase r11d
        wrfsbase r13
        mov     r14, fs:[8]
        dec     ebx
        jnz     again
done:   hlt

#: case    WRGSBASE of an address that isn't canonical after many that were
#: manual  SDM 2B WRFSBASE
#: mode    long
#: set     cr4 |= FSGSBASE, r11 = 0x1234
#: ends    #GP(0) at fault
#: expect  gs.base = 0x1234, ebx = 0
        mov     ebx, 4
        mov     rdx, 0x800000000000
fault:  wrgsbase r11
        dec     ebx
        jnz     fault
        mov     r11, rdx
        jmp     fault

#: case    RDFSBASE after CR4.FSGSBASE was cleared
#: manual  SDM 2B RDFSBASE
#: mode    long
#: set     cr4 |= FSGSBASE
#: ends    #UD at fault
#: expect  ebx = 0
        mov     ebx, 4
        mov     rdx, cr4
fault:  rdfsbase rax
        dec     ebx
        jnz     fault
        and     rdx, ~FSGSBASE
        mov     cr4, rdx
        jmp     fault

#: case    MOV of a selector to 16 bits of a register keeps the others
#: manual  SDM 2B MOV
#: mode    long
#: set     rax = 0x1122334455667788, r11 = 0x99aabbccddeeff00
#: expect  rax = 0x1122334455660000 + DATA32, r11 = 0x99aabbccddee0000 + CODE64
        mov     ax, ss
        mov     r11w, cs
        hlt
