# make demo: the whole pipeline on the embedded testbed. make test: every test. make docs: the site,
# into site/. All set up .venv.
# Python 3.11, 3.12 or 3.13, whichever is there; make PYTHON=/path/to/python takes another one.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach each,python3.11 python3.12 python3.13 python3,\
	$(if $(shell $(each) -c '$(FITS)' 2>/dev/null && echo yes),$(each))))
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready

.PHONY: demo test check docs setup setup-docs python
demo: $(READY)
	$(BIN)/bitgrid run experiments/quickstart.yaml

# Three processes, a file to each in turn, the longest first: tests on a SLURM mostly wait, so that
# three keep two cores busy.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup-docs  # strict: a link that leads nowhere fails (and only where warnings are shown)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

setup: $(READY)

setup-docs: $(VENV)/.docs

python:  # says which one is taken
	@$(or $(PYTHON),false) -c '$(FITS)' && echo $(PYTHON) || \
	{ echo 'Python 3.11, 3.12 or 3.13 with venv is needed: make PYTHON=/path/to/python3.11' >&2; exit 1; }

$(READY): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory --silent python
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile -e '.[dev]'
	@# pip compiles on one core. Left to the first import, nothing is ever compiled where
	@# PYTHONDONTWRITEBYTECODE is set, as in containers; a few files are for other Pythons.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib harness methods reports || true
	@$(BIN)/bitgrid methods >/dev/null  # which it remembers, so that the next one answers at once
	touch $@

$(VENV)/.docs: $(READY)
	$(INSTALL) -e '.[docs]'
	touch $@
