# Guests that do to code what compilers don't: overlapping instructions, ends of pages and of memory, prefixes without end,
# faults without end, and every way to write what is about to run.

# --- Jumps into instructions.

#: case    a jump into an immediate runs what the immediate holds
#: manual  SDM 3A 6.15 interrupt 6
#: mode    long
#: expect  ebx = 0x90f4c0ff, eax = 1
code:   mov     eax, 0x90f4c0ff         # from its second byte on: inc eax; hlt
        mov     ebx, eax
        xor     eax, eax
        jmp     code + 1

#: case    two functions in the same bytes are called in turns
#: manual  SDM 2A 2.1
#: mode    long
#: expect  ebx = 50, ecx = 0, eax = 0x90c3c100
        mov     ecx, 50
again:  call    code
        cmp     eax, 0x90c3c0ff
        jne     end
        call    code + 1
        inc     ebx
        loop    again
end:    hlt
code:   mov     eax, 0x90c3c0ff         # from its second byte on: inc eax; ret
        ret

#: case    a jump's target is its own second byte
#: manual  SDM 2A JMP
#: mode    flat32
#: expect  eax = 1
        .byte   0xeb, 0xff, 0xc0        # jmp to ff; ff c0 is inc eax
        hlt

#: case    the same bytes run from each of several
#: manual  SDM 2A 2.1
#: mode    flat32
#: expect  ebx = 0xc3404140, eax = 5, ecx = 2
        call    code
        mov     ebx, ecx
        xor     eax, eax
        xor     ecx, ecx
        call    code + 1                # inc eax; inc ecx; inc eax
        call    code + 3                # inc eax
        lea     edi, [code + 2]
        call    edi                     # inc ecx; inc eax
        lea     edi, [code + 3]
        call    edi                     # inc eax
        hlt
        .balign 8
code:   mov     ecx, 0xc3404140
        ret

#: case    a loop jumps into the instruction that it began with
#: manual  SDM 2A 2.1
#: mode    long
#: expect  eax = 30, ebx = 1, ecx = 0
        mov     ecx, 30
        mov     ebx, 0
        jmp     over
over:   .byte   0x81, 0xc3              # add ebx, 0xe2c0ff01: in its bytes inc eax; loop
        .byte   0x01, 0xff, 0xc0, 0xe2
        .byte   0xfc                    # the loop's distance; as an instruction: cld
        cmp     ecx, 0
        je      end
        xor     ebx, ebx
        inc     ebx
        jmp     over + 3
end:    hlt

# --- Ends of pages and of memory.

#: case    what follows a page's last byte is fetched only when it is reached
#: manual  SDM 3A 4.7
#: mode    long
#: pte     0x8000 = 0
#: ends    #PF(0x10) at next
#: expect  eax = 1, cr2 = 0x8000
        .set    next, 0x8000
        jmp     last
        .org    0xffe
last:   inc     eax

#: case    a jump in a page's last bytes leaves the missing next page alone
#: manual  SDM 3A 4.7
#: mode    long
#: pte     0x8000 = 0
#: expect  eax = 100, ecx = 0
        mov     ecx, 100
        jmp     last
        .org    0xff0
body:   inc     eax
        dec     ecx
        jnz     last
        hlt
        .org    0xffe
last:   jmp     body

#: case    a conditional jump at a page's end falls into a missing page
#: manual  SDM 3A 4.7
#: mode    long
#: pte     0x8000 = 0
#: ends    #PF(0x10) at next
#: expect  ecx = 0, cr2 = 0x8000
        .set    next, 0x8000
        mov     ecx, 3
        jmp     last
        .org    0xff0
body:   jmp     last
        .org    0xffe
last:   loop    body

#: case    a page that loses its mapping can't be run though it has been
#: manual  SDM 3A 4.10.4
#: mode    long
#: byte    DATA = 0xff, 0xc0, 0xc3
#: ends    #PF(0x10) at next
#: expect  eax = 2, cr2 = DATA
        .set    next, DATA
        mov     ebx, DATA
        call    rbx
        call    rbx
        mov     qword ptr [PT + DATA / 512], 0
        invlpg  [rbx]
        call    rbx
        hlt

#: case    a page that becomes no code can't be run though it has been
#: manual  SDM 3A 4.6
#: mode    long
#: byte    DATA = 0xff, 0xc0, 0xc3
#: ends    #PF(0x11) at next
#: expect  eax = 2
        .set    next, DATA
        mov     ebx, DATA
        call    rbx
        call    rbx
        bts     qword ptr [PT + DATA / 512], 63
        invlpg  [rbx]
        call    rbx
        hlt

