# Every task has one name here. `make` alone prints them.

CARGO ?= cargo
export SNOWMELT_TEST_CACHE ?= $(CURDIR)/target/test-images

.DEFAULT_GOAL := help
# The steps of a task come one after the other, whatever -j says.
.NOTPARALLEL:
.PHONY: help setup build demo cluster test test-beside-servers lint soak bench test-images clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building and testing need (Debian; root or sudo)
	scripts/setup

build: ## build the release binary: target/release/snowmelt
	$(CARGO) build --locked --release --package snowmelt

demo: ## from nothing to a running container: setup, build, a real image, publish, run, what it cost
	SNOWMELT_SETUP=run scripts/setup
	$(MAKE) build
	scripts/demo

cluster: build ## an S3 origin, five cache nodes and two workers on this machine, and a start on each (root)
	scripts/cluster

lint: ## format, clippy, documentation, licences and sources
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --workspace --no-deps --quiet
	$(CARGO) deny --locked --log-level error check licenses bans sources

test: setup lint test-images ## everything: installs what is missing, then lint, unit, property and end-to-end tests (root)
	$(CARGO) build --locked --workspace --bins --examples
	scripts/test-servers run -- $(MAKE) --no-print-directory test-beside-servers

# Every test, and then those of the binary once more on a cluster: stores on S3, keys in KMS, a zone of five nodes, a worker on every machine.
test-beside-servers:
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -ex; $(CARGO) nextest run --locked --workspace; \
		SNOWMELT_TEST_STORE=cluster scripts/cluster nodes -- $(CARGO) nextest run --locked --workspace --test end_to_end; \
		$(CARGO) test --locked --workspace --doc --quiet; \
	else \
		set -ex; $(CARGO) test --locked --workspace; \
		SNOWMELT_TEST_STORE=cluster scripts/cluster nodes -- $(CARGO) test --locked --workspace --test end_to_end; \
	fi

test-images: ## build the images that tests and benchmarks use, install the servers and clients that tests use (cached)
	scripts/test-images
	scripts/test-servers install
	scripts/test-clients >/dev/null

soak: ## ten minutes of every kind of call to a service, and that nothing grows (root)
	scripts/test-images lambda
	$(CARGO) build --locked --workspace --bins --examples
	SNOWMELT_SOAK_SECONDS=600 scripts/test-servers run -- $(CARGO) test --locked --workspace --test end_to_end -- --exact --nocapture functions::faults::a_mixed_trace_leaves_nothing_growing

bench: ## run every benchmark side by side and write docs/benchmarks.md (about 45 minutes)
	$(CARGO) build --locked --release --package snowmelt --package snowmelt-bench
	$(CARGO) build --locked --release --examples --package snowmelt-device --package snowmelt-image --package snowmelt-chunk --package snowmelt-bench
	scripts/test-images
	scripts/dedup-images
	scripts/test-clients
	scripts/function-images
	scripts/test-servers run -- "$${CARGO_TARGET_DIR:-target}/release/snowmelt-bench" --output docs/benchmarks.md

clean: ## remove what builds made, test images too
	$(CARGO) clean
	rm -rf -- "$(CURDIR)/target/test-images"
