# Needs Python >= 3.11 and GNU make >= 3.81, nothing else.

VENV := .venv
PY := $(VENV)/bin/python
PYTHONS := python3 python3.13 python3.12 python3.11
JAXES := cpu cuda12 cuda13 tpu

PYTHON ?=
JAX ?=
ARGS ?=
# At most four test processes: each holds a JAX of its own, which wants memory.
WORKERS ?= auto --maxprocesses 4
# XLA's flags for programs that are compiled quickly and run slowly.
QUICK := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 \
--xla_backend_optimization_level=1

# Without JAX= the JAX that .venv has stays: `make test` after `make train JAX=cuda12`
# must not throw the GPU's away.
PRESENT := $(patsubst $(VENV)/installed-%,%,$(wildcard $(VENV)/installed-*))
CHOSEN := $(or $(strip $(JAX)),$(firstword $(PRESENT)),cpu)
ifneq (1 $(CHOSEN),$(words $(CHOSEN)) $(filter $(JAXES),$(CHOSEN)))
$(error JAX=$(JAX) is unknown: give one of $(JAXES))
endif

comma := ,
EXTRAS := dev$(if $(filter-out cpu,$(CHOSEN)),$(comma)$(CHOSEN))
STAMP := $(VENV)/installed-$(CHOSEN)

# .venv is made afresh when its Python no longer runs (the system's was upgraded under
# it), when PYTHON= names another one, and when the JAX changes: the plug-ins of one JAX
# stand in the way of another's.
WHO := import sys; print(sys.version, sys.base_prefix)
HERE := $(shell $(PY) -c '$(WHO)' 2>/dev/null)
WANTED := $(if $(PYTHON),$(shell "$(PYTHON)" -c '$(WHO)' 2>/dev/null),$(HERE))
ifneq ($(HERE),$(WANTED))
AFRESH := afresh
endif
ifeq ($(HERE),)
AFRESH := afresh
endif
ifneq ($(filter-out $(CHOSEN),$(PRESENT)),)
AFRESH := afresh
endif

# The two ends of what normopt runs on. Warnings are errors there where normopt is what
# warns: the packages around it deprecate each other as they age. Not by -W, which takes
# the name of a module literally and would miss the modules of a package.
ENDS := oldest newest
WARNINGS := default\nerror:::(normopt|experiments)([.]|$$)
RANK := import sys; v = sys.version_info; print(v[0] * 10**6 + v[1] * 10**3 + v[2]); \
sys.exit(v[3] != "final" or "t" in sys.abiflags)
VERSIONS := import sys; from importlib.metadata import version; \
print("Python %d.%d.%d" % sys.version_info[:3], \
*(f"{name} {version(name)}" for name in ("jax", "optax", "flax")), sep=", ")

.DEFAULT_GOAL := help
.PHONY: help install train test test-versions check clean afresh

help: ## list the targets and options
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-21s%s\n", $$1, $$2}'
	@echo
	@echo "  JAX=cuda12         this JAX instead of the one present or the CPU's: $(JAXES)"
	@echo "  PYTHON=PATH        the Python of .venv, else the first that runs of $(PYTHONS)"
	@echo "  ARGS='...'         arguments of the training: make train ARGS='--help'"
	@echo "  WORKERS=1          test processes (auto: one a core, at most four)"

install: $(STAMP) ## set up .venv (the other targets do it by themselves)

train: $(STAMP) ## train on real data, the digits of scikit-learn unless ARGS says otherwise
	@$(PY) -m experiments train $(ARGS)

# Test processes share a GPU only if none of them reserves its whole memory first. The
# tests of a file stay in one of them: what they share is made once; files of a few long
# tests are not left for the end, where one process would wait for the other. The tests
# compile thousands of programs and run each a few times, so XLA is told to compile
# quickly, by those of the flags that it knows: it aborts on others. JAX has it optimize
# next to nothing, but for the experiments' tests, which train. XLA_FLAGS= tests what it
# makes without being told, as test-versions does with the library's tests; programs
# that are compiled so by their tests, as those of find_scale_invariance, stay as they
# are.
test: check ## check, then the whole test suite with its coverage
	@export XLA_PYTHON_CLIENT_PREALLOCATE=false; quick=; \
	for flag in $(QUICK); do \
	  if { XLA_FLAGS=$$flag $(PY) -c 'import jax; jax.devices()'; } >/dev/null 2>&1; \
	  then quick="$${quick:+$$quick }$$flag"; fi; \
	done; \
	if [ -z "$${XLA_FLAGS+set}" ]; then \
	  export XLA_FLAGS="$$quick" JAX_DISABLE_MOST_OPTIMIZATIONS=1; \
	fi; \
	env | grep -E '^(XLA_FLAGS|JAX_DISABLE_MOST_OPTIMIZATIONS)='; \
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov

