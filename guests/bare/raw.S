/* An image with address fields: a flat binary at 1 MiB that checks its .bss, EAX, segments and module count. */
.code32
.globl start
base:
header:
    .long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)
    .long header, base, data_end, bss_end, start
start:
    cmp $0x2badb002, %eax
    jne bad
    mov $stack, %esp
    mov %ds, %ecx
    mov %ss, %edx
    cmp %ecx, %edx
    jne bad
    pushf
    pop %ecx
    test $0x200, %ecx
    jnz bad
    mov %cr0, %ecx
    and $0x80000001, %ecx
    cmp $1, %ecx
    jne bad
    mov $bss, %edi
    mov $(bss_end - bss) / 4 - 4, %ecx
    xor %eax, %eax
    repe scasl
    jne bad
    testl $8, (%ebx)
    jz bad
    cmpl $0, 20(%ebx)
    jne bad
    mov $0xf4, %dx
    mov $5, %eax
    out %eax, %dx
bad:
    mov $0xf4, %dx
    mov $6, %eax
    out %eax, %dx
    hlt
.balign 4
data_end:
.bss
bss: .skip 65536
stack:
bss_end:
