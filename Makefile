# Each target makes what it needs. Nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The variable of the environment does it, too. Another's DATABASE in the environment is not meant.
ifeq ($(origin DATABASE),command line)
export ATLAS_DATABASE := $(DATABASE)
endif

.PHONY: help demo serve test check format bench clean

help:
	@echo "make demo   run the example over HTTP: hits, misses, what an edit drops, several workers on one Valkey"
	@echo "make test   run every test"
	@echo "make serve  leave the example running for a browser, at http://127.0.0.1:8000"
	@echo "            (PORT=8001; with REDIS_URL=redis://localhost the cache is there, and WORKERS=4 share it)"
	@echo "            (demo and serve: with DATABASE=postgresql://... the data is there, instead of in SQLite)"
	@echo "make check  lint and check types"
	@echo "make bench  measure, against other libraries in environments of their own"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "asynctag needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -d $(VENV) || { echo "making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "installing what the project needs into $(VENV) (a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(READY)
	@$(BIN)/python -m examples.atlas.demo

serve: $(READY)
	@$(BIN)/python -m examples.atlas.serve

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis examples/atlas/airports.sqlite3*
