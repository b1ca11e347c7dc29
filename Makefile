# kvmbake: what a person and CI type. `make demo` and `make test` work from a clean clone on a fresh Debian machine.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

CARGO ?= cargo
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# rustup's own place, for a shell that has not been started anew since.
export PATH := $(PATH):$(HOME)/.cargo/bin

RIG := $(CARGO) run --quiet --release --package kvmbake-rig --
# Every crate's test targets but the guest tests, which need the rig.
TESTS := $(patsubst %/main.rs,%.rs,$(wildcard tests/*.rs tests/*/main.rs */tests/*.rs */tests/*/main.rs))
HOST_TESTS := $(addprefix --test ,$(filter-out guest,$(basename $(notdir $(TESTS)))))

# Runs a stage and says how long it took.
define stage
	@start=$$(date +%s); echo "== $(1)" >&2; $(2); echo "== $(1): $$(($$(date +%s) - start)) s" >&2
endef

.PHONY: build demo test bench bench-loop bench-convert bench-net check fmt-check clippy unit guest guest-long rig setup cargo clean-rig judges fuzz

build: cargo ## target/release/kvmbake
	$(CARGO) build --release

demo: setup cargo ## bakes examples/debian.toml into all five formats
	@tests/rig/demo

test: setup cargo ## everything that CI runs; the rig is built beside the checks
	@$(MAKE) --no-print-directory rig & rig=$$!; code=0; \
	$(MAKE) --no-print-directory --keep-going fmt-check clippy unit || code=1; \
	{ wait $$rig && $(MAKE) --no-print-directory guest; } || code=1; \
	exit $$code

check: fmt-check clippy unit

fmt-check: cargo
	$(call stage,format,$(CARGO) fmt --all --check)

clippy: cargo
	$(call stage,clippy,$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings)

unit: cargo judges ## unit and tiny-guest tests, on this machine's own /dev/kvm
	$(call stage,unit tests,code=0; \
		$(CARGO) test --no-fail-fast --workspace --lib --bins $(HOST_TESTS) || code=1; \
		$(CARGO) test --workspace --doc || code=1; \
		[ $$code = 0 ])

fuzz: ## every reader of disk images for SECONDS_TO_FUZZ=140 in all
	@tests/fuzz/run.sh $(or $(SECONDS_TO_FUZZ),140)

judges: ## the readers of disk images by other hands that PyPI has
	@convert/tests/judges/setup.sh

rig: setup cargo ## builds the rig and the base images, or finds them in the cache
	$(call stage,rig,$(RIG) build > /dev/null)

guest: rig ## the release binary on real images, in the rig
	$(call stage,rig tests,$(CARGO) test --release --package kvmbake-rig --test l1 -- --test-threads=1)
	$(call stage,guest test build,$(CARGO) test --release --test guest --no-run)
	$(call stage,guest tests,tests/rig/guest-tests)

guest-long: rig ## those of the guest tests that take too long for CI
	$(call stage,guest test build,$(CARGO) test --release --test guest --no-run)
	$(call stage,long guest tests,tests/rig/guest-tests --ignored)

bench: rig ## against QEMU/KVM in the rig; BASE=light or debian-12, ROUNDS=3
	$(call stage,release build,$(CARGO) build --release)
	$(call stage,benchmark,$(RIG) run --root --put tests/rig/bench/compare.sh --put $(TARGET)/release/kvmbake -- ./compare.sh $(or $(BASE),light) $(or $(ROUNDS),3))

bench-loop: rig ## the layer cache in the rig: builds cold, unchanged, edited; BASE=light or debian-12
	$(call stage,release build,$(CARGO) build --release)
	$(call stage,benchmark,$(RIG) run --root --put tests/rig/bench/inner-loop.sh --put $(TARGET)/release/kvmbake --get inner-loop.tar:$(TARGET)/inner-loop.tar -- ./inner-loop.sh $(or $(BASE),light))
	@python3 tests/rig/bench/inner-loop.py $(TARGET)/inner-loop.tar

bench-convert: cargo ## kvmbake convert against qemu-img convert; ROUNDS=5, FOLDER for 12 GB
	$(call stage,release build,$(CARGO) build --release)
	$(call stage,benchmark,python3 tests/bench/convert.py $(TARGET)/release/kvmbake $(or $(FOLDER),$(TARGET)/bench-convert) --rounds $(or $(ROUNDS),5))

bench-net: setup cargo ## the network against pasta and slirp4netns, as root; ROUNDS=3
	$(call stage,release build,$(CARGO) build --release --package kvmbake-net --example tap)
	$(call stage,benchmark,python3 tests/bench/net.py $(TARGET)/release/examples/tap --rounds $(or $(ROUNDS),3))

setup:
	@tests/rig/recipes/setup.sh

cargo:
	@command -v $(CARGO) > /dev/null || { echo "make: cargo is missing; install Rust 1.95 or newer with rustup (package rustup, or https://rustup.rs)" >&2; exit 1; }

clean-rig: ## forgets what the rig has cached
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/kvmbake-rig"
