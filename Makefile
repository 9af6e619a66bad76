# One-liners; CI runs the same ones. `make help` lists them.

CARGO ?= cargo
AGENT := target/agent/goldwire-agent
# Compiling without debug information and incremental state is faster and smaller where nothing is compiled twice.
export CARGO_INCREMENTAL ?= 0

.PHONY: all help build agent demo test check lint setup bench bench-store bench-netboot fuzz fuzz-smoke mutants clean clean-demo

all: build

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

build: ## target/release/goldwire, with the agent that it carries
	tools/setup build
	$(MAKE) --no-print-directory agent
	GOLDWIRE_AGENT=$(CURDIR)/$(AGENT) $(CARGO) build --locked --release -p goldwire

agent: ## the agent for other hosts
	tools/build-agent $(AGENT)

demo: ## shows the main jobs on this machine, below .demo
	tools/setup demo
	$(MAKE) --no-print-directory build
	tools/demo target/release/goldwire

test: ## all tests, everything that judges included
	tools/setup test
	tools/test

check: ## formatting, lints and all tests that cross no rooms and turn on no machine: for while you work
	$(MAKE) --no-print-directory lint
	tools/test --without-e2e

lint: ## formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings

setup: ## installs what `make test` needs
	tools/setup test

bench: ## sync beside rsync and others
	tools/setup bench
	$(MAKE) --no-print-directory build
	bench/sync --goldwire target/release/goldwire

bench-store: ## a store beside borg, restic, casync and plain files
	tools/setup bench
	$(MAKE) --no-print-directory build
	bench/store --goldwire target/release/goldwire

bench-netboot: ## boot beside nginx, dnsmasq, Kea and others
	tools/setup bench
	$(MAKE) --no-print-directory build
	bench/netboot

fuzz: ## fuzzes the parsers: TARGET=vhd SECONDS=60
	tools/fuzz $(or $(TARGET),all) $(or $(SECONDS),60)

fuzz-smoke: ## builds every fuzz target and runs it for 3 seconds from its seeds
	tools/fuzz all 3

mutants: ## how many changed lines the tests of replicate and control notice (hours; SHARD=1/8 for a sample)
	tools/mutants $(or $(SHARD),1/8)

clean-demo: ## removes what the demo left
	rm -rf .demo

clean: clean-demo ## removes everything that was built
	$(CARGO) clean
