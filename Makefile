# The developer's habits. Every target first brings $(VENV) up to date: pip runs when pyproject.toml or constraints.txt
# changed, and not otherwise.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SERVING_VENV ?= .venv-serving
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := demo
.PHONY: demo test test-distributed test-deepspeed test-cluster test-serving test-oldest test-newest test-versions docs tables lint format bench bench-kernels
.NOTPARALLEL:

demo: $(VENV)/.installed
	$(BIN)/llava-stf demo

# Two workers with one torch thread each finish sooner than one worker with two.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Training in several processes that share out the weights, over gloo on CPUs.
test-distributed: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed tests/training

# Offline batches on a Ray cluster of two machines that are on this one, and in an object store of moto, which is in an
# environment of its own.
test-cluster: $(VENV)/.installed-dev .venv-moto/.installed
	PATH=$(CURDIR)/.venv-moto/bin:$$PATH $(BIN)/python -m pytest -m cluster tests/batch

.venv-moto/.installed:
	$(PYTHON) -m venv .venv-moto
	.venv-moto/bin/python -m pip install --disable-pip-version-check "moto[server]==5.2.5"
	touch $@

# The same by DeepSpeed, in an environment of its own. It builds for some minutes once, with g++.
test-deepspeed: .venv-deepspeed/.installed
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PATH=$(CURDIR)/.venv-deepspeed/bin:$$PATH \
		.venv-deepspeed/bin/python -m pytest -m distributed tests/training/test_deepspeed.py

.venv-deepspeed/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	DS_BUILD_OPS=0 .venv-deepspeed/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[train]" \
		deepspeed==0.19.8 ninja hypothesis pytest
	touch $@

# What depends most on transformers, each version in an environment of its own (1.3 GB).
CORE := tests/models tests/inference tests/reduction tests/loading tests/cli/test_ask.py tests/training/test_distill.py
OLDEST := 5.17.0
VERSIONS := $(OLDEST) 5.19.0 5.23.0
CORE_TOOLS := bitsandbytes datasets hypothesis peft pytest pytest-xdist triton
IN_VERSION = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist worksteal $(CORE)

test-versions: $(VERSIONS:%=.venv-%/.installed)
	$(foreach version,$(VERSIONS),$(call IN_VERSION,.venv-$(version)) &&) true

test-oldest: .venv-$(OLDEST)/.installed
	$(call IN_VERSION,.venv-$(OLDEST))

# The newest release of everything but torch, whose unpinned build would be CUDA's, several gigabytes.
test-newest: .venv-newest/.installed
	$(call IN_VERSION,.venv-newest)

.venv-newest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.venv-newest/bin/python -m pip install --disable-pip-version-check --upgrade -e . $(CORE_TOOLS)
	touch $@

# Later releases of the hub's client than transformers allows stand in constraints.txt, so pip chooses there.
.venv-%/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.venv-$*/bin/python -m pip install --disable-pip-version-check transformers==$* -e . $(CORE_TOOLS)
	touch $@

# What runs on vLLM: its build for machines without a GPU, in an environment of its own (3.5 GB).
test-serving: $(SERVING_VENV)/.installed
	OMP_NUM_THREADS=1 $(SERVING_VENV)/bin/python -m pytest tests/vllm \
		tests/eval/serving/test_run.py::test_vllms_client_and_ours_count_the_same

# The tables of README.md and the guides, from the results in docs/.
tables: $(VENV)/.installed
	$(BIN)/python -m llava_stf_eval.tables

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

# Vision tokens and time to first token of the bundled models.
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
