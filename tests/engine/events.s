# Interrupts and what they interrupt.

#: case    STI and HLT with an interrupt pending: it is taken after the HLT has begun
#: manual  SDM 2B STI; 2A HLT
#: mode    long
#: ends    interrupt 0x40 at back
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        sti
        hlt
back:   hlt

#: case    an interrupt comes back to where it was taken with everything as before
#: manual  SDM 3A 6.4
#: mode    long
#: gate    0x40 = int64 CODE64:handler
#: expect  rbx = 3, rcx = 1, if = 0, rsp = STACK, cf = 1
        mov     al, 0x40
        sti
        stc
        out     INTERRUPT_PORT, al
        inc     ebx
        inc     ebx
        inc     ebx
        cli
        hlt
handler: inc    ecx
        clc
        iretq

#: case    POPF that sets IF has no shadow
#: manual  SDM 2B POPF
#: mode    flat32
#: ends    interrupt 0x40 at after
#: expect  ebx = 0
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        push    IF | 2
        popfd
after:  inc     ebx
        hlt

#: case    IRET that sets IF has no shadow
#: manual  SDM 2A IRET
#: mode    long
#: ends    interrupt 0x40 at after
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        push    DATA32
        push    STACK
        push    IF | 2
        push    CODE64
        push    offset after
        iretq
after:  nop
        hlt

#: case    MOV SS and STI in a row shadow once
#: manual  SDM 3A 6.8.3
#: mode    flat32
#: ends    interrupt 0x40 at after
#: expect  ebx = 1
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        mov     cx, DATA32
        sti
        mov     ss, cx
        inc     ebx
after:  inc     ebx
        hlt

#: case    a trap gate leaves interrupts open, so the next one nests
#: manual  SDM 3A 6.12.1.3
#: mode    flat32
#: gate    0x40 = trap32 CODE32:first
#: gate    0x41 = int32 CODE32:second
#: expect  ebx = 1, esp = STACK - 24, dword(STACK - 24) = first
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        inc     al
        out     INTERRUPT_PORT, al
        sti
        nop
        hlt
first:  nop
        hlt
second: mov     ebx, 1
        hlt

#: case    HLT is woken by an interrupt only with IF set
#: manual  SDM 2A HLT
#: mode    flat32
#: on-halt interrupt 0x40
#: ends    halt at done
        hlt
done:   nop

#: case    a loop without an exit is seen as one
#: manual  SDM 2A JMP
#: mode    long
#: ends    endless
again:  jmp     again

#: case    REP MOVS of pages that don't overlap copies all
#: manual  SDM 2B REP
#: mode    long
#: byte    DATA + 0x1fff = 0x77
#: expect  byte(DATA + 0x5fff) = 0x77, rsi = DATA + 0x2000, rdi = DATA + 0x6000, rcx = 0
        mov     esi, DATA
        mov     edi, DATA + 0x4000
        mov     ecx, 0x400
        rep movsq
        hlt

#: case    REP MOVS that overlaps by one byte fills
#: manual  SDM 2B REP
#: mode    long
#: byte    DATA + 0xf00 = 0xee
#: expect  byte(DATA + 0x1100) = 0xee, byte(DATA + 0x1101) = 0
        mov     esi, DATA + 0xf00
        mov     edi, DATA + 0xf01
        mov     ecx, 0x200
        rep movsb
        hlt

#: case    MMIO of each width is one access
#: manual  SDM 3A 11.3
#: mode    flat32
#: expect  writes(0xfee00000) = 2, written(0xfee00000) = 0x12345678, reads(0xfee00010) = 1, al = 0xff
        mov     ebx, 0xfee00000
        mov     byte ptr [ebx], 1
        mov     dword ptr [ebx], 0x12345678
        mov     al, [ebx + 16]
        hlt

#: case    a read-modify-write of MMIO reads once and writes once
#: manual  SDM 3A 8.1.2.2
#: mode    flat32
#: expect  reads(0xfee00000) = 1, writes(0xfee00000) = 1, written(0xfee00000) = 0, zf = 1
        mov     ebx, 0xfee00000
        add     dword ptr [ebx], 1
        hlt

#: case    CPUID and other serialising instructions don't disturb a shadow's end
#: manual  SDM 2B STI
#: mode    flat32
#: ends    interrupt 0x40 at after
        mov     al, 0x40
        out     INTERRUPT_PORT, al
        sti
        cpuid
after:  nop
        hlt
