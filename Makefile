# Everything runs from a fresh checkout with Python >= 3.11 (venv, pip) and make. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= examples/first.yaml
JOBS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGES := stackwise-core stackwise-providers-optim stackwise-providers-data stackwise-providers-transformer
PYPROJECTS := $(PACKAGES:%=%/pyproject.toml)
READY := $(VENV)/.stackwise-installed
READY_DEV := $(VENV)/.stackwise-dev-installed

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' stackwise-core/pyproject.toml)

# One thread a process: two such processes beat one of two threads, and results do not depend on the machine.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-fast check docs site wheels release bench bench-quality clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/ —/'

run: $(READY)  ## install StackWise into VENV and train the first example (CONFIG=… for another)
	$(BIN)/stackwise run $(CONFIG)

test: $(READY_DEV)  ## the tests, clean-environment installs included
	$(TEST) -n $(JOBS) --dist loadfile -m "not rare"

test-all: $(READY_DEV)  ## every test, the rare ones too
	$(TEST) -n $(JOBS) --dist loadfile

test-fast: $(READY_DEV)  ## the tests that take seconds
	$(TEST) -n $(JOBS) --dist loadfile -m "not slow and not rare"

check: $(READY_DEV)  ## lint, format, types, floors and import circles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST) tests/test_floors.py

docs: $(READY)  ## write the tables of docs/reference/config.md and the pages of docs/reference/ from the code
	$(BIN)/python docs/config_keys.py
	$(BIN)/python docs/reference_pages.py

site: $(READY_DEV)  ## build the documentation as a site into build/site, without a network
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site
	@echo build/site/index.html

wheels: $(READY_DEV)  ## build and check wheels and sdists of all four into dist/, follow the README with them alone
	OMP_NUM_THREADS=1 $(BIN)/python tests/packaging/release.py dist

release: $(READY_DEV)  ## write CHANGELOG.md from changes/ for a version that it does not have yet, then the wheels
	@! grep -q '^## $(VERSION) ' CHANGELOG.md || { echo "CHANGELOG.md has $(VERSION) already: raise it in the four pyproject.toml and in stackwise.__version__" >&2; exit 2; }
	$(BIN)/towncrier build --yes --version $(VERSION)
	$(MAKE) wheels

bench: $(READY_DEV)  ## print every table of benchmarks/, and at the end which script failed
	@test -n "$(wildcard benchmarks/*.py)" || { echo "benchmarks/ holds no benchmark" >&2; exit 2; }
	@$(BIN)/python -m torch.utils.collect_env 2>/dev/null | grep -E '^(PyTorch version|Python version|OS|Is CUDA|GPU models|CPU\(s\)|Model name)'; uptime
	@failed=; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

bench-quality: $(READY_DEV)  ## print the tables of benchmarks/quality/: whole trainings, minutes to hours
	@test -n "$(wildcard benchmarks/quality/*.py)" || { echo "benchmarks/quality/ holds no benchmark" >&2; exit 2; }
	@set -e; for script in $(sort $(wildcard benchmarks/quality/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove VENV, caches and build output; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	rm -rf $(PACKAGES:%=%/build) $(PACKAGES:%=%/dist) $(wildcard $(PACKAGES:%=%/src/*.egg-info))
	find $(PACKAGES) tests $(wildcard examples benchmarks) -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "StackWise needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(READY): constraints.txt $(PYPROJECTS) | $(BIN)/python
	$(PIP) install -c constraints.txt torch==2.13.0 setuptools wheel
	$(PIP) install -c constraints.txt --no-build-isolation $(PACKAGES:%=-e ./%)
	@touch $@

$(READY_DEV): requirements-dev.txt $(READY)
	$(PIP) install -c constraints.txt -r requirements-dev.txt
	@touch $@
