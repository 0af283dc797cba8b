# Every target sets up what it needs: a virtual environment in .venv, refreshed when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint acceptance kafka clean

help: ## show this list
	@echo "make TARGET [PYTHON=python3.12]   (Python 3.11 or newer)"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.stamp-run ## subtract the shipped real pair; alerts, report and pictures in demo-out/
	$(BIN)/ks4diff demo --out demo-out

test: $(VENV)/.stamp-dev ## run the test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10

lint: $(VENV)/.stamp-dev ## check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

acceptance: $(VENV)/.stamp-dev ## measure what is promised, on the real images
	$(BIN)/python -m benchmarks.acceptance

kafka: $(VENV)/.stamp-dev ## start a real Kafka broker for the alert tests (needs Java 17 and Maven)
	$(BIN)/python tests/broker/broker.py

clean: ## remove the environment, caches and demo output
	rm -rf $(VENV) demo-out build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find ks4diff tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp and not bin/python: a venv without pip (Debian lacking python3-venv) has the latter all the same.
$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ks4diff needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The stamps are written last, so that an interrupted install is done again.
$(VENV)/.stamp-run: pyproject.toml | $(VENV)/.stamp-venv
	$(PIP) install -e .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(VENV)/.stamp-venv
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.stamp-run
