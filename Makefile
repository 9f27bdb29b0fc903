# Every target works on a fresh machine: it first builds .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
FRAMEWORKS := $(wildcard tests/requirements-frameworks*.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz lint types fmt bench clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "snnfx needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt --upgrade pip setuptools wheel
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	$(PIP) install --quiet -c constraints.txt --editable '.[test,plot]'
	touch $@

# Other frameworks serve as references in tests and benchmarks. They are installed without what
# they require, since that would bring in torchvision, torchaudio and hundreds of megabytes.
.venv/.frameworks: .venv/.installed $(FRAMEWORKS)
	set -e; for list in $(FRAMEWORKS); do \
	  $(PIP) install --quiet -c constraints.txt --no-deps -r $$list; done
	touch $@

install: .venv/.frameworks ## build .venv with everything that tests and benchmarks need

demo: .venv/.installed ## train a spiking net on digits, plain and with snnmem, and compare
	$(BIN)/python examples/train_digits.py

test: .venv/.frameworks ## run all tests but those of `make fuzz`, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not fuzz"

fuzz: .venv/.frameworks ## train random networks at every level, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m fuzz tests/fuzz

lint: .venv/.installed ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed ## check types
	$(BIN)/pyright

fmt: .venv/.installed ## format, and mend what can be mended by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.frameworks ## peak memory, step time and compile time of all methods on all models
	$(BIN)/python examples/bench_memory.py --model all

clean: ## remove what was built, and .venv
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
