# Everything one does with this repository. Works with GNU make 3.81 and newer.
#
# Tests, demo and bench run real Redis or Valkey servers of their own; scripts/redis-server.sh finds
# the binary, or installs one.

CARGO ?= cargo
ARGS ?=
SEED ?=
MINUTES ?=
INPUT ?=
export INPUT

# Release binaries are built package by package, never with --workspace: features unify across a
# workspace build, and what ships would then carry what only tests and benches ask for.
DEMO_PACKAGES = -p switchback-demo -p switchback-worker -p switchback-admin

# A failed step says which one it was; cargo's own message stands above it.
or_say = || { echo "make $@: $(1) failed" >&2; exit 1; }
with_server = REDIS_SERVER=`scripts/redis-server.sh` $(call or_say,finding a Redis server) && export REDIS_SERVER

.PHONY: help demo test ansible chaos bench guard-sim ci fmt fmt-check lint doc build clean need-cargo need-cc
.DEFAULT_GOAL := help

help: ## Print this list
	@echo "make <target> [ARGS=…]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/\1|\2/p' Makefile | \
	  while IFS='|' read -r target text; do printf '  %-10s  %s\n' "$$target" "$$text"; done

demo: need-cargo need-cc ## Build for release and run the demo. ARGS=--quick, INPUT=<your own data>
	@$(with_server) && \
	{ $(CARGO) build --release $(DEMO_PACKAGES) $(call or_say,the release build); } && \
	if [ -z "$$INPUT" ]; then unset INPUT; fi && \
	target/release/switchback-demo $(ARGS)

test: need-cargo need-cc ## Run all tests (with cargo-nextest when it is there) and the doc examples
	@$(with_server) && \
	{ $(CARGO) build --workspace --bins $(call or_say,building the binaries that tests start); } && \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  { $(CARGO) nextest run --workspace $(ARGS) $(call or_say,cargo nextest run); } && \
	  { $(CARGO) test --workspace --doc --quiet $(call or_say,cargo test --doc); }; \
	else \
	  $(CARGO) test --workspace $(ARGS) $(call or_say,cargo test); \
	fi

ansible: need-cargo need-cc ## Test the Ansible module with a real ansible-core, which comes from PyPI into .dev
	@$(with_server) && \
	ANSIBLE_BIN=`scripts/ansible.sh` $(call or_say,finding ansible-core) && export ANSIBLE_BIN && \
	{ $(CARGO) build --workspace --bins $(call or_say,building the binaries that it starts); } && \
	{ $(CARGO) test -p switchback-tests --test ansible -- --ignored $(ARGS) $(call or_say,the Ansible module); }

chaos: need-cargo need-cc ## Chaos, then the history checker. SEED=<n> repeats a schedule (default: random), MINUTES=<m> (default: 2)
	@$(with_server) && \
	{ $(CARGO) build --workspace --bins $(call or_say,building the binaries that it starts); } && \
	{ SB_CHAOS_SEED=$(SEED) SB_CHAOS_MINUTES=$(MINUTES) $(CARGO) test -p switchback-tests --test chaos -- --exact by_hand \
	  --ignored --nocapture $(call or_say,chaos); }

bench: need-cargo need-cc ## Build for release and run the benchmarks. ARGS are passed on
	@$(with_server) && \
	{ $(CARGO) build --release -p switchback-bench $(call or_say,the release build); } && \
	target/release/switchback-bench $(ARGS)

guard-sim: need-cargo need-cc ## Simulate the guard and print its tables. ARGS="--runs 10000 --seed 1" (the default)
	@$(CARGO) build --release -p switchback-bench --bin guard-sim $(call or_say,the release build) && \
	target/release/guard-sim $(ARGS)

ci: ## Everything that must pass: fmt-check, lint, doc, test, ansible where PyPI can be reached, and a short demo
	@$(MAKE) --no-print-directory fmt-check
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory doc
	@$(MAKE) --no-print-directory test ARGS= NEXTEST_PROFILE=ci
	@if scripts/ansible.sh >/dev/null; then $(MAKE) --no-print-directory ansible ARGS=; \
	  else echo "make ci: the Ansible module was NOT tested: no ansible-core, see above" >&2; fi
	@$(MAKE) --no-print-directory demo ARGS=--quick INPUT=

fmt: need-cargo ## Format the code
	@$(CARGO) fmt --all $(call or_say,cargo fmt)

fmt-check: need-cargo ## Check the format
	@$(CARGO) fmt --all --check $(call or_say,the format check (make fmt mends it))

lint: need-cargo need-cc ## Clippy; warnings are errors
	@$(CARGO) clippy --workspace --all-targets -- -D warnings $(call or_say,cargo clippy)

doc: need-cargo need-cc ## Build the API documentation, private items included; warnings are errors
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items $(call or_say,cargo doc)

build: need-cargo need-cc ## Build the release binaries: switchback, switchback-worker, switchback-demo
	@$(CARGO) build --release $(DEMO_PACKAGES) $(call or_say,the release build)

clean: need-cargo ## Remove build output and the private server in .dev
	@$(CARGO) clean $(call or_say,cargo clean)
	@rm -rf .dev

need-cargo:
	@command -v $(CARGO) >/dev/null 2>&1 || { \
	  echo "make: cargo is missing. Install Rust from https://rustup.rs (1.91 or newer), open a new shell, run again." >&2; \
	  exit 1; }

# Rust links through the system's C compiler; without one the first build script fails with a riddle.
need-cc:
	@command -v cc >/dev/null 2>&1 || { \
	  echo "make: no C compiler and linker (cc). Install one: apt-get install build-essential, dnf install gcc," >&2; \
	  echo "      or xcode-select --install." >&2; \
	  exit 1; }
