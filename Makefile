# Everything a newcomer and CI need. `make demo` and `make test` set up what they use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SOURCE := CMakeLists.txt README.md $(shell find cmake src -type f -not -name '*.so' -not -name '*.pyc')

# A real window where there is a display, a virtual one (24-bit, with GLX) where there is none.
ifeq ($(DISPLAY)$(WAYLAND_DISPLAY),)
  ifneq ($(shell uname -s),Darwin)
    WINDOW := xvfb-run -a -s "-screen 0 1600x1000x24 +extension GLX"
  endif
endif

.PHONY: help install demo test lint bench bench-learning clean
help:
	@echo "make demo   segment a photograph in a napari window (a screenshot where there is no display)"
	@echo "make test   run all tests"
	@echo "make lint   check style and types"
	@echo "make bench  measure the lattice against pydensecrf2"
	@echo "make bench-learning   measure learning from few labels (DATA=../shared/data, QUICK=1 for five minutes)"

# pip says nothing (-q) for as long as it takes, so each phase says what it is.
$(VENV)/.created:
	@echo "Setting up $(VENV). What is in it already is not done again."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt --upgrade pip
	@touch $@

# torch alone and first: any other order lets a resolver pick another build of it.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	@echo "Installing torch: the largest download, a minute or more..."
	$(PIP) install -q -c constraints.txt torch
	@touch $@

$(VENV)/.needs: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "Installing what compiles the extension..."
	$(PIP) install -q -c constraints.txt --group build
	@touch $@

# A plain install, as users have it, and the CUDA backend in host loops, which tests need where there is
# no GPU. build/ is kept, so that only what changed is compiled again.
$(VENV)/.installed: $(SOURCE) $(VENV)/.needs
	@echo "Compiling the extension, and installing napari and the plugin: a minute or two..."
	$(PIP) install -q -c constraints.txt --no-build-isolation \
		--config-settings=cmake.define.CRFASRNN_HOST_LOOPS=ON ".[all]"
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@echo "Installing what the tests need..."
	$(PIP) install -q -c constraints.txt --group test
	@touch $@

install: $(VENV)/.installed

.PHONY: system
system:
	@sh tools/system_packages.sh

demo: system $(VENV)/.installed
	@echo "Segmenting a photograph, then again in a napari window..."
	$(WINDOW) $(BIN)/napari-crfasrnn demo --output demo

# Two processes, each with a virtual display of its own. Without Xvfb, windows take turns on the real one.
test: system $(VENV)/.test
	@echo "Running the tests: ten minutes or so on two cores..."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(command -v Xvfb >/dev/null && echo 2 || echo 1) --dist loadfile --no-loadscope-reorder

$(VENV)/.lint: $(VENV)/.installed
	@echo "Installing what checks style and types..."
	$(PIP) install -q -c constraints.txt --group lint
	@touch $@

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.bench: $(VENV)/.installed
	@echo "Installing what the benchmarks compare with..."
	$(PIP) install -q -c constraints.txt --group bench
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/lattice.py

DATA ?= ../shared/data
bench-learning: $(VENV)/.bench
	$(BIN)/python benchmarks/learning $(DATA) $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/learning $(DATA) --effort $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build demo
