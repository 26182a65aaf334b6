# make demo      both isolations side by side, from a fresh clone, without another step
# make test      every test, in the lab where this machine's KVM does not do
# make build     target/release/moat with its guest's kernel and init in target/lib/moat
# make install   to $(DESTDIR)$(PREFIX)
# make figures   every figure that README quotes, measured now
# make soak      many runs in each isolation, one after another and side by side
# make boot-count   instructions of the guest kernel from entry to init, and the dearest phases
# make lint, make clean, make setup (the Debian packages that all this needs)

PREFIX ?= /usr/local
CARGO ?= cargo
INSTALL ?= install

TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
# Where moat finds them: ../lib/moat from its own program, as once installed.
GUEST := $(TARGET)/lib/moat

# A static program on the plain toolchain, per binary: as a global setting it would break build scripts.
static = $(CARGO) rustc --quiet --release -p $(1) --bin $(2) -- -C target-feature=+crt-static -C relocation-model=static
# Replaced in one step and only when it differs: a running guest may have the old one mapped.
place = mkdir -p $(GUEST) && { cmp -s $(1) $(GUEST)/$(2) || { cp $(1) $(GUEST)/.$(2) && mv $(GUEST)/.$(2) $(GUEST)/$(2); }; }

.PHONY: all build kernel programs probe setup demo test soak figures boot-count lint install clean

all: build

build: setup kernel programs

setup:
	@tests/setup

kernel:
	@kernel=$$(kernel/build guest | tail -n 1) && test -r "$$kernel" && $(call place,"$$kernel",vmlinux)

programs:
	$(call static,moat-shim,moat)
	$(call static,moat-guest-init,guest-init)
	@$(call place,$(RELEASE)/guest-init,guest-init)

# The workload of the tests for what busybox cannot check.
probe:
	$(call static,moat-tests,moat-test-probe)

demo: build
	@tests/demo

test: build probe
	@tests/all

soak: build probe
	@tests/soak-all

figures: build
	@tests/figures

boot-count: setup
	@kernel/boot-count

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --workspace --no-deps --document-private-items

# What was built before is installed, so that `sudo make install` needs no Rust.
install:
	@test -x $(RELEASE)/moat -a -r $(GUEST)/vmlinux -a -r $(GUEST)/guest-init || { echo 'run `make build` first' >&2; exit 1; }
	$(INSTALL) -D -m 755 $(RELEASE)/moat $(DESTDIR)$(PREFIX)/bin/moat
	ln -sf moat $(DESTDIR)$(PREFIX)/bin/moat-vm
	ln -sf moat $(DESTDIR)$(PREFIX)/bin/moat-process
	$(INSTALL) -D -m 644 $(GUEST)/vmlinux $(DESTDIR)$(PREFIX)/lib/moat/vmlinux
	$(INSTALL) -D -m 755 $(GUEST)/guest-init $(DESTDIR)$(PREFIX)/lib/moat/guest-init

# The kernels stay: their cache is outside the tree, under ~/.cache/moat.
clean:
	$(CARGO) clean
	rm -rf $(GUEST)
