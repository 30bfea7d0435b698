# `make demo` and `make test` need python3, make and a package index; they do the rest.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Files are shared out over two processes. Without plugins that are found by themselves: Hypothesis's rewrites and loads
# all of Hypothesis in each process. With one thread of OpenMP and BLAS each, as the two processes have the cores.
PYTEST = PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest -p xdist -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint bench docs clean

demo: $(VENV)/.apps
	$(BIN)/bilevax denoise --out demo

# The package and its docstrings. Not here: the experiments, the docs and examples, and what is marked slow.
test: $(VENV)/.dev
	$(PYTEST) tests/core tests/applications tests/cli src

test-all: $(VENV)/.dev
	$(PYTEST) -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.synthetic
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.importing

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.apps: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[apps]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo site
