# `make` lists the targets. Nothing is installed outside this folder.

PYTHON ?= python3
VENV ?= .venv
PROTO_VENV ?= .venv-proto
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
WORLDS ?= 3000
# One process more than there are cores, for many tests wait, and four at most. Each has fleets of its own, and each file
# is in one of them as a whole, in the order of their names: tests/faults, which wait for leases, beside what computes, and
# the quick ones of tests/unit at the end. Only the simulated worlds are shared by all (tests/conftest.py).
PARALLEL ?= -n $(shell $(PYTHON) -c 'import os; print(min(4, len(os.sched_getaffinity(0)) + 1))') --dist loadfile --no-loadscope-reorder
PIP_FLAGS := --quiet --disable-pip-version-check
# Whatever the shell says: tests start hundreds of servers, and each would compile our modules for itself.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow worlds check lint format types proto proto-check bench bench-setup bench-step bench-many bench-growth bench-wires bench-recovery bench-memory bench-rules clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv with stepd and everything for development

demo: $(VENV)/.runtime ## start a fleet and workers, and train a classifier
	$(BIN)/stepd demo

test: setup ## run all tests (some of them: make test ARGS=tests/unit)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-slow: setup ## run the tests that take many minutes: hundreds of kills
	$(BIN)/python -m pytest -m slow $(ARGS)

worlds: setup ## live through thousands of simulated worlds (make worlds WORLDS=10000)
	$(BIN)/python -m pytest tests/simulator/test_worlds.py $(PARALLEL) --dist load --worlds $(WORLDS) $(ARGS)

check: lint types proto-check test ## everything that CI runs

lint: setup ## style and likely bugs: ruff, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto

format: setup ## write the code in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy, strict
	$(BIN)/mypy

proto: $(PROTO_VENV)/.installed ## generate client/stepd/v1 from proto/
	$(PROTO_VENV)/bin/python tools/generate_proto.py

proto-check: $(PROTO_VENV)/.installed ## fail if client/stepd/v1 is not what proto/ gives
	$(PROTO_VENV)/bin/python tools/generate_proto.py --check

bench: bench-setup ## time a step beside other systems, and write docs/benchmarks.md (make bench ARGS=--quick)
	$(BENCH_VENV)/bin/python -m bench.compare $(ARGS)

bench-setup: $(BENCH_VENV)/.installed ## make .venv-bench with torch and Ray, which stepd is compared with

bench-step: $(VENV)/.runtime ## time a step beside bare gRPC and a plain server
	$(BIN)/python -m bench.step $(ARGS)

bench-many: $(VENV)/.runtime ## time many tensors, workers and runs, and the smallest step
	$(BIN)/python -m bench.many $(ARGS)

bench-growth: $(VENV)/.runtime ## time a step over the model's size, workers and shards, and write docs/benchmarks.md
	$(BIN)/python -m bench.growth $(ARGS)

bench-wires: $(VENV)/.runtime ## time a step with each encoding
	$(BIN)/python -m bench.wires $(ARGS)

bench-recovery: $(VENV)/.runtime ## time from the kill of a shard to the next step, and the journal's cost
	$(BIN)/python bench/recovery.py $(ARGS)

bench-memory: $(VENV)/.runtime ## what a shard's memory is made of, beside the bar
	$(BIN)/python -m bench.memory $(ARGS)

bench-rules: $(VENV)/.runtime ## time every rule, beside torch if it is installed
	$(BIN)/python bench/rules.py $(ARGS)

clean: ## remove environments, caches and builds
	rm -rf $(VENV) $(PROTO_VENV) $(BENCH_VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second call does nothing. All versions are those of the lock.
# First what stepd runs on, which is all that a user wants, and then the tools.
$(VENV)/.runtime: requirements/dev.txt pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh "$(PYTHON)" "$(VENV)"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c requirements/dev.txt hatchling editables
	$(BIN)/python -m pip install $(PIP_FLAGS) -c requirements/dev.txt --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed: $(VENV)/.runtime
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps -r requirements/dev.txt
	@touch $@

# Torch is several GB for machines with its kind of GPU, and Ray is not there for every system: what cannot be had is left
# out of the comparison.
$(BENCH_VENV)/.installed: requirements/bench.txt requirements/dev.txt pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh "$(PYTHON)" "$(BENCH_VENV)"
	$(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) -c requirements/dev.txt hatchling editables
	$(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) -c requirements/dev.txt --no-build-isolation --editable '.[fast]'
	while read -r name; do $(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) "$$name" || echo "without $$name"; done <requirements/bench.txt
	@touch $@

$(PROTO_VENV)/.installed: requirements/proto.txt tools/make_venv.sh
	@tools/make_venv.sh "$(PYTHON)" "$(PROTO_VENV)"
	$(PROTO_VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps -r requirements/proto.txt
	@touch $@
