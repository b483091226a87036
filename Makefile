BIN := .venv/bin
# That of .venv if there is one, else the first that runs.
PYTHON ?= $(or $(shell for python in $(BIN)/python python3.11 python3.12 python3.13; \
	do $$python -c '' 2>/dev/null && echo $$python && break; done || true),python3)
# Not empty if .venv is of another version, or missing: it is then made anew, not built over.
OTHER := $(filter-out $(shell $(BIN)/python -V 2>&1 || true),$(shell $(PYTHON) -V 2>&1 || true))
INSTALLED := .venv/.installed
ROUNDS ?= 20
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup up test check stack chaos bench clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(INSTALLED) ## Create .venv with everything pinned (PYTHON=python3.12 for another Python)

ifneq ($(OTHER),)
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11 to 3.13 is needed: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(if $(OTHER),--clear) .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[embedded,engine,bench,dev]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps nvidia-pytriton
	@touch $@

up: $(INSTALLED) ## Serve the demo model on 127.0.0.1:8000 (ARGS='--model ... --port ...' for more)
	@$(BIN)/bucketserve up $(ARGS)

test: check stack ## All tests: `check`, then those against a real Triton and a real Valkey

check: $(INSTALLED) ## The fast part: lint, format, types, floors, unit tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses auto --dist worksteal tests/unit

stack: $(INSTALLED) # the slow part of `test`
	$(BIN)/pytest tests/stack

chaos: $(INSTALLED) ## Break things at random under open streams (ROUNDS=20 SEED=1)
	CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(SEED) $(BIN)/pytest tests/stack/test_chaos.py -s

bench: $(INSTALLED) ## Measure what matters most anew, in short, beside the committed figures (ARGS=--write to commit)
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m benchmarks.regress $(ARGS)

clean: ## Remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
