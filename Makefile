# make demo | make test | make check      The rest: make help
# Settings: PYTHON=python3.12   TORCH=torch==2.11.0 (another build)   TORCH= (keep the one that VENV has)   VENV=path

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= $(shell grep -m1 '^torch==' constraints.txt)

BIN        := $(VENV)/bin
RUNS       := $(VENV)/.runs
INSTALLED  := $(VENV)/.installed
CPU_WHEELS := https://download.pytorch.org/whl/cpu
CODE       := llmtrain data_prep tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu check lint types floors format bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED)  ## the environment in .venv (every other target does this first; demo needs less of it)

# torch comes first and alone. On Linux PyPI's build carries gigabytes of CUDA, so a machine without an NVIDIA
# driver takes the same version from PyTorch's own CPU index when that answers, and PyPI's otherwise.
$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "llmtrain needs Python 3.10 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "this Python cannot make environments (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@if [ -n "$(TORCH)" ]; then \
	  if [ "$$(uname -s)" = Linux ] && [ -z "$${CI:-}" ] && ! command -v nvidia-smi >/dev/null; \
	  then $(BIN)/pip install --no-deps --retries 0 --timeout 10 --index-url $(CPU_WHEELS) "$(TORCH)" \
	    || $(BIN)/pip install "$(TORCH)"; \
	  else $(BIN)/pip install "$(TORCH)"; fi; \
	fi
	$(BIN)/pip install $(if $(TORCH),-c constraints.txt) -e .
	@touch $@

$(INSTALLED): $(RUNS)
	$(BIN)/pip install $(if $(TORCH),-c constraints.txt) -e '.[dev]'
	@touch $@

demo: $(RUNS)  ## text to a model that talks, on this machine (about 6 minutes on 2 cores)
	@$(BIN)/llmtrain demo

test: $(INSTALLED)  ## all tests, two files at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(INSTALLED)  ## the tests that need an NVIDIA GPU
	@DS_ACCELERATOR=cuda $(BIN)/python -m pytest tests/gpu

check: lint types floors test  ## everything that must hold before a commit

lint: $(INSTALLED)  ## ruff: rules and format
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: $(INSTALLED)  ## mypy
	@$(BIN)/mypy

floors: $(INSTALLED)  ## import-linter: imports point downward
	@$(BIN)/lint-imports

format: $(INSTALLED)  ## rewrite the code as `make lint` wants it
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: $(INSTALLED)  ## the benchmarks that run on any machine
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/loader.py
	@$(BIN)/python benchmarks/step_time.py

clean:  ## remove what was built; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
