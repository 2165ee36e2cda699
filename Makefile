# Everything runs in an environment of its own: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-output
BIN = $(VENV)/bin

# What tells soonest whether versions fit together: the example in every docstring, and these.
SMOKE = ntkrobust_sk tests/test_imports.py $(addprefix tests/,kernels/test_ntk.py solvers estimators/test_estimators.py \
	sklearn_models/test_sklearn_models.py networks/test_adapters.py)

.PHONY: demo test smoke smoke-oldest lint clean

demo: $(VENV)/.demo
	$(BIN)/ntkrobust demo --out $(OUT)

test: $(VENV)/.test lint
	# large pages: a tenth less time for what allocates large arrays again and again
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# A part of the tests. With the newest versions: make smoke PYTHON=python3.13 VENV=.venv-newest
smoke: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SMOKE)

# The same part with the oldest versions that pyproject.toml allows.
smoke-oldest: VENV = .venv-oldest
smoke-oldest:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --resolution lowest-direct --editable ".[dev,nets,plot,store,evolution]"
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SMOKE)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest $(OUT)
