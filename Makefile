# Every target makes the environment it needs: `make demo` works in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all check format bench docs clean

demo: $(VENV)/.installed ## Plan a phantom from scratch: goals, files and a picture in demo_out/
	$(BIN)/vmat-diffusion demo --out demo_out

test: $(VENV)/.installed-dev ## The tests that take seconds
	$(PYTEST)

test-all: $(VENV)/.installed-dev ## All tests
	$(PYTEST) --slow

check: $(VENV)/.installed-dev ## Everything that must hold before a change is merged
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/lint-imports
	$(PYTEST)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.installed-dev ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## Measure and write docs/benchmarks.md
	$(BIN)/python benchmarks/beam.py
	$(BIN)/python benchmarks/monte_carlo.py
	$(BIN)/python benchmarks/peers.py --large
	$(BIN)/python benchmarks/preprocess.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/tg119.py
	$(BIN)/python benchmarks/plans.py
	$(BIN)/python benchmarks/gamma.py

docs: $(VENV)/.installed-dev ## The documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove what can be made again, but not the environment
	rm -rf site dist build demo_out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) install --quiet -r requirements-dev.txt
	@touch $@