#: case    memory's last byte can be code
#: manual  SDM 3A 8.1.3
#: mode    flat32
#: byte    0xffffff = 0xf4
#: expect  rip = 0x1000000
        mov     eax, 0xffffff
        jmp     eax

#: case    an instruction goes on where memory has ended
#: manual  SDM 3A 6.15 interrupt 6
#: mode    flat32
#: byte    0xffffff = 0xb8
#: ends    #UD at next
#: expect  eax = 0xffffffff
        .set    next, 0x1000004
        mov     ebx, 0xffffff
        jmp     ebx

#: case    code outside of memory is all ones
#: manual  SDM 3A 6.15 interrupt 6
#: mode    flat32
#: ends    #UD at next
        .set    next, 0x2000000
        mov     ebx, next
        jmp     ebx

# --- Prefixes.

#: case    fifteen bytes are an instruction
#: manual  SDM 2A 2.3.11
#: mode    long
#: expect  eax = 1
        .fill   13, 1, 0x2e
        inc     eax
        hlt

#: case    sixteen bytes are none
#: manual  SDM 3A 6.15 interrupt 13
#: mode    long
#: ends    #GP(0) at fault
#: expect  eax = 0
fault:  .fill   14, 1, 0x2e
        inc     eax
        hlt

#: case    prefixes without end are a fault at their first
#: manual  SDM 3A 6.15 interrupt 13
#: mode    flat32
#: ends    #GP(0) at fault
fault:  .fill   4000, 1, 0x66

#: case    prefixes that are too many don't touch a missing page behind them
#: manual  SDM 3A 6.15 interrupt 13
#: mode    long
#: pte     0x8000 = 0
#: ends    #GP(0) at fault
        jmp     fault
        .org    0xff1
fault:  .fill   15, 1, 0x66

#: case    prefixes that aren't too many yet need the next page
#: manual  SDM 3A 4.7
#: mode    long
#: pte     0x8000 = 0
#: ends    #PF(0x10) at fault
#: expect  cr2 = 0x8000
        jmp     fault
        .org    0xff2
fault:  .fill   14, 1, 0x66

#: case    prefixes without end in virtual-8086 mode
#: manual  SDM 3A 6.15 interrupt 13
#: mode    v86
#: ends    #GP(0) at fault
fault:  .fill   100, 1, 0xf3

# --- Faults without end.

#: case    a handler that returns to what faulted never ends
#: manual  SDM 3A 6.6
#: mode    long
#: budget  5000
#: gate    6 = int64 CODE64:handler
#: ends    endless
        xor     eax, eax
again:  ud2
handler: inc    eax
        iretq

#: case    a page fault that is never mended
#: manual  SDM 3A 6.15 interrupt 14
#: mode    paged32
#: budget  5000
#: pte     DATA = 0
#: gate    14 = int32 CODE32:handler
#: ends    endless
#: expect  cr2 = DATA + 4
        mov     ecx, ds:[DATA + 4]
        hlt
handler: add    esp, 4
        iretd

#: case    a fetch that is never mended
#: manual  SDM 3A 6.15 interrupt 14
#: mode    long
#: budget  5000
#: pte     DATA = 0
#: gate    14 = int64 CODE64:handler
#: ends    endless
#: expect  cr2 = DATA
        mov     ebx, DATA
        jmp     rbx
handler: add    rsp, 8
        iretq

#: case    a page fault mended at its tenth time
#: manual  SDM 3A 6.15 interrupt 14
#: mode    long
#: pte     DATA = DATA | 6
#: dword   DATA + 4 = 77
#: gate    14 = int64 CODE64:handler
#: expect  ecx = 77, eax = 10
        mov     ecx, [DATA + 4]
        hlt
handler: inc    eax
        cmp     eax, 10
        jne     back
        bts     dword ptr [PT + DATA / 512], 0
back:   add     rsp, 8
        iretq

#: case    a recursion without end runs out of stack, and so does its fault
#: manual  SDM 3A 6.15 interrupt 8
#: mode    long
#: pte     STACK - 0x1000 = 0
#: ends    shutdown
again:  call    again

#: case    no gate for a fault, for that, and for the double fault
#: manual  SDM 3A 6.15 interrupt 8
#: mode    flat32
#: gate    6 = int32 CODE32:0 absent
#: gate    8 = int32 CODE32:0 absent
#: gate    11 = int32 CODE32:0 absent
#: ends    shutdown
        ud2

# --- Code that writes code. `patch` is what is written, and has run before.

#: case    a store to a block that is chained to
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 500500, ecx = 0
        mov     ecx, 1000
again:  mov     dword ptr [patch + 1], ecx
        jmp     patch
patch:  mov     edx, 5
        add     eax, edx
        loop    again
        hlt

#: case    code is written by one name and run by another, two hundred times
#: manual  SDM 3A 8.1.3
#: mode    long
#: pte     SPARE = DATA | 7
#: byte    DATA = 0xb8, 0, 0, 0, 0, 0xc3
#: expect  ebx = 20100, ecx = 0
        mov     ecx, 200
        mov     esi, DATA
again:  mov     dword ptr [SPARE + 1], ecx
        call    rsi
        add     ebx, eax
        loop    again
        hlt

#: case    both names of a page run what either has written
#: manual  SDM 3A 8.1.3
#: mode    long
#: pte     SPARE = DATA | 7
#: byte    DATA = 0xb8, 1, 0, 0, 0, 0xc3
#: expect  ebx = 1, ebp = 1, r8 = 2, r9 = 2, r10 = 3, r11 = 3
        mov     esi, DATA
        mov     edi, SPARE
        call    rsi
        mov     ebx, eax
        call    rdi
        mov     ebp, eax
        mov     byte ptr [rsi + 1], 2
        call    rsi
        mov     r8d, eax
        call    rdi
        mov     r9d, eax
        mov     byte ptr [rdi + 1], 3
        call    rsi
        mov     r10d, eax
        call    rdi
        mov     r11d, eax
        hlt

#: case    REP MOVS copies a function over another, again and again
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    SCRATCH = 0xff, 0xc0, 0xc3, 0x90, 0xff, 0xcb, 0xc3, 0x90
#: expect  eax = 50, ebx = 0xffffffce
        mov     ebp, 50
again:  mov     esi, SCRATCH
        call    copy
        mov     esi, SCRATCH + 4
        call    copy
        dec     ebp
        jnz     again
        hlt
copy:   mov     edi, offset patch
        mov     ecx, 4
        rep     movsb
patch:  nop
        nop
        ret
        nop

#: case    REP STOS writes over the page that it runs in, up to its own end
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  ecx = 0, eax = 0xf4f4f4f4
        mov     eax, 0xf4f4f4f4
        mov     edi, offset patch
        mov     ecx, 0x100
        jmp     store
        .balign 4
store:  rep     stosd
patch:  ud2
        .fill   0x400, 1, 0x90

#: case    an instruction across pages is changed in its first page
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  ebx = 0x05050505, eax = 0x05050507
        call    code
        mov     ebx, eax
        mov     byte ptr [code + 1], 7
        call    code
        hlt
        .org    0xffe
code:   mov     eax, 0x05050505
        ret

#: case    an instruction across pages is changed in both at once
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  ebx = 5, eax = 0x01020304
        call    code
        mov     ebx, eax
        mov     dword ptr [code + 1], 0x01020304
        call    code
        hlt
        .org    0xffd
code:   mov     eax, 5
        ret

#: case    a push writes the instruction behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 7
        mov     rbx, 0xf400000007b89090
        mov     esp, offset patch + 8
        push    rbx
        .balign 8, 0x90
patch:  mov     eax, 5
        hlt
        nop
        nop

#: case    a call's return address is the code that it calls
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  rax = back
        mov     esp, offset patch + 10
        call    patch
back:   ud2
        .balign 16, 0x90
patch:  movabs  rax, 0x1122334455667788
        hlt

#: case    an exception's frame is the code of its handler
#: manual  SDM 3A 8.1.3
#: mode    flat32
#: gate    6 = int32 CODE32:handler
#: expect  dword(DATA) = 0x77, dword(fault) = CODE32
        mov     eax, DATA + 0x100
        call    handler
        mov     byte ptr [handler + 14], 0xf4
        mov     esp, offset handler + 14
fault:  ud2
        .balign 4
handler: .byte  0xc7, 0x05              # mov dword ptr [DATA], 0x77; with EIP and CS instead
        .long   DATA, 0x77
        .fill   4, 1, 0x90              # EFLAGS: add al, [eax]; add [eax], eax
        ret

#: case    a locked exchange writes the instruction behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 7, ecx = 5
        mov     ecx, 7
        xchg    [patch + 1], ecx
patch:  mov     eax, 5
        hlt

#: case    a locked add writes the instruction behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 7
        lock add dword ptr [patch + 1], 2
