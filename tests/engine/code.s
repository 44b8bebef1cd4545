# Code that changes: what is fetched next is what was written last.

#: case    an instruction rewrites the next one
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  eax = 7
        mov     dword ptr [patch + 1], 7
patch:  mov     eax, 5
        hlt

#: case    a loop rewrites its own body
#: manual  SDM 3A 8.1.3
#: mode    flat32
#: expect  eax = 6, ecx = 0
        mov     ecx, 3
        xor     eax, eax
again:  
patch:  add     eax, 1
        inc     byte ptr ds:[patch + 2]
        loop    again
        hlt

#: case    a device writes code that has run
#: manual  SDM 3A 11.6
#: mode    long
#: expect  ebx = 9, esi = 5
        call    code
        mov     esi, ebx
        mov     eax, offset code + 1
        mov     dx, DMA_ADDRESS_PORT
        out     dx, eax
        mov     eax, 9
        mov     dx, DMA_PORT
        out     dx, eax
        call    code
        hlt
code:   mov     ebx, 5
        ret

#: case    an instruction across pages is changed in its second page
#: manual  SDM 3A 8.1.3
#: mode    long
#: expect  ebx = 5, eax = 0x05000005
        call    code
        mov     ebx, eax
        mov     byte ptr [0x8002], 5
        call    code
        hlt
        .org    0xffe
code:   mov     eax, 5
        ret

#: case    an instruction across pages follows its second page to another frame
#: manual  SDM 3A 4.10.4
#: mode    long
#: byte    DATA = 0, 0, 0, 9, 0xc3
#: byte    DATA + 2 = 9, 0xc3
#: expect  ebx = 5, eax = 0x09000005
        .set    second, 0x8000
        call    code
        mov     ebx, eax
        mov     dword ptr [PT + second / 512], DATA + 7
        invlpg  [second]
        mov     word ptr [DATA + 1], 0x0900
        mov     byte ptr [DATA + 3], 0xc3
        call    code
        hlt
        .org    0xffe
code:   mov     eax, 5
        ret

#: case    the second page of an instruction is missing
#: manual  SDM 3A 4.7
#: mode    long
#: pte     0x8000 = 0
#: ends    #PF(0x10) at fault
#: expect  cr2 = 0x8000
        jmp     fault
        .org    0xffe
fault:  mov     eax, 5
        ret

#: case    an instruction that ends at its page's end needs no next page
#: manual  SDM 3A 4.7
#: mode    long
#: pte     0x8000 = 0
#: expect  eax = 5
        jmp     code
        .org    0xffa
code:   mov     eax, 5
        hlt

#: case    an alias writes the code
#: manual  SDM 3A 8.1.3
#: mode    long
#: pte     DATA = CODE | 7
#: expect  eax = 7
        mov     dword ptr [DATA + patch - CODE + 1], 7
patch:  mov     eax, 5
        hlt

#: case    REP MOVS writes over the code behind it
#: manual  SDM 3A 8.1.3
#: mode    long
#: byte    SCRATCH = 0xb8, 7, 0, 0, 0
#: expect  eax = 7
        mov     esi, SCRATCH
        mov     edi, offset patch
        mov     ecx, 5
        rep movsb
patch:  mov     eax, 5
        hlt

#: case    the same bytes are decoded anew in another code size
#: manual  SDM 3A 5.2.1
#: mode    flat32
#: expect  ebx = 0x90900005, ax = 5
        call    bytes
        mov     ebx, eax
        xor     eax, eax
        .byte   0xea
        .long   bytes
        .word   CODE16
bytes:  .byte   0xb8, 5, 0, 0x90, 0x90  # mov eax, 0x90900005 or mov ax, 5; nop; nop
        .byte   0x85, 0xc0              # test eax, eax
        .byte   0x79, 0x01              # jns to the hlt
        .byte   0xc3
        hlt

#: case    a mapping that moves takes the code with it
#: manual  SDM 3A 4.10.4
#: mode    long
#: byte    DATA = 0xb8, 1, 0, 0, 0, 0xc3
#: byte    DATA + 0x1000 = 0xb8, 2, 0, 0, 0, 0xc3
#: expect  ebx = 1, eax = 2
        mov     ecx, DATA
        call    rcx
        mov     ebx, eax
        mov     dword ptr [PT + DATA / 512], DATA + 0x1000 + 7
        invlpg  [rcx]
        call    rcx
        hlt
