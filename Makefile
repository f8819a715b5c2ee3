# Everything here sets itself up: `make demo` and `make test` work from a clean clone with Python >= 3.11.
# Pass another interpreter with PYTHON=/path/to/python3, more pytest arguments with PYTEST_ARGS="-x -k name".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := .tools
MODELS := smollm2-135m-instruct all-minilm-l6-v2
DEMO := runs/demo
PYTEST := $(BIN)/python -m pytest -q $(PYTEST_ARGS)
EVERYDAY := not slow and not gpu

# HASHES=yes: every archive must have the digest that requirements/lock-hashes.txt has for it.
LOCKED := $(if $(HASHES),--no-deps --require-hashes -r requirements/lock-hashes.txt,-r requirements/lock.txt)

# Workers are processes: without byte code on disk each of them compiles what it imports, for longer than it works.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup models demo test test-unit slow docs lint format hashes audit sbom chart clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(STAMP)  ## build .venv from requirements/lock.txt and install the project into it

$(STAMP): requirements/lock.txt pyproject.toml setup.py
	@found=; for candidate in "$(PYTHON)" python3.11 python3.12 python3.13; do \
	    if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "error: Python >= 3.11 with its venv module is needed and '$(PYTHON)' is not one; pass PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "setting up $(VENV) with $$("$$found" --version) (minutes the first time)"; \
	"$$found" -m venv $(VENV)
	@# --no-compile: byte-compiling all 21 000 installed files takes longer than compiling the imported ones on use
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile $(LOCKED)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

models: setup  ## fetch the demo models into the cache (quick when they are there)
	@for name in $(MODELS); do $(BIN)/errata models fetch $$name || exit $$?; done

demo: models  ## run configs/quickstart.yaml end to end; output in runs/demo
	rm -rf $(DEMO)
	$(BIN)/errata run configs/quickstart.yaml --output $(DEMO)

test: models test-unit  ## all everyday tests: unit, integration, model
	$(PYTEST) -n 2 --dist loadfile -m "$(EVERYDAY)" tests/integration tests/model

test-unit: setup  ## unit tests alone: a minute, no models, no Ray
	$(PYTEST) -n 2 --dist worksteal -m "$(EVERYDAY)" tests/unit

slow: models  ## the tests that take minutes
	$(PYTEST) -m "slow and not gpu"

docs: setup  ## the reference pages, from docs/ and the docstrings, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## apply ruff's formatting and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(TOOLS)/.installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements/tools.txt
	@touch $@

hashes: $(TOOLS)/.installed  ## requirements/lock-hashes.txt from lock.txt, and tools.txt from tools.in
	TOOLS=$(TOOLS)/bin sh requirements/hashes.sh

audit: $(TOOLS)/.installed  ## hashes belong to the lock; known weaknesses of what it names, where a service can be asked
	$(TOOLS)/bin/python requirements/supply.py audit

sbom: setup $(TOOLS)/.installed  ## dist/sbom.json: what .venv holds, in CycloneDX
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.json $(VENV)

chart: setup  ## write the Helm chart's templates from the kustomize base
	$(BIN)/python k8s/helm/generate.py

clean:  ## remove the environment, caches and the demo's output (models stay in their cache)
	rm -rf $(VENV) $(TOOLS) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
