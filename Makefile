# `make` alone lists what can be made. Everything lives in .venv; a second make installs nothing again.

PYTHON ?= python3
# The version that the captured graphs are tested with. It is installed first and alone, so that no other requirement
# chooses it. On Linux, PyPI's build brings CUDA along; a smaller one:
#     make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
RANKS ?= 2
CONFIG ?= configs/first_light.toml
RESULT ?= results/$(basename $(notdir $(CONFIG))).h5
PYTEST_ARGS ?=
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check bench study docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.installed ## train $(CONFIG) under MPI, then say what bounds it (RANKS=2 CONFIG=configs/first_light.toml)
	mkdir -p $(dir $(RESULT))
	$(BIN)/mpirun -n $(RANKS) $(BIN)/meshemu run $(CONFIG) -o $(RESULT) --overwrite
	$(BIN)/meshemu report $(RESULT) --png $(basename $(RESULT)).png

test: .venv/.installed-test ## run every test, the MPI ones with 1, 2, 3 and 4 ranks (WORKERS=2 PYTEST_ARGS=...)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: .venv/.installed-test .venv/.installed-dev ## lint, types, import layers
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: .venv/.installed-test ## measure against the numbers to reach
	for script in scripts/bench_*.py; do $(BIN)/python $$script || exit 1; done

study: .venv/.installed ## scale, tune and ask what-if on a dojo-tray: tables and plots in results/study
	MESHEMU="$(BIN)/meshemu" scripts/study.sh results/study

docs: .venv/.installed ## write the generated pages of docs/ again
	for script in scripts/generate_*.py; do $(BIN)/python $$script || exit 1; done

clean: ## remove caches and build products; .venv and results/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name '*.nbi' -o -name '*.nbc' \) -print | xargs rm -rf

.venv/.torch:
	$(PYTHON) -m venv .venv
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(PIP) install -e .
	@touch $@

.venv/.installed-%: .venv/.installed
	$(PIP) install -e '.[$*]'
	@touch $@
