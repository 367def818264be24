# Each target sets up what it needs in .venv and remembers it: a second run starts at once.
#     make test PYTHON=python3.12        # another interpreter

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
LOCK := pyproject.toml constraints.txt

.PHONY: help demo test lint format bench clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: $(VENV)/.demo ## Compile real architectures and compare them with the public implementation
	$(BIN)/python -P bench/demo.py

test: $(VENV)/.test ## Run the tests that need no GPU (ARGS="-k llava" selects)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto --benchmark-disable -m "not gpu and not perf" $(ARGS)

lint: $(VENV)/.dev ## Check format, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## Measure speed and memory, one thing after another
	$(BIN)/pytest bench tests -m perf -p no:xdist $(ARGS)

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "vlmspec needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Torch goes in first and by itself, so that nothing else chooses its version.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.test $(VENV)/.demo $(VENV)/.dev $(VENV)/.bench: $(VENV)/.torch $(LOCK)
	$(PIP) -e '.[$(patsubst $(VENV)/.%,%,$@)]'
	@touch $@

$(VENV)/.bench $(VENV)/.dev: $(VENV)/.test
