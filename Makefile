# Two commands: `make demo` tries the queue on real work, `make test` proves it. Each builds what it needs in ./.venv
# and downloads nothing but Python packages.

PYTHON ?= python3
BIN := .venv/bin
PYTEST_WORKERS ?= auto

.PHONY: bench chaos demo test lint stack dashboards clean

demo: .venv/installed
	@$(BIN)/queue-system demo

test: lint
	$(BIN)/pytest -n $(PYTEST_WORKERS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Redis, sample app, worker, Prometheus and Alertmanager on 127.0.0.1, with what of them is installed.
stack: .venv/installed
	@$(BIN)/python -m stack

# Writes grafana/dashboards anew; a test fails when they are stale.
dashboards: .venv/installed
	$(BIN)/python -m grafana.build

# This project and its peers side by side, about 35 minutes; make bench BENCH="--quick --only ours,huey" for a look.
bench: .venv/installed
	@$(BIN)/python -m benchmarks $(BENCH)

# Breaks workers, Redis and the network for about CHAOS_SECONDS (300), and checks what is promised.
chaos: .venv/installed
	@$(BIN)/python -m chaos

clean:
	rm -rf .venv

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,embedded,testing]'
	@touch $@
