# Two commands: `make run` runs the main job, `make test` runs all tests. Both set up .venv once, on first use.

VENV ?= .venv
ARGS ?=
# Where torch comes from, if not from the default index. For a small CPU build on Linux:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

export OMP_NUM_THREADS ?= 1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Byte code is left to the first import: compiling every file of every package takes longer than the rest.
INSTALL := pip install -q --no-compile --disable-pip-version-check -c constraints.txt
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$name" -c '$(SUITABLE)' 2>/dev/null && { echo "$$name"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast test-e2e lint format types constraints clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /\1\t/' | expand -t 14

install: $(STAMP)  ## set up the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { \
		echo "sah needs Python 3.11 or newer with the venv module; '$(PYTHON)' is not one (Debian: apt install python3-venv)." >&2; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m $(INSTALL) --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m $(INSTALL) -e '.[test]'
	@touch $@

run: $(STAMP)  ## run the main job; more settings by ARGS="masker=random density=0.05"
	$(BIN)/python -m sah.run $(ARGS)

test: test-fast test-e2e  ## run all tests

test-fast: $(STAMP)  ## run the tests that need no model and no network
	$(BIN)/python -m pytest -n 2 -q -m "not e2e and not slow and not gpu" $(ARGS)

test-e2e: $(STAMP)  ## run the tests on the embedded model, which is fetched on first use, and the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "(e2e or slow) and not gpu" $(ARGS)

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## check types
	$(BIN)/mypy

constraints: $(STAMP)  ## write the set installed in .venv to constraints.txt
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt && touch $(STAMP)

clean:  ## remove the environment, caches and builds; outputs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
