# make demo           a real search on generated images
# make demo-ablation  an ablation, its table and its report page
# make test           ruff, mypy and the tests
# make test-all       the same, and the fault tests: kills, interruptions, full disks
# make docs           the docs site, in site/
PYTHON ?= python3
BIN := .venv/bin

# Two processes; tests that start Ray share one of them (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo demo-ablation test test-all quick lint docs clean

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

docs: .venv/installed-docs
	$(BIN)/zensical build --clean --strict

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

# The extra `docs` alone, without kdr and torch: the site is built from the source text.
.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| $(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement /dev/stdin
	touch $@

clean:
	rm -rf .venv site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
