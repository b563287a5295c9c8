# All set-up is done here: python3 (3.11 or newer) with venv, and make, are enough.
# Another Python:  make clean && make test PYTHON=python3.13
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USER := 0

.PHONY: help setup test check proof cover mutate demo bench clean

help:
	@echo "make test [ARGS='-k name --long']   run the tests"
	@echo "make proof [ARGS='--only power']    the long form of every proof: about three hours"
	@echo "make check                          format, lint, types, layers"
	@echo "make cover [ARGS=rlog/journal.py]   every branch of the storage's core, by its fast tests"
	@echo "make mutate [ARGS=rlog/journal.py]  small bugs planted in it, which those have to see"
	@echo "make demo [FILE=path]               see it work"
	@echo "make bench [ARGS='--rounds 3']      run the benchmarks"
	@echo "make setup                          only create $(VENV)"
	@echo "make clean                          remove $(VENV) and all caches"

setup: $(INSTALLED)

test: $(INSTALLED)
	@scripts/test $(ARGS)

check: $(INSTALLED)
	@scripts/check

proof: $(INSTALLED)
	@$(VENV)/bin/python -m tests.proof $(ARGS)

cover: $(INSTALLED)
	@scripts/cover $(ARGS)

mutate: $(INSTALLED)
	@scripts/mutate $(ARGS)

demo: $(INSTALLED)
	@scripts/demo $(if $(FILE),"$$DEMO_FILE")

demo: export DEMO_FILE := $(value FILE)

# What rlog is compared with is installed, as far as it can be; the rest is left out. A whole comparison
# replaces what is in bench/results; the README is only written by bench.compare.report --readme.
bench: $(INSTALLED)
	@scripts/peers install || true
	@$(VENV)/bin/python -m bench $(ARGS)

# The stamp makes a second run instant; a change of what is to be installed installs it again.
$(INSTALLED): pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("rlog needs Python 3.11 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --only-binary :all: --requirement requirements-dev.txt
	@$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis htmlcov .coverage .coverage.*
	find rlog rlog_client tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
