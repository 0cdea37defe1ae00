# Every target sets up .venv by itself, with the versions in constraints.txt.
PYTHON ?= python3
# Threads that spin only shortly while they wait are not slowed down by other programs.
export GOMP_SPINCOUNT ?= 10000
VENV = .venv
BIN = $(VENV)/bin

.PHONY: setup demo test lint docs benchmarks clean

setup: $(VENV)/ready

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,docs,plot]'
	touch $@

demo: setup
	$(BIN)/gdml demo demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: setup
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

benchmarks: setup
	$(BIN)/python benchmarks/against_sgdml.py
	$(BIN)/python benchmarks/symmetry_choice.py
	$(BIN)/python benchmarks/dynamics.py
	$(BIN)/python benchmarks/cg.py
	$(BIN)/python benchmarks/crystals.py
	$(BIN)/python benchmarks/path_integrals.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/descriptors.py
	$(BIN)/python benchmarks/few_geometries.py
	$(BIN)/python benchmarks/states.py
	$(BIN)/python benchmarks/coarse.py
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/figures.py

clean:
	rm -rf $(VENV) demo docs/_build
