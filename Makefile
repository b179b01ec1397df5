# Everything here needs only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
UV := $(VENV)/bin/uv
RUN := $(VENV)/bin/
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
# The tests start hundreds of processes: each would compile Baton anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Set up .venv with baton and the tools to develop it

$(VENV)/.installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Baton needs Python 3.11 or newer, and $(PYTHON) is {v.major}.{v.minor}. Run: make PYTHON=/path/to/python3.11" if v < (3, 11) else 0)'
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV) || { echo 'Python has no venv module here. On Debian and Ubuntu: apt-get install python3-venv'; rm -rf $(VENV); exit 1; }
	@test -x $(UV) || $(RUN)python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@echo "Installing Baton into $(VENV) ..."
	@$(UV) sync --quiet --locked --inexact --all-extras --python $(RUN)python
	@touch $@

demo: install ## Stream an answer, kill its pod in mid-answer, and resume on another
	@$(RUN)baton demo

chaos: install ## Break everything at random and judge (SECONDS=600 SEED=7)
	@$(RUN)baton chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

lint: install ## Check style, types, import contracts and the lock file
	@$(UV) lock --quiet --check --python $(RUN)python
	@$(RUN)ruff check --quiet .
	@$(RUN)ruff format --quiet --check .
	@$(RUN)mypy
	@$(RUN)lint-imports

test: lint ## Lint, then run the tests on a real Postgres (at most 5 minutes)
	@$(RUN)pytest -q -n 4 -m "not slow and not clients"

test-clients: install ## The tests with real clients: SDKs from PyPI and npm, and Chromium, where they are
	@$(RUN)pytest -q -n 4 -m clients

test-all: lint ## All tests, those that take longer too, and on the oldest Postgres where there is one
	@$(RUN)pytest -q -n 4
	@$(RUN)pytest -q -n 4 -m "not slow and not clients" --postgres 15

bench: bench-install ## Measure Baton and what it is compared with, into docs/benchmarks (an hour or two)
	@$(RUN)python -m bench

bench-quick: bench-install ## The main comparisons, once (some minutes)
	@$(RUN)python -m bench --quick

bench-install: install
	@$(UV) sync --quiet --locked --inexact --all-extras --group bench --python $(RUN)python

format: install ## Format the code
	@$(RUN)ruff check --quiet --fix .
	@$(RUN)ruff format --quiet .

clean: ## Remove what the targets above made
	@rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist

.PHONY: help install demo chaos lint test test-clients test-all bench bench-quick bench-install format clean
