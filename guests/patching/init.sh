#!/bin/busybox sh
# The init of a guest whose kernel changes its own code: tracers, probes, static keys, BPF programs, modules.
#
# Started by tests/tests/guests/patching.rs, in rootfs-jit with the cloud kernel's modules. Prints `ok WHAT` or `not ok WHAT: WHY`
# for each check, `patching-done` when all have been made, then the kernel's log. /turns says how often each is done.
#
# What is counted has one caller: umask(2), by calls.lua. A count that is too small says that old code ran where new code
# should have, one that goes on says the same of code that has been taken away.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tracefs tracefs /sys/kernel/tracing
busybox mount -t debugfs debugfs /sys/kernel/debug
busybox mount -t tmpfs tmpfs /tmp
busybox --install -s /tmp
PATH=$PATH:/tmp
umask 077
T=/sys/kernel/tracing
TURNS=$(cat /turns)
CALLS=1000
FUNCTION=__x64_sys_umask

# same WHAT GOT WANTED
same() {
    if [ "$2" = "$3" ]; then echo "ok $1"; else echo "not ok $1: $2, not $3"; fi
}

calls() {
    luajit /calls.lua umask $CALLS
}

# Entries written to the trace since it was last emptied.
entries() {
    sum=0
    for stats in $T/per_cpu/cpu*/stats; do
        while read -r name count; do
            case $name in entries:|overrun:) sum=$((sum + count)) ;; esac
        done < "$stats"
    done
    echo $sum
}

ftrace() {
    # Every function of the kernel.
    echo > $T/set_ftrace_filter
    echo function > $T/current_tracer
    calls
    seen=$(entries)
    [ "$seen" -gt $CALLS ] && seen=many
    same "ftrace of all functions sees calls" "$seen" many
    echo nop > $T/current_tracer
    calls
    same "ftrace that is off sees none" "$(entries)" 0
    # One function.
    echo $FUNCTION > $T/set_ftrace_filter
    echo function > $T/current_tracer
    calls
    echo 0 > $T/tracing_on
    same "ftrace of one function sees each call" "$(entries)" $CALLS
    echo nop > $T/current_tracer
    echo 1 > $T/tracing_on
    echo > $T/set_ftrace_filter
}

static_keys() {
    echo 1 > /proc/sys/kernel/sched_schedstats
    same "the key of schedstats is on" "$(grep -c sleep_max /proc/self/sched)" 1
    echo 0 > /proc/sys/kernel/sched_schedstats
    same "the key of schedstats is off" "$(grep -c sleep_max /proc/self/sched)" 0
    event=$T/events/sched/sched_process_fork/enable
    echo > $T/trace
    echo 1 > $event
    for child in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; done
    echo 0 > $event
    same "a tracepoint sees each fork" "$(entries)" 10
    for child in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; done
    same "a tracepoint that is off sees none" "$(entries)" 10
}

hits() {
    while read -r name count missed; do
        [ "$name" = "$1" ] && echo "$count $missed"
    done < $T/kprobe_profile
}

# listed WORDS: what the kernel says of the one probe that is set; waits for it, since a jump comes with a delay.
listed() {
    for try in $(seq 100); do
        while read -r address kind place words; do
            [ "$words" = "$1" ] && echo "$words" && return
        done < /sys/kernel/debug/kprobes/list
        usleep 100000
    done
    cat /sys/kernel/debug/kprobes/list
}

# kprobe NAME PLACE WORDS: a probe at the function's entry is ftrace's, behind it a breakpoint that may become a jump.
kprobe() {
    echo "p:ombra/$1 $2" > $T/kprobe_events || echo "not ok $1: it can't be placed"
    echo 1 > $T/events/ombra/$1/enable
    same "kprobe $1 is of its kind" "$(listed "$3")" "$3"
    calls
    same "kprobe $1 sees each call" "$(hits $1)" "$CALLS 0"
    echo 0 > $T/events/ombra/$1/enable
    calls
    same "kprobe $1 that is off sees none" "$(hits $1)" "$CALLS 0"
    echo > $T/kprobe_events
    calls
}

kprobes() {
    kprobe entry $FUNCTION '[FTRACE]'
    echo 0 > /proc/sys/debug/kprobes-optimization
    kprobe breakpoint $FUNCTION+5 ''
    echo 1 > /proc/sys/debug/kprobes-optimization
    kprobe jump $FUNCTION+5 '[OPTIMIZED]'
    echo > $T/trace
    echo "r:ombra/return $FUNCTION mask=\$retval:s32" > $T/kprobe_events
    echo 1 > $T/events/ombra/return/enable
    calls
    echo 0 > $T/events/ombra/return/enable
    same "a kretprobe sees each result" "$(grep -c "mask=63$" $T/trace)" $CALLS
    echo > $T/kprobe_events
    echo > $T/trace
}

module() {
    while read -r name rest; do [ "$name" = "$1" ] && return 0; done < /proc/modules
    return 1
}

modules() {
    insmod /dummy.ko numdummies=0
    ip link add d0 type dummy
    echo 1 > /proc/sys/net/ipv6/conf/d0/disable_ipv6
    ip addr add 10.9.8.1/24 dev d0
    ip link set d0 up
    echo ':mod:dummy' > $T/set_ftrace_filter
    echo function > $T/current_tracer
    luajit /calls.lua send 10.9.8.7 100
    echo nop > $T/current_tracer
    echo > $T/set_ftrace_filter
    same "a module's device sends each packet" "$(cat /sys/class/net/d0/statistics/tx_packets)" 100
    rmmod dummy
    same "its device goes with it" "$(ls /sys/class/net | grep -c d0)" 0
    insmod /brd.ko rd_nr=1 rd_size=512
    dd if=/bin/busybox of=/dev/ram0 bs=4096 count=128 2>/dev/null
    same "another module keeps what is written" \
        "$(sha256sum < /dev/ram0)" "$(dd if=/bin/busybox bs=4096 count=128 2>/dev/null | sha256sum)"
    rmmod brd
    module dummy || module brd
    same "both are gone" $? 1
}

for turn in $(seq "$TURNS"); do
    echo "turn $turn"
    ftrace
    static_keys
    kprobes
    luajit /bpf.lua "$turn"
    modules
done
echo patching-done
dmesg
poweroff -f
