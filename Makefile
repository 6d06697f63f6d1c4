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

export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: demo test lint plugins release assets clean

demo: $(READY) $(PLUGINS) assets
	$(BIN)/python examples/demo.py $(OUT)

test: lint $(PLUGINS) assets
	$(BIN)/pytest tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

plugins: $(PLUGINS)

# CMake knows what is out of date; the sources are listed so that make asks it.
$(PLUGINS): $(READY) CMakeLists.txt $(shell find trt_plugins -type f)
	$(BIN)/python scripts/build_plugins.py --archs "$(ARCHS)" --build build/plugins

release: $(READY)
	$(BIN)/python scripts/build_plugins.py --archs "80;86;89;90a;120" --build build/release

assets: $(READY)
	$(BIN)/python scripts/fetch_assets.py

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[runtime,rtx,llm,build,dev]"
	touch $@

clean:
	rm -rf build out .venv
