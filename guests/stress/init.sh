#!/bin/busybox sh
# The init of a guest whose vCPUs all work at once: stress-ng, hackbench, a parallel make, code that changes under load.
#
# Started by tests/tests/guests/stress.rs in rootfs-stress. /parts names what is run, /seconds how long each stressor works.
# Prints `ok WHAT` or `not ok WHAT: WHY` for each part, `stress-done` at the end, then the kernel's log.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox mkdir -p /dev/shm
busybox mount -t tmpfs tmpfs /dev/shm
busybox mount -t tracefs tracefs /sys/kernel/tracing
busybox mount -t tmpfs tmpfs /tmp
busybox --install -s /tmp
PATH=$PATH:/tmp
cd /tmp
CPUS=$(nproc)
SECONDS=$(cat /seconds)
T=/sys/kernel/tracing

# passed WHAT STATUS OUTPUT
passed() {
    if [ "$2" = 0 ]; then echo "ok $1"; else
        echo "not ok $1: status $2"
        cat "$3"
    fi
}

# One stressor at a time, on as many workers as there are vCPUs; each checks its own results.
stressor() {
    stress-ng "--$1" "$CPUS" --vm-bytes 16M --mmap-bytes 16M --mremap-bytes 4M --timeout "${SECONDS}s" \
        --verify --metrics-brief > /tmp/out 2>&1
    passed "stress-ng $1" $? /tmp/out
}

# hackbench NAME FLAGS: says how long it took only when all messages have come.
messages() {
    name=$1
    shift
    hackbench "$@" > /tmp/out 2>&1
    status=$?
    grep -q '^Time: ' /tmp/out || status=none
    passed "hackbench of $name" $status /tmp/out
}

# Files that know their number, compiled in parallel; the program adds up what they say.
build() {
    mkdir -p /tmp/build
    cd /tmp/build
    number=0
    wanted=0
    declarations=
    sum=0
    while [ $number -lt 24 ]; do
        number=$((number + 1))
        cat > part$number.c <<END
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
unsigned part$number(void) {
    unsigned table[64], sum = 0;
    for (unsigned i = 0; i < 64; i++) table[i] = i * $number;
    for (unsigned i = 0; i < 64; i++) sum += table[i] ^ table[63 - i];
    char text[32];
    snprintf(text, sizeof text, "%u", sum);
    return (unsigned)strtoul(text, 0, 10) * 0 + $number * $number;
}
END
        declarations="$declarations unsigned part$number(void);"
        sum="$sum + part$number()"
        wanted=$((wanted + number * number))
        objects="$objects part$number.o"
    done
    printf '#include <stdio.h>\n%s\nint main(void) { printf("%%u\\n", %s); return 0; }\n' \
        "$declarations" "$sum" > main.c
    printf 'all: program\nprogram: main.o%s\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<\n' "$objects" > Makefile
    make -j "$CPUS" > /tmp/out 2>&1
    status=$?
    [ $status = 0 ] && [ "$(./program)" != $wanted ] && status="$(./program), not $wanted"
    passed "a parallel make" "$status" /tmp/out
    cd /tmp
}

# The kernel's code changes under processes that switch, fork and call it on all vCPUs.
changes() {
    stress-ng --switch "$CPUS" --fork 1 --yield 1 --timeout "$((4 * SECONDS))s" --verify > /tmp/out 2>&1 &
    load=$!
    turn=0
    while kill -0 $load 2>/dev/null; do
        turn=$((turn + 1))
        echo function > $T/current_tracer
        echo 1 > /proc/sys/kernel/sched_schedstats
        echo nop > $T/current_tracer
        echo 0 > /proc/sys/kernel/sched_schedstats
        echo 1 > $T/events/sched/sched_switch/enable
        echo 0 > $T/events/sched/sched_switch/enable
        echo 'p:ombra/load __x64_sys_sched_yield+5' > $T/kprobe_events
        echo 1 > $T/events/ombra/load/enable
        echo 0 > $T/events/ombra/load/enable
        echo > $T/kprobe_events
        echo > $T/trace
    done
    wait $load
    passed "the kernel's code changes under load" $? /tmp/out
    echo "  turns: $turn"
}

for part in $(cat /parts); do
    case $part in
        hackbench)
            messages "processes by sockets" --groups 2 --fds 4 --loops 100
            messages "threads by pipes" --threads --pipe --groups 2 --fds 4 --loops 100
            ;;
        make) build ;;
        changes) changes ;;
        *) stressor "$part" ;;
    esac
done
echo stress-done
dmesg
poweroff -f
