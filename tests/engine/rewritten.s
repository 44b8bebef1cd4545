# Code that is rewritten again and again, and data beside code: what engines keep of code must not outlive it.

#: case    a function that is rewritten before each of 10,000 calls does what was written
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    DATA = 0x05, 0, 0, 0, 0, 0xc3
#: budget  100000
#: expect  eax = 50005000
        xor     eax, eax
        mov     ecx, 10000
        mov     edi, DATA
again:  mov     [rdi + 1], ecx
        call    rdi                     # add eax, ecx; ret
        dec     ecx
        jnz     again
        hlt

#: case    a function that is rewritten as a whole does what was written
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  400000
#: expect  eax = 0x1130
        xor     eax, eax
        xor     ecx, ecx
again:  mov     edi, DATA
        mov     edx, 200
fill:   mov     byte ptr [rdi], 0x04    # add al, cl, two hundred times
        mov     [rdi + 1], cl
        add     rdi, 2
        dec     edx
        jnz     fill
        mov     byte ptr [rdi], 0xc3
        mov     edi, DATA
        call    rdi
        movzx   eax, al
        inc     ecx
        cmp     ecx, 100
        jnz     again
        mov     ah, 0x11
        hlt

#: case    an instruction on two pages is rewritten on the second
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 0xba000064
        xor     eax, eax
        mov     ecx, 100
again:  mov     byte ptr [func + 4], cl
        call    func
        dec     ecx
        jnz     again
        hlt
        .org    0xffd
func:   .byte   0x05, 1, 0, 0, 0        # add eax, (cl << 24) + 1
        ret

#: case    an instruction on two pages is rewritten on the first
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 0x13ba
        xor     eax, eax
        mov     ecx, 100
again:  mov     byte ptr [func + 1], cl
        call    func
        dec     ecx
        jnz     again
        hlt
        .org    0xffd
func:   .byte   0x05, 1, 0, 0, 0        # add eax, cl
        ret

#: case    an instruction on two pages loses the second
#: manual  SDM 3A 4.10.4
#: mode    long
#: budget  10000
#: ends    #PF(0x10) at func
#: expect  eax = 50, cr2 = 0x8000
        xor     eax, eax
        mov     ecx, 50
again:  call    func
        dec     ecx
        jnz     again
        mov     qword ptr [PT + 8 * 8], 0
        invlpg  [0x8000]
        call    func
        hlt
        .org    0xffd
func:   .byte   0x05, 1, 0, 0, 0        # add eax, 1
        ret

#: case    a store that begins beside code and ends in it changes it
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  10000
#: expect  ebx = 5050
        mov     ecx, 100
        xor     ebx, ebx
again:  mov     eax, ecx
        shl     rax, 8
        mov     al, 0xb8
        shl     rax, 32
        mov     [func - 4], rax
        call    func
        add     ebx, eax
        dec     ecx
        jnz     again
        hlt
        .balign 64
        .fill   64, 1, 0x90
func:   mov     eax, 0
        ret

#: case    a device that writes code changes it
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    DATA = 0x05, 0, 0, 0, 0, 0xc3
#: budget  10000
#: expect  ebx = 20100
        xor     ebx, ebx
        mov     ecx, 200
        mov     edi, DATA
again:  mov     eax, DATA + 1
        mov     edx, DMA_ADDRESS_PORT
        out     dx, eax
        mov     eax, ecx
        mov     edx, DMA_PORT
        out     dx, eax
        xor     eax, eax
        call    rdi                     # add eax, ecx; ret
        add     ebx, eax
        dec     ecx
        jnz     again
        hlt

#: case    data beside code is code's own page's, and code's neighbour's
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 3000, ebx = 2000, edx = 0x1111
        mov     ecx, 1000
        mov     dx, 0
again:  add     dword ptr [apart], 3
        add     dword ptr [beside], 2
        lock inc word ptr [odd]
        mov     byte ptr [odd + 2], dl
        dec     ecx
        jnz     again
        mov     eax, [apart]
        mov     ebx, [beside]
        movzx   edx, word ptr [odd]
        add     edx, 0x1111 - 1000
        hlt
beside:   .long   0
        .balign 64
        .fill   63, 1, 0
odd:    .word   0, 0
        .org    0x800
apart:    .long   0

#: case    immediates of all kinds that are rewritten before each call are what was written
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  ecx = 1, rbx = 125250, rax = 0xffffffffffffff42, rdx = 0x0102030400000001, edi = 500
        xor     eax, eax
        xor     ebx, ebx
        xor     edi, edi
        mov     ebp, 500
again:  xor     esi, esi
        mov     [func + 1], ebp
        mov     [func + 8], ebp
        mov     [func + 15], bpl
        mov     [func + 18], ebp
        mov     [func + 28], ebp
        call    func
        dec     ebp
        jnz     again
        hlt
        .balign 4096
func:   .byte   0xb9, 0, 0, 0, 0                # mov ecx, ebp
        .byte   0x48, 0x81, 0xc3, 0, 0, 0, 0    # add rbx, ebp
        .byte   0x48, 0x83, 0xc0, 0             # add rax, bpl
        .byte   0x48, 0xba, 0, 0, 0, 0, 4, 3, 2, 1
        .byte   0x81, 0xf9, 0, 0, 0, 0          # cmp ecx, ebp
        sete    sil
        add     edi, esi
        ret

#: case    an immediate is rewritten all the time and its opcode now and then
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    DATA = 0x05, 0, 0, 0, 0, 0xc3
#: budget  100000
#: expect  eax = 493332
        xor     eax, eax
        mov     ecx, 1000
        mov     edi, DATA
again:  mov     byte ptr [rdi], 0x05            # add eax, ecx
        test    cl, 127
        jnz     over
        mov     byte ptr [rdi], 0x2d            # sub eax, ecx
over:   mov     [rdi + 1], ecx
        call    rdi
        dec     ecx
        jnz     again
        hlt

#: case    a function that rewrites its own next instruction each time executes what it wrote
#: manual  SDM 3A 8.1.3
#: mode    long
#: budget  100000
#: expect  eax = 500500, ebx = 500500
        xor     eax, eax
        xor     ebx, ebx
        mov     edx, 1000
again:  call    func
        dec     edx
        jnz     again
        hlt
        .balign 4096
func:   mov     [next + 1], edx
next:   .byte   0x05, 0, 0, 0, 0                # add eax, edx
        mov     ecx, 1
        mov     edi, offset string + 2
        xchg    eax, edx
        mov     esi, eax
        rep     stosd
        xchg    eax, edx
string: .byte   0x81, 0xc3, 0, 0, 0, 0          # add ebx, esi
        ret

#: case    code that comes to rest, and is rewritten again
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    DATA = 0x81, 0xc5, 0, 0, 0, 0, 0xc3
#: budget  200000
#: expect  ebp = 12825
        xor     ebp, ebp
        mov     edi, DATA
        mov     r8d, 3
phase:  mov     esi, 50
again:  mov     [rdi + 2], esi
        call    rdi                             # add ebp, esi
        dec     esi
        jnz     again
        mov     esi, 3000
rest:   xor     eax, eax
        cpuid
        call    rdi                             # add ebp, 1
        dec     esi
        jnz     rest
        dec     r8d
        jnz     phase
        hlt
