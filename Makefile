# `make demo` runs a real sweep from nothing, `make demo-ablation` an ablation to its table and page, `make test` checks the code, and
# `make test-all` also what becomes of a study when processes die and disks fill.
PYTHON ?= python3
BIN := .venv/bin

# Two at a time; those that start Ray keep to one of the two (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo demo-ablation test test-all quick lint clean

demo: .venv/installed
	$(BIN)/python orchestrate.py run search_spaces/quickstart.yaml

demo-ablation: .venv/installed
	$(BIN)/python orchestrate.py run search_spaces/ablation_quickstart.yaml
	$(BIN)/python orchestrate.py report search_spaces/ablation_quickstart.yaml -o runs/ablation-quickstart.html

test: .venv/installed-dev lint
	$(PYTEST)

test-all: test
	$(PYTEST) -m faults

quick: .venv/installed-dev
	$(PYTEST) -m "not ray and not slow and not faults"

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdr needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing torch and the rest, about 5.5 GB; some minutes ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
