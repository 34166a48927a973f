# make demo   checkpoints, their export, the proof of parity, an enlarged photograph, and a page of it: demo/report.html
# make test   the test suite
# make lint   ruff and pyright
# make bindings   TensorRT's Python bindings over stub libraries, which some tests look at
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bindings

demo: $(READY)
	$(BIN)/python tools/demo.py

test: $(READY)
	TENSORRT_BINDINGS=$(abspath $(VENV))/tensorrt $(BIN)/python -m pytest

bindings: $(READY)
	.ci/tensorrt_bindings $(abspath $(VENV))/tensorrt $(abspath $(BIN))/python -m pip $(PIP_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@
