# One-liners; CI runs the same ones. `make setup` installs what is missing on a Debian machine.

CARGO ?= cargo
AGENT := target/agent/goldwire-agent
# Compiling without debug information and incremental state is faster and smaller where nothing is compiled twice.
export CARGO_INCREMENTAL ?= 0

.PHONY: all build agent demo test lint setup bench bench-netboot fuzz clean

all: build

setup:
	tools/setup

# The agent for other hosts first, then the program that carries it.
build: setup agent
	GOLDWIRE_AGENT=$(CURDIR)/$(AGENT) $(CARGO) build --locked --release -p goldwire

agent: setup
	tools/build-agent $(AGENT)

demo: build
	tools/demo target/release/goldwire

test: setup agent
	tools/test

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings

bench: build
	tools/setup bench
	bench/sync --goldwire target/release/goldwire

bench-netboot: build
	tools/setup bench
	bench/netboot

# make fuzz TARGET=vhd SECONDS=60
fuzz:
	tools/fuzz $(or $(TARGET),all) $(or $(SECONDS),60)

clean:
	$(CARGO) clean
	rm -rf .demo
