# Every target sets up what it needs in .venv, once, and again when pyproject.toml or constraints.txt change.
#   make test PYTEST_ARGS="-k solvers"      make test WORKERS=8      make demo PYTHON=/usr/bin/python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint ruff types imports docs docs-serve clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.ready ## train on handwritten digits, sample, and compare the solvers, in a few minutes
	$(BIN)/tweed demo

# One thread a worker: two processes of one thread beat one process of two on tensors as small as the tests'.
test: $(VENV)/.ready-dev ## run the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: ruff types imports ## run all the checks of the code below

ruff: $(VENV)/.ready-dev ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.ready-dev ## check the types of src
	$(BIN)/pyright src

imports: $(VENV)/.ready-dev ## check that imports only go down
	$(BIN)/lint-imports

docs: $(VENV)/.ready-docs ## build the site into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.ready-docs ## serve the site while it is being written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean: ## remove what was built and .venv
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tweed needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tweed needs Python 3.11 or newer; $(PYTHON) is older (set PYTHON=/path/to/python)" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing tweed into $(VENV)"
	@$(PIP) -e .
	@touch $@

# k-diffusion is only read for its samplers; its own dependencies exclude a current numpy, so they stay out.
$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing tweed, the checks and the peer libraries into $(VENV)"
	@$(PIP) -e '.[dev,peers]'
	@$(PIP) --no-deps k-diffusion
	@touch $(VENV)/.ready $@

$(VENV)/.ready-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing tweed and the documentation tools into $(VENV)"
	@$(PIP) -e '.[docs]'
	@touch $(VENV)/.ready $@