# pyright runs its bundled checker on the Node of its wheel and asks no network.
check: $(STAMP) ## formatting, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@unset PYRIGHT_PYTHON_FORCE_VERSION PYRIGHT_PYTHON_PYLANCE_VERSION; \
	PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT=1 PYRIGHT_PYTHON_GLOBAL_NODE=0 \
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

# Both are made afresh: what an earlier run left would hide what is missing, and newest
# means today's. A Python that is not final or has no GIL lacks wheels.
test-versions: ## the library's tests on the newest versions and on the oldest declared
	@trap 'exit 130' INT TERM HUP; \
	pyenv=$$(pyenv root 2>/dev/null); summary=; failed=; \
	for end in $(ENDS); do \
	  case $$end in \
	  oldest) from=3011000 to=3011999 want=3.11 pins='-c constraints-oldest.txt' ;; \
	  newest) from=3013000 to=3999999 want='3.13 or newer' pins= ;; \
	  esac; \
	  found=; most=0; \
	  for python in python3.14 $(PYTHONS) "$$pyenv"/versions/3.*/bin/python; do \
	    rank=$$("$$python" -c '$(RANK)' 2>/dev/null) || continue; \
	    if [ "$$rank" -ge $$from ] && [ "$$rank" -le $$to ] && [ "$$rank" -gt $$most ]; \
	    then found=$$python; most=$$rank; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    summary="$$summary$$end: skipped, no Python $$want runs here|"; continue; \
	  fi; \
	  there=$(VENV)-$$end; \
	  echo "Testing the $$end versions in $$there with $$("$$found" --version)"; \
	  if ! { "$$found" -m venv --clear $$there && $$there/bin/python -m pip install \
	  --disable-pip-version-check $$pins -e '.[test]'; }; then \
	    failed=1; summary="$$summary$$end: FAILED, the lines above say why nothing ran|"; \
	    continue; \
	  fi; \
	  result=passed; \
	  $$there/bin/python -m pytest -rfEs -n $(WORKERS) -o "filterwarnings=$$(printf '$(WARNINGS)')" \
	  normopt tests --ignore=tests/experiments || { failed=1; result=FAILED; }; \
	  summary="$$summary$$end: $$result with $$($$there/bin/python -c '$(VERSIONS)')|"; \
	done; \
	IFS='|'; printf '%s\n' $$summary; [ -z "$$failed" ]

clean: ## remove the .venvs, builds and caches; runs/ stays
	rm -rf $(VENV) $(ENDS:%=$(VENV)-%) build dist .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find normopt experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, as the renamed mark of an unfinished set-up: an interrupted one
# leaves the mark, and the next make starts from an empty .venv. A .venv without either
# was made by hand and is kept if its pip is whole (its metadata is what lands last). A
# pip that merely fails (no network) has changed nothing: its trap-less end drops the
# mark, so that the next make tries again without starting over.
$(STAMP): pyproject.toml constraints.txt $(AFRESH)
	@set -e; trap 'exit 130' INT TERM HUP; \
	stop() { echo "$$1" >&2; exit 1; }; \
	if [ -n "$(AFRESH)" ] || [ -e $(VENV)/unfinished ] || ! $(PY) -c \
	'import importlib.metadata as m, sys; m.version("pip"); sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null; then \
	  found=; \
	  for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  [ -n "$$found" ] || stop "$(if $(PYTHON),PYTHON=$(PYTHON) does not run or is older \
	than 3.11: name a Python that is 3.11 or newer.,normopt needs Python 3.11 or newer and \
	none of $(PYTHONS) runs here and is that new: install one or name one with PYTHON=.)"; \
	  no_venv="$$found cannot make a virtual environment: install its venv module (on \
	Debian and Ubuntu the package python3-venv) or name another Python with PYTHON=."; \
	  "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1 || stop "$$no_venv"; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV) || { rm -rf $(VENV); stop "$$no_venv"; }; \
	fi; \
	: > $(VENV)/unfinished; \
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]' \
	|| { rm -f $(VENV)/unfinished; stop "pip could not install normopt; its lines above \
	say why, and the next make tries again."; }; \
	rm -f $(VENV)/installed-*; \
	mv $(VENV)/unfinished $@
