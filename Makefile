# The developer's habits. Every target first brings $(VENV) up to date: pip runs when pyproject.toml or constraints.txt
# changed, and not otherwise.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SERVING_VENV ?= .venv-serving
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := demo
.PHONY: demo test test-serving lint format docs bench bench-kernels
.NOTPARALLEL:

demo: $(VENV)/.installed
	$(BIN)/llava-stf demo

# Two workers with one torch thread each finish sooner than one worker with two.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What runs on vLLM: its build for machines without a GPU, in an environment of its own (3.5 GB).
test-serving: $(SERVING_VENV)/.installed
	OMP_NUM_THREADS=1 $(SERVING_VENV)/bin/python -m pytest tests/vllm \
		tests/eval/serving/test_run.py::test_vllms_client_and_ours_count_the_same

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Guides and API reference, in site/; a broken link or docstring fails.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Vision tokens and time to first token of the embedded models.
bench: $(VENV)/.installed
	$(BIN)/llava-stf demo --json

# Kernels, projector and time to first token on a CUDA GPU, and the tables of the READMEs; floors where there is no GPU.
bench-kernels: $(VENV)/.installed
	$(BIN)/python kernels/benchmarks/bench_ops.py
	$(BIN)/python kernels/benchmarks/bench_projector.py
	$(BIN)/python kernels/benchmarks/bench_model.py
	$(BIN)/python kernels/benchmarks/tables.py

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[dev]"
	$(INSTALL) --no-deps lmms-eval==0.7.3
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[docs]"
	touch $(VENV)/.installed $@

$(SERVING_VENV)/.installed: tests/vllm/requirements.txt tests/vllm/prepare_environment.py pyproject.toml
	$(PYTHON) -m venv $(SERVING_VENV)
	$(SERVING_VENV)/bin/python -m pip install --disable-pip-version-check -r tests/vllm/requirements.txt
	$(SERVING_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps -e .
	$(SERVING_VENV)/bin/python tests/vllm/prepare_environment.py
	touch $@
