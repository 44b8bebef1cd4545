#!/bin/busybox sh
# The init of a guest that runs a program of a JIT; tests/tests/guests/jits.rs starts it. /command says what is run.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root NO_COLOR=1 NODE_DISABLE_COLORS=1
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmpfs /tmp
. /command
echo "status $?"
busybox poweroff -f
