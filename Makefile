# Every target makes .venv and installs what it needs when pyproject.toml is newer than the last installation.
#   make train                    train a small spiking network on event data, on this machine, offline
#   make test ARGS='-k lif'       run the tests (ARGS go to pytest)
#   make lint types format        ruff; mypy; let ruff mend what it can
#   PYTHON=python3.12             the Python that makes .venv
#   WITH=cuda13                   extras to install besides, comma-separated

PYTHON ?= python3
ARGS ?=
WITH ?=
JOBS ?= 2

BIN := .venv/bin
TRAIN_READY := .venv/.stamp-report$(WITH:%=,%)
TEST_READY := .venv/.stamp-test$(WITH:%=,%)

.PHONY: train test lint types format clean
.DEFAULT_GOAL := test

train: $(TRAIN_READY)
	$(BIN)/spikeloom train saccade_small $(ARGS)

# Two workers of two threads each: passive waiting keeps the threads of one from spinning on the cores of the other.
test: $(TEST_READY)
	OMP_WAIT_POLICY=passive $(BIN)/pytest -q -n $(JOBS) --timeout 600 $(ARGS)

lint: $(TEST_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(TEST_READY)
	$(BIN)/ruff check --fix --exit-zero --silent
	$(BIN)/ruff format
	$(BIN)/ruff check

types: $(TEST_READY)
	$(BIN)/python scripts/typing_view.py
	$(BIN)/mypy

clean:
	rm -rf build dist .typing *.egg-info .mypy_cache .pytest_cache .ruff_cache

# .venv/.stamp-report,cuda13 says: .venv holds spikeloom[report,cuda13], as pyproject.toml asks.
.venv/.stamp-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spikeloom needs Python 3.11 or newer: remove .venv, then make PYTHON=python3.11 ...")'
	@echo "installing spikeloom[$*] into .venv; the first time this takes some minutes"
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
