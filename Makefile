# Everything here needs only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
UV := $(VENV)/bin/uv
RUN := $(VENV)/bin/
LOWEST := $(VENV)-lowest
UV_RELEASE := uv==0.13.8
QUICK := -m "not slow and not clients" --ignore tests/clients
EXTRAS := --extra demo --extra openai --extra anthropic --extra otel
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
# The tests start hundreds of processes: each would compile Baton again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Set up .venv with baton and the tools to develop it

$(VENV)/.installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Baton needs Python 3.11 or newer, and $(PYTHON) is {v.major}.{v.minor}. Run: make PYTHON=/path/to/python3.11" if v < (3, 11) else 0)'
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV) || { echo 'Python has no venv module here. On Debian and Ubuntu: apt-get install python3-venv'; rm -rf $(VENV); exit 1; }
	@test -x $(UV) || $(RUN)python -m pip install --quiet --disable-pip-version-check $(UV_RELEASE)
	@echo "Installing Baton into $(VENV) ..."
	@$(UV) sync --quiet --locked --inexact $(EXTRAS) --python $(RUN)python
	@touch $@

demo: install ## Stream an answer, kill its pod and its worker, and receive it whole
	@$(RUN)baton demo

chaos: install ## Break processes, connections and Postgres at random (SECONDS=600 SEED=7)
	@$(RUN)baton chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

lint: install ## Check style, types, import contracts and the lock file
	@$(UV) lock --quiet --check --python $(RUN)python
	@$(RUN)ruff check --quiet .
	@$(RUN)ruff format --quiet --check .
	@$(RUN)mypy
	@$(RUN)lint-imports

test: lint ## Lint, then run the tests on a real Postgres (at most 5 minutes)
	@$(RUN)pytest -q -n 4 $(QUICK)

test-unit: install ## The tests that need no database (seconds)
	@$(RUN)pytest -q -n 2 -m "not slow" tests/unit

test-clients: install ## The tests with real clients: the npm package, SDKs from PyPI and npm, and Chromium, where it is
	@$(RUN)pytest -q -n 4 -m clients

test-lowest: install ## The tests on the oldest releases of what Baton depends on (Python 3.11 or 3.12)
	@$(UV) venv --quiet --clear --python $(RUN)python $(LOWEST)
	@$(UV) pip compile --quiet $(EXTRAS) --group test --resolution lowest-direct --python $(LOWEST)/bin/python \
		--output-file $(LOWEST)/requirements.txt pyproject.toml
	@VIRTUAL_ENV=$(LOWEST) $(UV) pip sync --quiet $(LOWEST)/requirements.txt
	@VIRTUAL_ENV=$(LOWEST) $(UV) pip install --quiet --no-deps $(UV_RELEASE) --editable .
	@$(LOWEST)/bin/pytest -q -n 4 -m "not slow" --ignore tests/clients

test-all: lint ## All tests, those that take longer too, on the oldest Postgres where there is one, and test-lowest
	@$(RUN)pytest -q -n 4
	@$(RUN)pytest -q -n 4 $(QUICK) --postgres 15
	@$(MAKE) test-lowest

bench: bench-install ## Measure Baton and what it is compared with, into docs/benchmarks (an hour or two)
	@$(RUN)python -m bench

bench-quick: bench-install ## The main comparisons, once (some minutes)
	@$(RUN)python -m bench --quick

bench-install: install
	@$(UV) sync --quiet --locked --inexact $(EXTRAS) --group bench --python $(RUN)python

docs: install ## Build the documentation site into site/, strictly and offline
	@$(UV) sync --quiet --locked --inexact --group docs --python $(RUN)python
	@$(RUN)python -m tools.docs_site

coverage: install ## The tests of `make test`, and how much of the code they run
	@$(UV) sync --quiet --locked --inexact --group coverage --python $(RUN)python
	@$(RUN)pytest -q -n 4 $(QUICK) --cov --cov-report=term:skip-covered --cov-report=xml --durations=25

wheel: install ## Build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(UV) build --quiet --out-dir dist

js: install ## Build what is committed of the npm package: its types, and one file for browsers
	@$(RUN)python -m tools.js_client

npm: install ## The same, and the package that a release publishes, into npm/
	@$(RUN)python -m tools.js_client --pack

js-release: install ## The same, for a release: the browser build cannot change from then on
	@$(RUN)python -m tools.js_client --release

hooks: install ## Check each commit: format, lint, imports and the lock file
	@$(UV) sync --quiet --locked --inexact --group hooks --python $(RUN)python
	@$(RUN)pre-commit install

lint-github: install ## Check the workflows, forms and settings in .github
	@$(UV) sync --quiet --locked --inexact --group github --python $(RUN)python
	@$(RUN)check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(RUN)check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(RUN)check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	@$(RUN)check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(RUN)zizmor --offline --quiet --config .github/zizmor.yml .

format: install ## Format the code
	@$(RUN)ruff check --quiet --fix .
	@$(RUN)ruff format --quiet .

clean: ## Remove what the targets above made
	@rm -rf $(VENV) $(LOWEST) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist npm build site .coverage* coverage.xml

.PHONY: help install demo chaos lint test test-unit test-clients test-lowest test-all bench bench-quick bench-install docs coverage wheel js npm js-release hooks lint-github format clean