patch:  mov     eax, 5
        hlt

#: case    CMPXCHG16B writes the instructions behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 7, zf = 1
        mov     rax, [patch]
        mov     rdx, [patch + 8]
        mov     rbx, rax
        mov     rcx, rdx
        btc     rbx, 9                  # the immediate 5 becomes 7
        jmp     write
        .balign 16
write:  .fill   11, 1, 0x90
        cmpxchg16b [patch]
        .balign 16, 0x90
patch:  mov     eax, 5
        hlt
        .balign 16, 0x90

#: case    BTS with a register reaches code far from its operand
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 7
        mov     ecx, 8 * 0x100 + 8 + 1
        mov     rbx, offset patch - 0x100
        bts     [rbx], ecx
patch:  mov     eax, 5
        hlt

#: case    a vector store writes the instructions behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    SCRATCH = 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0
#: expect  eax = 8
        movups  xmm0, [SCRATCH]
        movups  [patch], xmm0
patch:  .fill   16, 1, 0x90
        hlt

#: case    an x87 store writes the instruction behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: dword   SCRATCH = 7
#: expect  eax = 7
        fild    dword ptr [SCRATCH]
        fistp   dword ptr [patch + 1]
patch:  mov     eax, 5
        hlt

#: case    a store that tests a condition writes the instruction behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 1
        cmp     eax, eax
        sete    byte ptr [patch + 1]
patch:  mov     eax, 5
        hlt

#: case    SGDT writes the instructions behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: set     gdtr.limit = 0xb848
#: expect  rax = GDT
        jmp     store
        .balign 16
store:  .fill   8, 1, 0x90
        sgdt    [patch]
patch:  .fill   10, 1, 0x90             # the limit is movabs's opcode, the base its immediate
        hlt

#: case    the page walker's accessed bit makes ADD an AND
#: manual  SDM 3A 4.8
#: mode    long
#: pde     0x200000 = CODE | 7
#: expect  ebx = 0x00fff000, eax = 0x00fff000
        xor     eax, eax
        call    patch
        mov     ebx, eax
        mov     edi, offset patch
        sub     edi, CODE               # the entry's place in the table gives the address
        shl     edi, 9
        mov     ecx, [rdi + 0x200000]
        mov     eax, 0xffffffff
        call    patch
        hlt
        .balign 8
patch:  .byte   0x05                    # add eax, 0x00fff000; with bit 5 it is AND
        .long   0x00fff000
        .byte   0x33, 0xd0              # xor edx, eax
        .byte   0xc3

#: case    three thousand functions are written, run, rewritten and run again
#: manual  SDM 3A 8.1.3
#: mode    flat32
#: budget  200000
#: expect  ebx = 3000, eax = 0
        mov     ebp, 0xc340             # inc eax; ret
        call    all
        mov     ebx, eax
        mov     ebp, 0xc348             # dec eax; ret
        call    all
        hlt
all:    mov     ecx, 3000
        mov     edi, 0x100000
write:  mov     [edi], bp
        add     edi, 20
        loop    write
        mov     ecx, 3000
        mov     edi, 0x100000
run:    call    edi
        add     edi, 20
        loop    run
        ret

#: case    data beside code is written a thousand times while the code runs
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 1000, ecx = 0
        mov     ecx, 1000
again:  inc     dword ptr [count]
        call    code
        loop    again
        hlt
code:   mov     eax, [count]
        ret
count:  .long   0

#: case    writes of what is there already change nothing
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 5, ecx = 0, ebx = 5000
        mov     ecx, 1000
again:  mov     byte ptr [patch + 1], 5
patch:  mov     eax, 5
        add     ebx, eax
        loop    again
        hlt

#: case    a recursion deeper than any stack of host return addresses, with every page new
#: manual  SDM 2A CALL
#: mode    flat32
#: budget  400000
#: expect  eax = 0, ecx = 17700, edx = 17700, esp = 0xe00000
        mov     esp, 0xe00000
        mov     ebx, 0x200000
        xor     ecx, ecx
        xor     edx, edx
        # Everything is met before the stack is deep.
        mov     eax, 1200
        call    down
        mov     eax, 16500
        call    down
        hlt
        # Pages that nobody has touched before, towards the end.
down:   inc     ecx
        cmp     eax, 1000
        ja      deeper
        add     ebx, 0x1000
        add     dword ptr ds:[ebx], 1
deeper: dec     eax
        jz      bottom
        call    down
bottom: inc     edx
        ret
