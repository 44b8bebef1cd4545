#!/bin/dash
# turn.sh SEED FOLDER: one round of a mixed load in an empty folder. Prints `NAME CHECKSUM` for each part.
#
# xtask/src/soak.rs runs it natively in the root file system and in the guest: the same programs, so every line must be the
# same. Nothing here may depend on time, on a host's processor, or on hashes with a random seed.
set -eu
export PATH=/usr/bin:/bin LC_ALL=C PYTHONHASHSEED=0 PERL_HASH_SEED=0
seed=$1
cd "$2"
here=/soak
export TMPDIR=$2

sum() {
    echo "$1 $(sha256sum | cut -c1-32)"
}

# A script writes the input of all others.
python3 $here/write.py "$seed" text program.c
sum text < text
sum program.c < program.c

# Compile, and run what was compiled.
gcc -O1 -S -o program.s program.c
sum program.s < program.s
gcc -O1 -c -o program.o program.s
sum program.o < program.o
gcc -o program program.o
./program > program.out
sum program.out < program.out

# Compress, and back.
gzip -9n < text > text.gz
sum text.gz < text.gz
gzip -d < text.gz | busybox cmp - text
xz -T1 -4 < text > text.xz
sum text.xz < text.xz
xz -d < text.xz | busybox cmp - text

openssl enc -aes-256-ctr -K "$(printf %064x "$seed")" -iv "$(printf %032x "$seed")" < text > text.enc
sum text.enc < text.enc
openssl dgst -r -sha512 text | sum sha512

perl $here/words.pl text > words
sum words.pl < words
tr -s ' ' '\n' < text | sort | uniq -c | sort -rn -k1,1 -k2,2 | sum sort
lua5.4 $here/numbers.lua "$seed" > lua
sum numbers.lua < lua
luajit $here/numbers.lua "$seed" | busybox cmp - lua
