#!/bin/busybox sh
# The init of the guest of `cargo xtask soak`: runs rounds of turn.sh for /soak/minutes minutes, one at a time on each vCPU.
# Prints `soak SEED NAME CHECKSUM`, `soak SEED end` for a whole round, and `soak failed SEED` for one whose program failed.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmpfs /tmp
read -r minutes < /soak/minutes
read -r seeds < /soak/seeds

uptime() {
    read -r now rest < /proc/uptime
    echo "${now%.*}"
}
end=$(($(uptime) + 60 * minutes))

rounds() {
    folder=/tmp/$1
    seed=$1
    while :; do
        mkdir $folder
        if dash /soak/turn.sh $seed $folder > $folder.out; then
            while read -r line; do echo "soak $seed $line"; done < $folder.out
            echo "soak $seed end"
        else
            echo "soak failed $seed"
        fi
        rm -r $folder
        [ "$(uptime)" -ge $end ] && return
        seed=$((seed % seeds + 1))
    done
}

cpu=0
while [ $cpu -lt "$(busybox nproc)" ]; do
    cpu=$((cpu + 1))
    rounds $cpu &
done
wait
busybox poweroff -f
