# Targets make their own virtual environment; nothing is needed but Python 3.11 or later and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench
demo: .venv/runtime
	$(BIN)/goreprox demo

test: .venv/dev
	$(BIN)/pytest -n 2 --dist worksteal --cov=goreprox/protocol --cov=brokers --cov-branch

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/runtime
	$(BIN)/python -m benchmarks

.venv/runtime: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ .venv/runtime
