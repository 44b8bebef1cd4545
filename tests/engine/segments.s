# Segment registers in protected mode: what may be loaded into them, and what accesses through them are checked against.

#: case    MOV to SS needs an RPL equal to CPL
#: manual  SDM 2B MOV; 3A 5.7
#: mode    flat32
#: ends    #GP(DATA32) at fault
#: expect  ss = DATA32
        mov     ax, DATA32 + 3
fault:  mov     ss, ax

#: case    MOV to SS refuses the null selector outside 64-bit mode
#: manual  SDM 2B MOV
#: mode    flat32
#: ends    #GP(0) at fault
        xor     eax, eax
fault:  mov     ss, ax

#: case    MOV to SS takes the null selector in ring 0 of 64-bit mode
#: manual  SDM 2B MOV; 3A 5.4.1.1
#: mode    long
#: expect  ss = 0, rbx = 5
        xor     eax, eax
        mov     ss, ax
        push    5
        pop     rbx
        hlt

#: case    MOV to SS of a null selector whose RPL isn't CPL faults in 64-bit mode
#: manual  SDM 2B MOV
#: mode    long
#: ends    #GP(0) at fault
        mov     eax, 3
fault:  mov     ss, ax

#: case    MOV to SS refuses a read-only data segment
#: manual  SDM 3A 5.5
#: mode    flat32
#: gdt     SELECTORS = data32 read-only
#: ends    #GP(SELECTORS) at fault
        mov     ax, SELECTORS
fault:  mov     ss, ax

#: case    MOV to SS of an absent segment raises #SS with the selector
#: manual  SDM 2B MOV; 3A 6.15 interrupt 12
#: mode    flat32
#: gdt     SELECTORS = data32 absent
#: ends    #SS(SELECTORS) at fault
        mov     ax, SELECTORS
fault:  mov     ss, ax

#: case    MOV to SS checks the type before the present bit
#: manual  SDM 2B MOV
#: mode    flat32
#: gdt     SELECTORS = code32 absent
#: ends    #GP(SELECTORS) at fault
        mov     ax, SELECTORS
fault:  mov     ss, ax

#: case    MOV to DS of an absent segment raises #NP with the selector
#: manual  SDM 2B MOV; 3A 6.15 interrupt 11
#: mode    flat32
#: gdt     SELECTORS = data32 absent
#: ends    #NP(SELECTORS) at fault
#: expect  ds = DATA32
        mov     ax, SELECTORS
fault:  mov     ds, ax

#: case    MOV to DS refuses an execute-only code segment
#: manual  SDM 2B MOV
#: mode    flat32
#: gdt     SELECTORS = code32 execute-only
#: ends    #GP(SELECTORS) at fault
        mov     ax, SELECTORS
fault:  mov     ds, ax

#: case    MOV to DS refuses system descriptors
#: manual  SDM 2B MOV
#: mode    flat32
#: ends    #GP(LDTR) at fault
        mov     ax, LDTR
fault:  mov     ds, ax

#: case    MOV to DS beyond the GDT's limit raises #GP with the selector
#: manual  SDM 3A 3.5.1
#: mode    flat32
#: set     gdtr.limit = 0xa6
#: ends    #GP(0xa0) at fault
        mov     ax, 0xa0
fault:  mov     ds, ax

#: case    MOV to DS from the LDT gives the selector with its TI bit
#: manual  SDM 3A 6.13
#: mode    flat32
#: ends    #GP(0x104) at fault
        mov     ax, 0x107
fault:  mov     ds, ax

#: case    MOV to DS takes a segment of the LDT
#: manual  SDM 3A 3.5.1
#: mode    flat32
#: ldt     0x10 = data32 base=SCRATCH limit=0xff
#: dword   SCRATCH + 8 = 0x12345678
#: expect  eax = 0x12345678, ds.base = SCRATCH, ds.limit = 0xff
        mov     ax, 0x14
        mov     ds, ax
        mov     eax, ds:[8]
        hlt

#: case    a null DS may be loaded but not used
#: manual  SDM 3A 5.4.1
#: mode    flat32
#: ends    #GP(0) at fault
#: expect  ds = 3
        mov     ax, 3
        mov     ds, ax
fault:  mov     eax, ds:[0]

#: case    ring 3 can't load a ring 0 data segment
#: manual  SDM 3A 5.6
#: mode    flat32 user
#: ends    #GP(DATA32) at fault
        mov     ax, DATA32
fault:  mov     es, ax

#: case    ring 0 can't load its data segment with RPL 3
#: manual  SDM 3A 5.6
#: mode    flat32
#: ends    #GP(DATA32) at fault
        mov     ax, DATA32 + 3
fault:  mov     es, ax

#: case    ring 3 may read a conforming ring 0 code segment
#: manual  SDM 3A 5.6.1
#: mode    flat32 user
#: gdt     SELECTORS = code32 conforming
#: ends    #GP(0) at done
#: expect  fs = SELECTORS + 3, al = 0x66
        mov     ax, SELECTORS + 3
        mov     fs, ax
        mov     eax, fs:[CODE]          # begins with MOV's operand-size prefix
done:   hlt

#: case    loading a segment sets its accessed bit
#: manual  SDM 3A 3.4.5.1
#: mode    flat32
#: gdt     SELECTORS = data32 unaccessed
#: expect  byte(GDT + SELECTORS + 5) = 0x93, ds.attributes & 1 = 1
        mov     ax, SELECTORS
        mov     ds, ax
        hlt

