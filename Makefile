# One front door for people and for CI. Each target is thin: it says which tool runs, the tools' settings live in
# pyproject.toml. Everything happens inside .venv; the first target you call builds it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test e2e e2e-kind check fix bench endurance restart sim crash teeth ledger lock clean

BIN := .venv/bin
READY := .venv/.ready
LOCK := .ci/requirements-dev.lock
# The Python that builds .venv: `make demo PYTHON=/path/to/python` overrules the search.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

NEED_C = command -v cc >/dev/null || { echo "this compiles its load generator: install a C compiler (Debian: apt install gcc libc6-dev)" >&2; exit 1; }

help: ## say what can be made
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 18

demo: $(READY) ## three nodes, real writes, a leader killed, everything read back
	@$(BIN)/kvorum demo

test: $(READY) ## every test, with a coverage figure; the last line is pytest's
	@$(BIN)/coverage erase
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; status=0; \
	$(BIN)/coverage run -m pytest $(TESTS) 2>&1 | tee "$$log" || status=$$?; \
	$(BIN)/coverage combine --quiet; \
	echo "coverage, lines and branches: $$($(BIN)/coverage report --format=total)%"; \
	tail -n 1 "$$log"; exit $$status

check: $(READY) ## format, lint, types, layers, house rules; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest --quiet service/tests/unit/house

fix: $(READY) ## format, and repair what lint can repair by itself
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .

bench: $(READY) ## three nodes against a closed-loop generator, and against etcd if there is one
	@$(NEED_C)
	@$(BIN)/python e2e/bench/bench.py $(BENCH)

# Minutes of paced writes; ENDURANCE and RESTART hold more options, --help lists them.
MINUTES ?= 10

endurance: $(READY) ## minutes of writes at half of peak, retention 30 s: is everything bounded, is the rate steady?
	@$(NEED_C)
	@$(BIN)/python e2e/bench/endurance.py --minutes $(MINUTES) $(ENDURANCE)

restart: $(READY) ## a million entries, then nodes killed and ended one by one: how soon is each ready again?
	@$(NEED_C)
	@$(BIN)/python e2e/bench/restart.py $(RESTART)

# Histories that must count, minutes after which it ends in any case, and where a report goes, if anywhere.
SIM_SEEDS ?= 2000
SIM_MINUTES ?= 20
SIM_JSON ?=

sim: $(READY) ## seeded histories of a cluster on virtual time with faults, all judged; the last line is the summary
	@PYTHONPATH=service $(BIN)/python -m kvorum_sim.campaign --seeds $(SIM_SEEDS) --minutes $(SIM_MINUTES) $(if $(SIM_JSON),--json $(SIM_JSON))

# Where a report and a page go, if anywhere, and further options: TEETH="--only quorum --all-layers".
TEETH_JSON ?=
TEETH_PAGE ?=
TEETH ?=

teeth: $(READY) ## known bugs, put in one at a time: what the harness catches; the last line is the summary
	@PYTHONPATH=service $(BIN)/python -m kvorum_sim.teeth.campaign $(if $(TEETH_JSON),--json $(TEETH_JSON)) $(if $(TEETH_PAGE),--page $(TEETH_PAGE)) $(TEETH)

# Logs of which crash images are made, of which every bit is flipped, every call failed; kills of a store; a report.
CRASH_SEEDS ?= 20
CRASH_FLIPS ?= 1
CRASH_FAULTS ?= 1
CRASH_CYCLES ?= 200
CRASH_JSON ?=

crash: $(READY) ## every state that a crash can leave on disk, opened and judged; the last line is the summary
	@PYTHONPATH=service $(BIN)/python -m kvorum_sim.crash.campaign --seeds $(CRASH_SEEDS) --flips $(CRASH_FLIPS) --faults $(CRASH_FAULTS) --cycles $(CRASH_CYCLES) $(if $(CRASH_JSON),--json $(CRASH_JSON))

ledger: $(READY) ## append reports to docs/reliability: make ledger REPORTS="sim.json teeth.json"
	@PYTHONPATH=service $(BIN)/python -m kvorum_sim.ledger docs/reliability $(REPORTS)

# A part of them: make e2e E2E="-m smoke", make e2e E2E="-k rollout". e2e/README.md says what the environment decides.
E2E ?=
KIND_CLUSTER ?= kvorum-e2e

e2e: $(READY) ## install on the cluster of KUBECONFIG, write, break things, judge; e2e/README.md
	@KVORUM_E2E=1 $(BIN)/pytest e2e/tests -m cluster --capture=no --verbose --durations=0 -p no:randomly $(E2E)

e2e-kind: $(READY) ## the same on a cluster of its own made by kind, which is deleted afterwards
	@for program in docker kind kubectl helm; do command -v $$program >/dev/null || { echo "this needs $$program on PATH" >&2; exit 1; }; done
	@kubeconfig=$$(mktemp); trap 'kind delete cluster --name $(KIND_CLUSTER); rm -f "$$kubeconfig"' EXIT; export KUBECONFIG="$$kubeconfig"; \
	kind create cluster --name $(KIND_CLUSTER) --config e2e/kind.yaml --wait 120s; \
	KVORUM_E2E_LOAD=$${KVORUM_E2E_LOAD:-"kind load docker-image --name $(KIND_CLUSTER) {image}"} $(MAKE) e2e

lock: $(READY) ## write the exact versions of the development environment and of the image again
	@test -x .venv/lock/bin/pip-compile || { $(BIN)/python -m venv .venv/lock && .venv/lock/bin/pip install --quiet pip-tools; }
	@$(BIN)/python .ci/lock .venv/lock/bin/pip-compile

chart-docs: $(READY) ## write the table of values in helm/kvorum/README.md again
	@$(BIN)/python helm/values_table.py

clean: ## remove the environment and every cache
	@rm -rf .venv .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

$(READY): pyproject.toml $(LOCK)
	@test -n "$(PYTHON)" || { echo "kvorum needs Python 3.11 or newer: install it (Debian: apt install python3 python3-venv) or call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); kvorum needs Python 3.11 or newer: call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "building .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
