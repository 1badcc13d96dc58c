# Two commands from a bare checkout with Python and make: `make quickstart` and `make test`.

PYTHON ?= python3
REAL_DATA ?=
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: quickstart test test-slow test-faults bench lint clean

quickstart: $(VENV)/installed
	$(RUN) -m hard_fast.study --config quickstart

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -m "not slow and not gpu" $(if $(REAL_DATA),--real-data=$(REAL_DATA))

test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -m "slow and not gpu" $(if $(REAL_DATA),--real-data=$(REAL_DATA))

# Fifty runs killed at any moment, 20,000 steps, damaged and slow disks, a hundred thousand bad inputs.
test-faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/faults -m "" --tries 50 --cases 100000 $(if $(REAL_DATA),--real-data=$(REAL_DATA))

# All benches, an hour or less; their rows, the tables and pictures that show them.
bench: $(VENV)/installed
	$(RUN) -m bench
	$(RUN) -m bench.render

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The stamp is made last, so that an installation cut short is tried again.
$(VENV)/installed: pyproject.toml kernels/hard_kernels/affine_mix/cpu.cpp
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[dev,export,cuda13]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info hard_fast.egg-info kernels/hard_kernels/affine_mix/*.so
