# `make demo` and `make test` set up everything they need in .venv; a second run starts at once.
PYTHON ?= python3
TORCH ?= torch torchvision
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MINUTES ?= 180
SEED ?= 0
FOLDER ?= torture
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test slow check torture coverage docs docs-check clean

demo: $(READY)
	$(BIN)/antpipe demo --store demo-store

# Python 3.12 and newer count covered lines at no cost (sys.monitoring). With 3.11 the tests take nearly twice as long,
# so there only `make coverage` counts them.
test: check
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
		COVERAGE_CORE=sysmon $(PYTEST) -m 'not slow' --cov --cov-report= && echo "lines covered: $$($(BIN)/coverage report --format=total)%"; \
	else $(PYTEST) -m 'not slow'; fi

# What takes more than a few seconds each: processes that are killed, clusters, benchmarks, notebooks.
slow: $(READY)
	$(PYTEST) -m slow

coverage: $(READY)
	$(PYTEST) --cov --cov-report=term

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive antpipe
	$(BIN)/python -m tests.support.audit

# Kills, full disks, damage and odd inputs, drawn by SEED, for MINUTES; a second run goes on where the first one ended.
torture: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.torture $(FOLDER) --minutes $(MINUTES) --seed $(SEED)

# The pages as a site, in site/.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Reruns the commands printed in README and docs, and the notebooks. UPDATE=1 rewrites their output, SLOW=1 includes the demo.
docs-check: $(READY)
	$(BIN)/python docs/check.py $(if $(UPDATE),--update) $(if $(SLOW),--slow)
	$(if $(UPDATE),$(BIN)/python docs/run_notebooks.py --update)

# torch and torchvision go together in one command, so that their builds match.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "antpipe needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[offline,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo-store demo-store-runs site .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage torture build *.egg-info
