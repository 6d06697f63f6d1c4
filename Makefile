# Everything a fresh checkout needs: `make demo` and `make test` set themselves up.
#   PYTHON   interpreter for the virtual environment (3.10 or newer)
#   ARCHS    CUDA architectures of the plugin library; one is enough to build engines, `make release` takes all
#   OUT      where `make demo` writes

PYTHON ?= python3
ARCHS ?= 80
OUT ?= out/demo
BIN := .venv/bin
READY := .venv/.ready
PLUGINS := build/plugins/libgraphopt_plugins.so
NVCC_WHEELS := $(foreach p,cuda-nvcc cuda-runtime cuda-cccl cuda-crt nvvm,'nvidia-$(p)==13.0.*')

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-triton lint plugins release assets clean

demo: $(PLUGINS) assets
	python examples/demo.py $(OUT)

# Threads of BLAS that wait for each other made a codebook of 3 s take 78 s on two busy cores.
test: export OMP_NUM_THREADS = 1
test: lint $(PLUGINS) assets
	pytest tests -m "not triton and not torch"

# With a real server, and PyTorch, which the tests fetch from the package index.
test-triton: $(READY)
	pytest tests/graphopt/deploy -m "triton or torch"

lint: $(READY)
	ruff check .
	ruff format --check .
	python scripts/check_types.py

plugins: $(PLUGINS)

# CMake knows what is out of date; the sources are listed so that make asks it.
$(PLUGINS): $(READY) CMakeLists.txt $(wildcard cmake/*) $(shell find trt_plugins -type f)
	cmake -S . -B build/plugins -G Ninja -DGRAPHOPT_CUDA_ARCHS="$(ARCHS)"
	cmake --build build/plugins
	touch $@

release: $(READY)
	cmake -S . -B build/release -G Ninja
	cmake --build build/release

assets: $(READY)
	python scripts/fetch_assets.py

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[runtime,rtx,llm,triton,build,dev]"
	cmake/find_nvcc.sh $(BIN)/python >/dev/null 2>&1 || $(BIN)/pip install --quiet $(NVCC_WHEELS)
	touch $@

clean:
	rm -rf build out .venv
