# Everything runs in an environment of its own: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-output
BIN = $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/ntkrobust demo --out $(OUT)

test: $(VENV)/.test lint
	# large pages: a tenth less time for what allocates large arrays again and again
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m pytest -n 2 --dist worksteal

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
	rm -rf $(VENV) $(OUT)
