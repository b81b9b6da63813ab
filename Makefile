# Two commands on a bare machine: `make demo` and `make test`. Needs Python >= 3.11 with venv and pip.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Keeps pyright from asking the network for newer versions of itself.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage bench check format docs notebooks dist vendor clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

# The stamp holds what was installed from, so that a run with nothing to do stays offline whatever the files' times say.
FINGERPRINT = { echo '$(CURDIR)'; cat pyproject.toml constraints.txt; }

install: ## create .venv and install jetgraph with its dev extras into it; does nothing when that is up to date
	@if [ -x $(BIN)/python ] && $(FINGERPRINT) | cmp -s - $(STAMP); then exit 0; fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "jetgraph needs Python >= 3.11, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing);" \
			"name another: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi; \
	set -e; \
	echo "Installing jetgraph into $(VENV); the first time this takes some minutes."; \
	rm -f $(STAMP); \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi; \
	pip="$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable"; \
	$$pip '.[dev,scale]' || { echo "Ray is not for this Python or system: its tests will be skipped." >&2; $$pip '.[dev]'; }; \
	$(FINGERPRINT) > $(STAMP)

demo: install ## run the demo on a bundled model (options: ARGS="...")
	@$(BIN)/jetgraph demo $(ARGS)

# One thread a worker: JOBS workers share the cores. The tests use no model hub. What is compiled of tests and library is
# kept for the workers, and for the commands that tests start.
test: install ## run the tests and doctests (options: JOBS=2 ARGS="-k jets")
	@env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --durations 10 $(ARGS)

# Workers and commands that tests start are followed too: `[tool.coverage]` in pyproject.toml.
coverage: install ## which lines the tests run, at least 95 in 100 (options: JOBS=2 ARGS="tests/jets")
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet 'coverage>=7.10'
	@$(BIN)/python -m coverage erase
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m coverage run -m pytest -n $(JOBS) --dist loadgroup $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --skip-covered --fail-under 95

# JAX is a rival only where it is installed: $(BIN)/python -m pip install --editable '.[bench]'
bench: install ## measure against floors and rivals (options: ARGS="--only jets --jex PATH --write")
	@$(BIN)/python -m benchmarks $(ARGS)

check: install ## check format, lint and types
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

format: install ## format the code and mend what the linter can
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

docs: install ## build the documentation as a site into site, without a network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebooks: install ## make the notebooks of tutorial and examples, and run them
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python examples/notebooks.py

dist: install ## build wheel and sdist into dist, and run the demo on the wheel in an empty environment
	rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >dist.log || { cat dist.log >&2; exit 1; }; rm -f dist.log
	@$(BIN)/python -m tests.distribution dist

vendor: ## fetch what pages are drawn with, at its pinned version; needs npm
	@jetgraph/page/vendor/fetch.sh

clean: ## remove caches, builds and the demo's output
	rm -rf build dist site jetgraph-demo .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)
