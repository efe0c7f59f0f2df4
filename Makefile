# Every verb builds what it needs by itself in .venv, with the tested versions of constraints.txt.
# To use a Python that has the packages already: make run PYTHON=/path/to/python (nothing is installed then).

IMAGE    ?= docs/examples/shapes.png
QUESTION ?= Describe this image in detail.
MODEL    ?= reference/nano
ARGS     ?=

ifdef PYTHON
python := $(PYTHON)
core   := check-core
dev    := check-dev
else
python := .venv/bin/python
core   := .venv/core.stamp
dev    := .venv/dev.stamp
endif

.PHONY: help run test test-all parity lint bench gpu-check docs check-core check-dev
.DEFAULT_GOAL := help

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 16

run: $(core)  ## ask the shipped model about a picture (IMAGE=, QUESTION=, ARGS= change what)
	$(python) -m reference.generate "$(QUESTION)" --image $(IMAGE) --temperature 0 $(ARGS)

test: $(dev)  ## run the tests, without the slow ones; a skip for any reason but a missing GPU is a failure
	$(python) -m pytest -q -m "not slow" --fail-on-skip $(ARGS)

test-all: $(dev)  ## run all tests
	$(python) -m pytest -q --fail-on-skip $(ARGS)

parity: $(dev)  ## measure how closely every stage agrees with its counterparts, worst first
	$(python) -m pytest -q -m "oracle or parity" --fail-on-skip $(ARGS)

lint: $(dev)  ## check the style of the code
	$(python) -m ruff check .

bench: $(core)  ## measure speed and memory of the shipped model on this machine
	$(python) -m tools.bench --model $(MODEL) $(ARGS)

docs: $(dev)  ## check that every command and link of the documents works
	$(python) -m pytest -q parity_tests/test_readme.py --fail-on-skip $(ARGS)

# Machines with a GPU often bring their own torch: this verb uses the python3 at hand and installs nothing.
gpu-check: python := $(or $(PYTHON),python3)
gpu-check:  ## test and measure on a CUDA GPU with the python3 at hand, installing nothing (ARGS="--out DIR")
	@$(python) .ci/check_packages.py pytest
	$(python) -m tools.gpu_check $(ARGS)

check-core:
	@$(python) .ci/check_packages.py media

check-dev:
	@$(python) .ci/check_packages.py media serve agent dev

.venv/bin/python:
	@found=; for name in python3 python3.12 python3.11 python; do \
	  if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; done; \
	if [ -z "$$found" ]; then echo "error: no Python 3.11 or newer found. Install one, or name it: make run PYTHON=/path/to/python" >&2; exit 2; fi; \
	echo "building .venv with $$($$found --version)"; $$found -m venv .venv

.venv/core.stamp: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[media]"
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[media,serve,agent,dev]"
	@touch .venv/core.stamp $@
