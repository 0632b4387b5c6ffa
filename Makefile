# Two commands do everything on a fresh machine: `make demo` (the main job) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt

.DELETE_ON_ERROR:
.PHONY: demo test lint docs mutation clean

demo: $(VENV)/.ready-train
	$(BIN)/rishd demo

test: $(VENV)/.ready-dev lint
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/codespell

docs: $(VENV)/.ready-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# MODULES="riemannian_ode/flow.py ..." for some, SAMPLE=N for at most N mutants of each; see docs/mutation.md.
mutation: $(VENV)/.ready-mutation
	$(BIN)/python -m tests.mutation $(MODULES) $(if $(SAMPLE),--sample $(SAMPLE))

clean:
	rm -rf $(VENV) docs/_build mutants

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; set it with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "The venv module of $(PYTHON) is missing (Debian: apt install python3-venv)"; exit 1; }

# torch goes first and alone: its pin then decides which build the others find installed.
$(VENV)/.torch: $(BIN)/python constraints.txt
	$(PIP) torch
	@touch $@

$(VENV)/.ready-train: $(VENV)/.torch $(INPUTS)
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.torch $(INPUTS)
	$(PIP) -e '.[train,dev,pep]'
	$(PIP) --no-deps gram-newton-schulz  # for its torch back end; its CUDA kernels need packages of gigabytes
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.torch $(INPUTS)
	$(PIP) -e '.[train,docs]'
	@touch $@

$(VENV)/.ready-mutation: $(VENV)/.ready-dev
	$(PIP) -e '.[train,dev,mutation]'
	@touch $@
