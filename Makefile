# make demo, make test and make bench each set up .venv by themselves; nothing else is needed first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
INSTALL = -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
BIN     = $(VENV)/bin

DEMO_EXTRAS = demo
TEST_EXTRAS = demo,jax,dev

# Arguments for the programs: make demo DEMO_ARGS=--quick, make test PYTEST_ARGS="-k moments"
DEMO_ARGS   ?=
PYTEST_ARGS ?=
BENCH_ARGS  ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo    train with and without batch norm; audit, repair and fold; try five claims; a page"
	@echo "make test    ruff, mypy and pytest"
	@echo "make docs    build the documentation into site/; warnings are errors"
	@echo "make bench   compare speed with PyTorch and JAX (takes minutes)"
	@echo "make lint    ruff and mypy only"
	@echo "make clean   remove .venv, caches and what the demo wrote"

# A stamp per set of extras: pip runs again only when the requirements have changed.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	    "Python 3.11 or newer is needed; $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % v[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -f $(VENV)/bin/python; \
	    echo "could not make $(VENV); on Debian and Ubuntu: apt-get install python3.11-venv" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): a minute or two the first time"
	@$(BIN)/python $(INSTALL) --editable '.[$(DEMO_EXTRAS)]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): a minute or two the first time"
	@$(BIN)/python $(INSTALL) --editable '.[$(TEST_EXTRAS)]'
	@touch $@

# TensorFlow, for the Keras layers' tests, in an environment on top of the other: nothing else may
# see it. Where it does not install, these tests are skipped and say so.
$(VENV)/.tensorflow: $(VENV)/.test
	@echo "installing TensorFlow into $(VENV)/tensorflow, for the tests of the Keras layers"
	@$(BIN)/python -m venv $(VENV)/tensorflow
	@$(BIN)/python -c 'import sysconfig; from pathlib import Path; \
	    under = sysconfig.get_path("purelib"); \
	    on_top = Path(sysconfig.get_path("purelib", vars={"base": "$(VENV)/tensorflow"})); \
	    (on_top / "under.pth").write_text(f"import site; site.addsitedir({under!r})\n")'
	@$(VENV)/tensorflow/bin/python $(INSTALL) tensorflow-cpu || { \
	    rm -rf $(VENV)/tensorflow; echo "TensorFlow could not be installed; its tests will be skipped"; }
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m normkit.demo $(DEMO_ARGS)

test: lint $(VENV)/.tensorflow
	$(BIN)/python -m pytest -n auto --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist out site .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
