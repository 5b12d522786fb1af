# make demo and make test need Python 3.11 and a package registry, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ROOT ?= data
WORKERS ?= 2

export TZ := UTC
export PYTHONHASHSEED := 0

.PHONY: setup demo dev test test-all lint format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[wandb,test]"
	touch $(STAMP)

demo: setup
	$(BIN)/beatsight --data-root $(DEMO_ROOT) --profile demo demo

dev: setup
	$(BIN)/beatsight --data-root $(DEMO_ROOT) --profile demo dev

lint: setup
	$(BIN)/ruff check beatsight_assets beatsight_assets_tests benchmarks
	$(BIN)/ruff format --check beatsight_assets beatsight_assets_tests benchmarks
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix beatsight_assets beatsight_assets_tests benchmarks
	$(BIN)/ruff format beatsight_assets beatsight_assets_tests benchmarks

test: setup
	$(BIN)/python -m beatsight_assets_tests

test-all: setup
	BEATSIGHT_EXHAUSTIVE=1 $(BIN)/python -m beatsight_assets_tests

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
