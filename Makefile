# Two commands for a fresh Debian or Ubuntu machine with Python 3.11 or newer:
#     make demo    install into .venv and let the shipped model write a few lines
#     make test    install what the tests need as well and run the whole suite
#
# Elsewhere than on a machine whose index has a CPU build of torch, one variable fetches it:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# The kernels for the CPU are built where a C++ compiler is: make test installs one, make demo goes on without. After a change to them alone, or in
# a tree beside the one that was installed:
#     make native
#
# The page of `pellucid serve` is committed as it is built, and needs no Node. After a change to web/, with Node 20.19 or newer:
#     make web

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PYTEST_ARGS ?=
PROMPT ?= It was a dark and stormy night, and

BIN := $(VENV)/bin
# The variable, unlike -c, binds what builds the package too.
PIP := PIP_CONSTRAINT='$(CURDIR)/constraints.txt' $(BIN)/python -m pip --disable-pip-version-check --quiet
KERNELS := CMakeLists.txt $(wildcard pellucid/ops/cpu/*.cpp pellucid/ops/cpu/*.h pellucid/ops/cpu/*.cmake)
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test lint native web clean

demo: $(VENV)/.demo
	$(BIN)/pellucid run -p "$(PROMPT)" --max-tokens 120 --temperature 0.8 --top-p 0.95 --seed 7

test: $(VENV)/.test lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check pellucid tests scripts benchmarks
	$(BIN)/mypy

# The environment is made again whenever its recipe changes. ensurepip is Debian's python3-venv, a package of its own there.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"Pellucid needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "installing Debian's python3-venv"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "installing Pellucid into $(VENV) (about 1 GB with torch, a few minutes)"
	$(PIP) install $(INDEX) -e '.[chat]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@command -v c++ >/dev/null && $(BIN)/python -c "import os, sysconfig; os.stat(os.path.join(sysconfig.get_path('include'), 'Python.h'))" 2>/dev/null || \
		{ echo "installing Debian's g++ and python3-dev"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq g++ python3-dev; }
	@command -v chromium >/dev/null || ! command -v apt-get >/dev/null || \
		{ echo "installing Debian's chromium (400 MB), in which the page is tested"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium fonts-liberation; } || \
		echo "chromium could not be installed: the tests of the page are skipped (tests/SKIPS.md)"
	@node web/enough.mjs 2>/dev/null && { echo "installing what web/ is built with"; npm ci --prefix web --silent; } || \
		echo "no Node 20.19 or newer, or no package index: the page is not built again (tests/SKIPS.md)"
	@echo "installing what the tests need into $(VENV)"
	$(PIP) install $(INDEX) -e '.[chat,grammar,test]'
	@touch $@

native:
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/native -G Ninja -DPELLUCID_IN_TREE=ON -DPython_EXECUTABLE="$(abspath $(BIN))/python" >/dev/null
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/native

web: web/node_modules/.package-lock.json
	cd web && npm run --silent build

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	@node web/enough.mjs
	npm ci --prefix web --silent

clean:
	rm -rf $(VENV) web/node_modules build dist *.egg-info CMakeCache.txt CMakeFiles cmake_install.cmake build.ninja .ninja_deps .ninja_log *.a pellucid/ops/cpu/*.so
