# Everything runs in an environment of its own, made at first use. `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-output
BIN = $(VENV)/bin

# What tells soonest whether versions fit together: the example in every docstring, and these.
SMOKE = ntkrobust_sk tests/test_imports.py $(addprefix tests/,kernels/test_ntk.py solvers estimators/test_estimators.py \
	sklearn_models/test_sklearn_models.py networks/test_adapters.py)

.PHONY: help demo docs test test-fast sweep coverage smoke smoke-oldest lint clean

help: ## list what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1@/' | column -t -s @

demo: $(VENV)/.demo ## digits and a small CNN in a few minutes: table, results.json, figure.png
	$(BIN)/ntkrobust demo --out $(OUT) --overwrite

docs: $(VENV)/.docs ## the site, with every example of the gallery run: docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

test-fast: $(VENV)/.test ## what tells soonest whether something broke: all but the tests marked slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" -q tests

test: $(VENV)/.test lint ## every kind of test and every docstring's example, after lint
	# large pages: a tenth less time for what allocates large arrays again and again
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not sweep"

sweep: $(VENV)/.test ## the cases whose likes `make test` has: the rest of the gallery, the guide and scikit-learn's checks
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m sweep tests

coverage: $(VENV)/.test ## which lines of the package no test runs: at least 95 % must be (quickest with Python 3.12 or later)
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(BIN)/python -m pytest -n 2 --dist worksteal -q --cov --cov-report=term --cov-fail-under=95

# A part of the tests. With the newest versions: make smoke PYTHON=python3.13 VENV=.venv-newest
smoke: $(VENV)/.test ## what tells soonest whether versions fit together
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SMOKE)

# The same part with the oldest versions that pyproject.toml allows.
smoke-oldest: VENV = .venv-oldest
smoke-oldest: ## the same with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --resolution lowest-direct --editable ".[dev,nets,plot,store,evolution]"
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SMOKE)

lint: $(VENV)/.test ## style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ntkrobust_sk needs Python 3.11 or later; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[plot]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev,nets,plot,store,distributed,evolution]"
	$(BIN)/python -m pip install --quiet --no-deps neural-tangents==0.6.5 frozendict
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[docs,nets,plot,store,distributed,evolution]"
	@touch $@

clean: ## remove the environments and the demo's output
	rm -rf $(VENV) .venv-newest .venv-oldest $(OUT) docs/_build docs/api docs/gallery
