# The whole life of the project in a few words; `make help` lists them.
# Needs Python 3.11 or newer with venv, and network for the first `make venv` only.

PYTHON ?= python3
VENV   ?= .venv
# Tests run on this many processes, each of them single-threaded.
JOBS   ?= 2

bin   := $(VENV)/bin
stamp := $(VENV)/.installed
pip   := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS)
# torch, OpenMP and BLAS would each take all cores in each of the processes.
single := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-rigs test-rigs-slow test-slow lint format bench system-deps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(stamp) ## create .venv with the project and all its extras at the tested versions

$(stamp): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "edgefold needs Python 3.11 or newer; run: make venv PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(pip) setuptools
	$(pip) --editable '.[zoo,prune,cluster,device,dev]'
	touch $@

demo: $(stamp) ## ship the built-in network: six artifacts, verified, measured and bundled
	$(bin)/edgefold ship hetnet-fmnist --out demo/hetnet-fmnist --force
	@echo "report: $(CURDIR)/demo/hetnet-fmnist/results/report.html"

test: $(stamp) ## run the tests (all but the rigs and the slow ones)
	$(single) $(bin)/python -m pytest -n $(JOBS) --dist loadfile

# In one process: the rigs are shared by all of these tests. EDGEFOLD_REQUIRE_RIGS=1 makes a test fail that would skip.
test-rigs: $(stamp) ## run the tests on ARM boards over ssh and phones over adb (root on Debian; elsewhere they skip)
	$(single) $(bin)/python -m pytest -m "rig and not slow"

test-rigs-slow: $(stamp) ## run the longer tests on ARM boards and phones: the formats and workers that the others leave out
	$(single) $(bin)/python -m pytest -m "rig and slow"

test-slow: $(stamp) ## run the slow tests: long matrices, fresh installs
	$(single) $(bin)/python -m pytest -n $(JOBS) --dist loadfile -m "slow and not rig"

lint: $(stamp) ## ruff (rules and format) and mypy --strict
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

format: $(stamp) ## let ruff put the code into shape
	$(bin)/ruff check --fix
	$(bin)/ruff format

# Those that write a result; the others are their parts.
benchmarks = $(shell grep -l 'import .*write_result' benchmarks/*.py)

bench: $(stamp) ## run the scripts behind the published figures (long)
	for script in $(benchmarks); do echo "== $$script"; $(bin)/python "$$script" || exit 1; done

system-deps: ## install the Debian packages that some tests need (root; elsewhere those tests say why they skip)
	tests/rigs/system_deps.sh

clean: ## remove everything that the targets above made
	rm -rf $(VENV) .rig build dist demo edgefold.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
