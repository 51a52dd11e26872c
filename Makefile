# Needs Python >= 3.11 and GNU make >= 3.81, nothing else.

VENV := .venv
PY := $(VENV)/bin/python
IS_NEW := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(or $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; \
  do if $$python -c '$(IS_NEW)' 2>/dev/null; then echo $$python; break; fi; done),\
  $(error normopt needs Python 3.11 or newer: install one or name one with PYTHON=))
# Without JAX= the JAX that .venv has stays: `make test` after `make train JAX=cuda12`
# must not throw the GPU's away.
PRESENT := $(patsubst $(VENV)/installed-%,%,$(wildcard $(VENV)/installed-*))
JAX ?= $(or $(firstword $(PRESENT)),cpu)
JAXES := cpu cuda12 cuda13 tpu
ifneq ($(words $(JAX)) $(filter $(JAXES),$(JAX)),1 $(JAX))
$(error JAX=$(JAX) is unknown: give one of $(JAXES))
endif
STAMP := $(VENV)/installed-$(JAX)
ARGS ?=
# At most four test processes: each holds a JAX of its own, which wants memory.
WORKERS ?= auto --maxprocesses 4

# The CPU's JAX looks for no other device: a library for TPUs would complain.
JAX_PLATFORMS ?= $(filter cpu,$(JAX))
export JAX_PLATFORMS
# Test processes share a GPU only if none of them reserves its whole memory first.
export XLA_PYTHON_CLIENT_PREALLOCATE := false

# The tests compile thousands of programs and run each a few times, so XLA compiles
# quickly what then runs slowly. `XLA_FLAGS=... make test` tests with other flags. The
# tests of a file stay in one process: what they share is made once.
QUICK := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 \
--xla_backend_optimization_level=1
PYTEST = XLA_FLAGS="$${XLA_FLAGS-$(QUICK)}" JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train test test-all test-versions test-oldest test-newest
.PHONY: test-nightly check docs docs-serve dist clean

help: ## list the targets and options
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-21s%s\n", $$1, $$2}'
	@echo
	@echo "  JAX=cuda12         this JAX instead of the one present or the CPU's: $(JAXES)"
	@echo "  PYTHON=PATH        the Python of a new .venv, else the first of 3.11 or newer"
	@echo "  ARGS='...'         arguments of the training: make train ARGS='--help'"
	@echo "  WORKERS=1          test processes (auto: one a core, at most four)"

install: $(STAMP) ## set up .venv (the other targets do it by themselves)

train: $(STAMP) ## train on real data, the digits of scikit-learn unless ARGS says otherwise
	@$(PY) -m experiments train $(ARGS)

test: check ## check, then all tests but the slow ones
	$(PYTEST) -m 'not slow'

test-all: check $(VENV)/with-docs $(VENV)/with-dist ## check, then all tests, their coverage
	$(PYTEST) --cov

# pyright runs its bundled checker on the Node of its wheel and asks no network.
check: $(STAMP) ## formatting, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT=1 PYRIGHT_PYTHON_GLOBAL_NODE=0 \
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

test-versions: test-oldest test-newest ## the library's tests on the oldest and newest versions

# Made afresh: what an earlier run left would hide what is missing, and newest means
# today's. Warnings are errors where normopt is what warns: the packages around it
# deprecate each other as they age. Not by -W, which takes the name of a module literally.
test-oldest: PINS := -c constraints-oldest.txt
# What JAX and optax will be: JAX's own index of each night, and optax's main branch.
test-nightly: NIGHTLY = $(VENV)-nightly/bin/python -m pip install --pre --upgrade \
-i https://us-python.pkg.dev/ml-oss-artifacts-published/jax/simple/ jax jaxlib \
'optax @ git+https://github.com/google-deepmind/optax'
test-nightly: ## the library's tests on the newest JAX and optax of all, unreleased
test-oldest test-newest test-nightly: test-%:
	$(PYTHON) -m venv --clear $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install $(PINS) -e '.[test]'
	$(NIGHTLY)
	$(VENV)-$*/bin/python -m pytest -n $(WORKERS) normopt tests --ignore=tests/experiments \
	-o "filterwarnings=$$(printf 'default\nerror:::(normopt|experiments)([.]|$$)')"

docs: $(VENV)/with-docs ## build the site into build/site, without a network; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

docs-serve: $(VENV)/with-docs ## show the site at 127.0.0.1:8000, built anew at each change
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve

# For a release, TAG=v0.2.0-rc1: the version has to be that (0.2.0rc1 in the names of files),
# and the addresses have to be an owner's.
dist: $(VENV)/with-dist ## build and check the wheel and the sdist in dist
	@test -z '$(TAG)' || ! grep -n OWNER pyproject.toml || \
	{ echo 'the URL lines of pyproject.toml want the name of an owner for OWNER'; exit 1; } >&2
	rm -rf dist
	$(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*
	@test -z '$(TAG)' || $(PY) -c 'import packaging.version, pathlib, sys; \
	version = packaging.version.Version(sys.argv[1]); \
	pathlib.Path(f"dist/normopt-{version}.tar.gz").is_file() or \
	sys.exit(f"the tag wants version {version}, pyproject.toml has another")' '$(TAG)'

clean: ## remove the .venvs, builds and caches; runs/ stays
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-nightly build dist .coverage .coverage.*
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find normopt experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python that is gone, as after an upgrade of the system, is a target to be made.
$(PY):
	$(PYTHON) -m venv --clear $(VENV)

# The stamp comes last: an install that failed or was interrupted is run again. It starts
# from an empty .venv where pip is missing, and where there is another JAX, as the
# plug-ins of one stand in the way of another's.
$(STAMP): $(PY) pyproject.toml constraints.txt
	$(if $(filter-out $(JAX),$(PRESENT)),,$(PY) -m pip --version ||) \
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt \
	-e '.[dev]' $(patsubst %,'jax[%]',$(filter-out cpu,$(JAX)))
	touch $@

# An extra of pyproject.toml that few targets need.
$(VENV)/with-%: $(STAMP)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@
