# Two commands do everything on a machine that has Python and make: `make study` and `make test`.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help study test check nightly bench docs clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

study: $(READY)  ## the main job: where honesty is in the bundled model, steered, measured, with a report
	$(BIN)/trimtab run honesty

# One thread a worker: workers with a pool of threads each would fight over the cores.
test: $(READY)  ## every test but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

nightly: $(READY)  ## every test, and how often studies of tossed labels claim an effect (hours)
	status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n $(WORKERS) --dist worksteal --durations 25 || status=1; \
	$(BIN)/python -m benchmarks.null || status=1; \
	exit $$status

check: $(READY)  ## format, lint, types, and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)  ## the table of the engine's speed
	$(BIN)/python -m benchmarks.engine

docs: $(READY)  ## the documentation as pages, with figures that the bundled model makes now (minutes): site/index.html
	$(BIN)/python -m docs.build

clean:  ## remove what the commands above wrote, but for .venv
	rm -rf out site dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# torch comes first and alone, so that a build for this machine (CPU only, say) that pip has been told of is the one taken.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("trimtab needs Python 3.11 or newer and this is " + sys.version.split()[0] + "; name another with: make PYTHON=/path/to/python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[adapters,big,dev,docs,search,serve]'
	@touch $@
