# make demo, make test: all that a newcomer needs. Each makes .venv and installs what it uses.

PYTHON ?= python3
BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow check docs bench clean

demo: .venv/demo
	$(BIN)/engram demo

# On all cores: a test's own work runs on one.
test: check
	$(BIN)/pytest --numprocesses auto --dist worksteal

test-slow: .venv/dev
	$(BIN)/pytest -m slow

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/python docs/generate.py

bench: .venv/dev
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/herding.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/der_inference.py
	$(BIN)/python benchmarks/vit.py
	$(BIN)/python benchmarks/ranpac.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/serve.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	touch $@

# peft without what it needs: tests load one file of it, to compare with.
.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps 'peft>=0.15'
	touch $@
