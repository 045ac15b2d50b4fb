# Two commands do everything on a fresh machine with Python 3.11, pip and make:
#   make demo    the main job on an embedded corpus: validate, pre-train, evaluate, table
#   make test    every check: tests, lint, types, docs, the real HEAR tools, the sample plugin
PYTHON ?= python3
VENV ?= .venv
HEAR_TOOLS = heareval==2021.1.3 hearvalidator==2021.0.2
# One thread is the fastest on two busy cores, and heareval's scores change with the number.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test fast install clean

demo: $(VENV)/installed
	$(VENV)/bin/asda-hear demo --out demo

test: $(VENV)/tox
	$(VENV)/bin/tox run

fast: $(VENV)/tox
	$(VENV)/bin/tox run -e fast

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[hear]"
	$(VENV)/bin/python -m pip install --quiet --no-deps $(HEAR_TOOLS)
	touch $@

$(VENV)/tox: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "tox>=4.24" "tox-uv>=1.20"
	touch $@

clean:
	rm -rf $(VENV) .tox demo
