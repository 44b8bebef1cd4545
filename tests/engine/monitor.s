# MONITOR and MWAIT: what arms a line, and what ends the wait for it.

#: case    MWAIT waits at the next instruction
#: manual  SDM 2B MWAIT
#: mode    long
#: ends    halt at done
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
done:   inc     ebx

#: case    MWAIT without MONITOR does nothing
#: manual  SDM 2B MWAIT
#: mode    flat32
#: expect  ebx = 1
        xor     ecx, ecx
        mwait
        inc     ebx
        hlt

#: case    a store of the line's old value between MONITOR and MWAIT counts
#: manual  SDM 3A 9.10.4
#: mode    long
#: qword   DATA = 7
#: expect  ebx = 1
        mov     eax, DATA + 0x3f
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mov     byte ptr [DATA], 7
        mwait
        inc     ebx
        hlt

#: case    a device's store between MONITOR and MWAIT counts
#: manual  SDM 3A 9.10.4
#: mode    long
#: expect  ebx = 1, dword(DATA + 0x20) = 0
        mov     eax, DATA + 0x20
        out     DMA_ADDRESS_PORT, eax
        xor     ecx, ecx
        xor     edx, edx
        monitor
        xor     eax, eax
        out     DMA_PORT, eax
        mwait
        inc     ebx
        hlt

#: case    a store beside the line doesn't count
#: manual  SDM 3A 9.10.4
#: mode    long
#: ends    halt at done
#: on-halt store DATA + 0x40 = 1
#: expect  byte(DATA + 0x40) = 1
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mov     qword ptr [DATA - 8], rax
        mwait
done:   inc     ebx

#: case    a store to the line ends MWAIT
#: manual  SDM 2B MWAIT
#: mode    long
#: on-halt store DATA + 0x3f = 5
#: expect  ebx = 5
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
        movzx   ebx, byte ptr [DATA + 0x3f]
        hlt

#: case    a store of the line's old value ends MWAIT in 32-bit code
#: manual  SDM 2B MWAIT
#: mode    paged32
#: on-halt store DATA + 0x20 = 0
#: expect  ebx = 1
        mov     eax, DATA + 1
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
        inc     ebx
        hlt

#: case    the line has to be armed anew for each MWAIT
#: manual  SDM 2B MWAIT
#: mode    long
#: on-halt store DATA = 1
#: expect  ebx = 2
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
        inc     ebx
        mwait
        inc     ebx
        hlt

#: case    only the last line counts
#: manual  SDM 2B MONITOR
#: mode    long
#: ends    halt at done
        xor     ecx, ecx
        xor     edx, edx
        mov     eax, DATA
        monitor
        mov     eax, DATA + 0x40
        monitor
        mov     dword ptr [DATA], eax
        mwait
done:   inc     ebx

#: case    HLT isn't ended by a store to an armed line
#: manual  SDM 2A HLT
#: mode    long
#: ends    halt at done
#: on-halt store DATA = 1
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        hlt
done:   inc     ebx

#: case    an interrupt ends MWAIT and comes back behind it
#: manual  SDM 2B MWAIT
#: mode    long
#: on-halt interrupt 0x40
#: ends    interrupt 0x40 at after
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        sti
        mwait
after:  hlt

#: case    an NMI ends MWAIT with IF clear
#: manual  SDM 2B MWAIT
#: mode    long
#: on-halt nmi
#: ends    interrupt 2 at after
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
after:  hlt

#: case    a masked interrupt doesn't end MWAIT
#: manual  SDM 2B MWAIT
#: mode    long
#: on-halt interrupt 0x40
#: ends    halt at after
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
after:  inc     ebx

#: case    a masked interrupt ends MWAIT with ECX bit 0, and stays pending
#: manual  SDM 2B MWAIT
#: mode    long
#: on-halt interrupt 0x40
#: ends    interrupt 0x40 at later
#: expect  ebx = 1
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mov     ecx, 1
        mwait
        inc     ebx
        sti
        nop
later:  hlt

#: case    C-states in EAX are hints
#: manual  SDM 2B MWAIT
#: mode    long
#: ends    halt at after
        mov     eax, DATA
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mov     eax, 0xffffffff
        mwait
after:  inc     ebx

#: case    MONITOR with an extension is refused
#: manual  SDM 2B MONITOR
#: mode    flat32
#: ends    #GP(0) at fault
        mov     ecx, 1
fault:  monitor

#: case    MWAIT with an unknown extension is refused, armed or not
#: manual  SDM 2B MWAIT
#: mode    flat32
#: ends    #GP(0) at fault
        mov     ecx, 2
fault:  mwait

#: case    in 64-bit code all of RCX counts
#: manual  SDM 2B MONITOR
#: mode    long
#: ends    #GP(0) at fault
        mov     rcx, 0x100000000
fault:  monitor

#: case    in 64-bit code all of RCX counts for MWAIT
#: manual  SDM 2B MWAIT
#: mode    long
#: ends    #GP(0) at fault
        mov     rcx, 0x100000001
fault:  mwait

#: case    MONITOR is ring 0's
#: manual  SDM 2B MONITOR
#: mode    long user
#: ends    #UD at fault
        xor     ecx, ecx
fault:  monitor

#: case    MWAIT is ring 0's, and that comes before its operands
#: manual  SDM 2B MWAIT
#: mode    flat32 user
#: ends    #UD at fault
        mov     ecx, 2
fault:  mwait

#: case    MONITOR reads its line as a load does
#: manual  SDM 2B MONITOR
#: mode    long
#: pte     DATA = 0
#: ends    #PF(0) at fault
#: expect  cr2 = DATA + 5
        mov     eax, DATA + 5
        xor     ecx, ecx
        xor     edx, edx
fault:  monitor

#: case    MONITOR through a segment checks its limit
#: manual  SDM 2B MONITOR
#: mode    flat32
#: gdt     0x80 = data32 limit=0xfff
#: ends    #GP(0) at fault
        mov     eax, 0x80
        mov     fs, ax
        mov     eax, 0x1000
        xor     ecx, ecx
        xor     edx, edx
fault:  .byte   0x64, 0x0f, 0x01, 0xc8

#: case    a line that isn't RAM is never armed
#: manual  SDM 3A 9.10.4
#: mode    flat32
#: expect  ebx = 1, reads(0xfee00000) = 1
        mov     eax, 0xfee00000
        xor     ecx, ecx
        xor     edx, edx
        monitor
        mwait
        inc     ebx
        hlt
