# The two commands that a newcomer needs, and those of everyday work. What they do is in xtask/.
# Words for `ombra run`, such as ARGS="-m 1G -- uname -a".
ARGS ?=
# Flags for `cargo xtask bench`, such as BENCH="--only integer --rounds 5".
BENCH ?=

.PHONY: run test check bench guests clean tools bench-tools test-tools

run: tools
	cargo xtask guests --for run
	cargo build --release --package ombra
	./target/release/ombra run $(ARGS)

test: tools test-tools check
	cargo xtask test

check: tools
	cargo xtask check

bench: tools bench-tools
	cargo xtask bench $(BENCH)

guests: tools
	cargo xtask guests

clean:
	cargo clean
	rm -rf cache

# A linker and a static C library for the guests' init, and Debian's tools to fetch guests. root gets what is missing,
# everybody else the line to give to root.
tools:
	@missing=""; \
	command -v cc >/dev/null || missing="$$missing gcc"; \
	[ -n "$$(find /usr/lib /usr/lib64 -maxdepth 2 -name libc.a 2>/dev/null | head -n 1)" ] || missing="$$missing libc6-dev"; \
	command -v dpkg-deb >/dev/null || missing="$$missing dpkg"; \
	command -v tar >/dev/null || missing="$$missing tar"; \
	if ! command -v cargo >/dev/null; then \
		echo "make: there is no cargo; install Rust first: https://rustup.rs" >&2; exit 1; \
	fi; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then apt-get install --yes --no-install-recommends $$missing; \
		else echo "make: missing; as root: apt install$$missing" >&2; exit 1; fi; \
	fi

# What a Debian on a disk is made and looked at with, what images are exchanged with, and peers of the network. Without them tests are
# skipped, and say so.
test-tools:
	@missing=""; \
	PATH="$$PATH:/usr/sbin:/sbin"; \
	command -v mmdebstrap >/dev/null || missing="$$missing mmdebstrap"; \
	command -v qemu-img >/dev/null || missing="$$missing qemu-utils"; \
	command -v cryptsetup >/dev/null || missing="$$missing cryptsetup-bin"; \
	command -v nbdkit >/dev/null || missing="$$missing nbdkit"; \
	command -v mke2fs >/dev/null || missing="$$missing e2fsprogs"; \
	command -v ssh >/dev/null || missing="$$missing openssh-client"; \
	command -v ip >/dev/null || missing="$$missing iproute2"; \
	command -v passt >/dev/null || missing="$$missing passt"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then apt-get install --yes --no-install-recommends $$missing || true; \
		else echo "make: some tests will be skipped without: apt install$$missing"; fi; \
	fi

# What Ombra is compared with.
bench-tools:
	@if ! command -v qemu-system-x86_64 >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then apt-get install --yes --no-install-recommends qemu-system-x86; \
		else echo "make: missing; as root: apt install qemu-system-x86" >&2; exit 1; fi; \
	fi
