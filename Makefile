# Two commands for a fresh Debian or Ubuntu machine with Python 3.11 or newer:
#     make demo    install into .venv and let the shipped model write a few lines
#     make test    install what the tests need as well and run the whole suite
#
# Elsewhere than on a machine whose index has a CPU build of torch, one variable fetches it:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PYTEST_ARGS ?=
PROMPT ?= It was a dark and stormy night, and

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test lint clean

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

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Pellucid into $(VENV) (about 1 GB with torch, a few minutes)"
	$(PIP) install $(INDEX) -c constraints.txt -e '.[chat]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing what the tests need into $(VENV)"
	$(PIP) install $(INDEX) -c constraints.txt -e '.[chat,grammar,test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