#: case    the accessed bit of a segment in a read-only page is set by supervisor privilege and faults
#: manual  SDM 3A 4.6.1, 4.7
#: mode    paged32
#: gdt     SELECTORS = data32 unaccessed
#: pte     GDT &= ~RW
#: ends    #PF(3) at fault
#: expect  cr2 & ~0xfff = GDT, byte(GDT + SELECTORS + 5) = 0x92
        mov     ax, SELECTORS
fault:  mov     ds, ax

#: case    MOV to CS is undefined
#: manual  SDM 2B MOV
#: mode    flat32
#: ends    #UD at fault
fault:  .byte   0x8e, 0xc8              # mov cs, ax

#: case    an access through SS beyond its limit raises #SS(0)
#: manual  SDM 3A 5.3
#: mode    flat32
#: gdt     SELECTORS = data32 base=SCRATCH limit=0x1ff
#: ends    #SS(0) at fault
        mov     ax, SELECTORS
        mov     ss, ax
        mov     esp, 0x100
fault:  mov     eax, ss:[0x1fd]

#: case    the limit is checked for an operand's last byte
#: manual  SDM 3A 5.3
#: mode    flat32
#: gdt     SELECTORS = data32 base=SCRATCH limit=0x1ff
#: dword   SCRATCH + 0x1fc = 0xdead
#: ends    #GP(0) at fault
#: expect  ebx = 0xdead
        mov     ax, SELECTORS
        mov     ds, ax
        mov     ebx, ds:[0x1fc]
fault:  mov     ecx, ds:[0x1fd]

#: case    a write to a read-only segment faults, a read doesn't
#: manual  SDM 3A 5.5
#: mode    flat32
#: gdt     SELECTORS = data32 read-only base=SCRATCH
#: dword   SCRATCH = 77
#: ends    #GP(0) at fault
#: expect  ebx = 77
        mov     ax, SELECTORS
        mov     ds, ax
        mov     ebx, ds:[0]
fault:  mov     ds:[0], ebx

#: case    a write through CS faults
#: manual  SDM 3A 5.5
#: mode    flat32
#: ends    #GP(0) at fault
fault:  mov     dword ptr cs:[SCRATCH], 5

#: case    an expand-down segment is valid above its limit
#: manual  SDM 3A 5.3
#: mode    flat32
#: gdt     SELECTORS = data32 expand-down limit=0xfff
#: dword   0x20000 = 99
#: ends    #GP(0) at fault
#: expect  ebx = 99
        mov     ax, SELECTORS
        mov     ds, ax
        mov     ebx, ds:[0x20000]
fault:  mov     ecx, ds:[0xfff]

#: case    the first byte above an expand-down limit is good
#: manual  SDM 3A 5.3
#: mode    flat32
#: gdt     SELECTORS = data32 expand-down limit=0x5fff
#: dword   SCRATCH = 55
#: expect  ecx = 55
        mov     ax, SELECTORS
        mov     ds, ax
        mov     ecx, ds:[SCRATCH]
        hlt

#: case    a 16-bit expand-down segment ends at 64 KiB
#: manual  SDM 3A 5.3
#: mode    flat32
#: gdt     SELECTORS = data16 expand-down limit=0xfff
#: ends    #GP(0) at fault
        mov     ax, SELECTORS
        mov     ds, ax
        mov     ecx, ds:[0xfffc]
fault:  mov     ecx, ds:[0xfffd]

#: case    a limit fault comes before a page fault
#: manual  SDM 3A table 6-2
#: mode    paged32
#: gdt     SELECTORS = data32 limit=0x1ffff
#: pte     DATA = 0
#: ends    #GP(0) at fault
        mov     ax, SELECTORS
        mov     ds, ax
fault:  mov     ecx, ds:[DATA]

#: case    LDS of an absent segment leaves the general register
#: manual  SDM 2A LDS
#: mode    flat32
#: gdt     SELECTORS = data32 absent
#: dword   SCRATCH = 0x1234
#: word    SCRATCH + 4 = SELECTORS
#: ends    #NP(SELECTORS) at fault
#: expect  ecx = 7
        mov     ecx, 7
fault:  lds     ecx, ds:[SCRATCH]

#: case    POP to a bad segment leaves ESP
#: manual  SDM 2B POP
#: mode    flat32
#: ends    #GP(DATA32) at fault
#: expect  esp = STACK - 4 - 16
        push    DATA32 + 1
fault:  pop     es

#: case    a 32-bit push of a selector moves ESP by 4 and writes 2 bytes
#: manual  SDM 2B PUSH
#: mode    flat32
#: dword   STACK - 4 = 0xaaaaaaaa
#: expect  dword(STACK - 4) & 0xffff = DATA32, esp = STACK - 4
        push    ds
        hlt

#: case    FS and GS bases survive a null selector in 64-bit mode only as MSRs say
#: manual  SDM 3A 3.4.4
#: mode    long
#: expect  eax = 0x1234
        mov     ecx, 0xc0000100
        mov     eax, SCRATCH
        xor     edx, edx
        wrmsr
        mov     dword ptr [SCRATCH + 8], 0x1234
        mov     eax, fs:[8]
        hlt

#: case    in 64-bit mode the limit and base of DS count for nothing
#: manual  SDM 3A 3.2.4
#: mode    long
#: gdt     SELECTORS = data32 base=0x4000 limit=0xf
#: dword   SCRATCH = 0x77
#: expect  eax = 0x77
        mov     ax, SELECTORS
        mov     ds, ax
        mov     eax, [SCRATCH]
        hlt
