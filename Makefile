# Every target makes the environment it needs: `make demo` works in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Test files are shared out to so many processes, of one torch thread each; JOBS=0 runs them in this one.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test test-all check lint format bench docs clean

demo: $(VENV)/.installed ## Plan a phantom from scratch: goals, files and a picture in demo_out/
	$(BIN)/vmat-diffusion demo --out demo_out

test: $(VENV)/.installed-dev ## The tests that take seconds
	$(PYTEST)

test-all: $(VENV)/.installed-dev ## All tests
	$(PYTEST) --slow

check: lint docs test ## Everything that must hold before a change is merged

lint: $(VENV)/.installed-dev ## Format, style, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## Measure and write docs/benchmarks.md
	$(BIN)/python benchmarks/beam.py
	$(BIN)/python benchmarks/monte_carlo.py
	$(BIN)/python benchmarks/peers.py --large
	$(BIN)/python benchmarks/preprocess.py
	$(BIN)/python benchmarks/prediction.py
	mkdir -p build
	$(BIN)/vmat-diffusion benchmark tg119 --json > build/tg119.json
	$(BIN)/python benchmarks/commands.py tg119 build/tg119.json
	$(BIN)/python benchmarks/patients.py
	$(BIN)/python benchmarks/gamma.py
	$(BIN)/python benchmarks/page.py

docs: $(VENV)/.installed-dev ## The documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

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
