# make demo, make test: all that a newcomer needs. Each makes .venv and installs what it uses.

PYTHON ?= python3
BIN = .venv/bin
# Python compiles what is imported; to compile all that is installed takes longer than to install it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt

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

# make bench RATIOS=/tmp/speed.json keeps the ratios, for docs/speed.json and the README; on a machine with
# nothing else to do. (Written into the checkout, they would mark later ones as measured on changed files.)
BENCHMARKS = throughput herding codecs der_inference vit ranpac startup serve

bench: .venv/dev
	for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py $(if $(RATIOS),--ratios $(RATIOS)) || exit 1; \
	done

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
