# Everything a working copy needs. Each target does its own set-up on a fresh machine and skips what is done already.
#
#   make demo                                   see it work
#   make test                                   what CI runs
#   make serve UPSTREAM=http://127.0.0.1:8000/v1

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first interpreter that runs and is new enough: a version manager's shim can be there and do neither.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
ARGS ?=

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED)  ## the virtual environment in .venv, with pinned versions

$(INSTALLED): pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	@[ -n "$(PYTHON)" ] || { echo "setup: no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "setup: installing into .venv with $$($(PYTHON) --version); the first time downloads about 0.5 GB"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		| { grep -v -e '^Requirement already satisfied' -e '^Looking in ' || true; }
	@touch $@
	@echo "setup: done"

.PHONY: model
model: $(INSTALLED)  ## prepare the default model: int8 ONNX in the user's cache folder, once
	@$(BIN)/semcache model prepare all-MiniLM-L6-v2

.PHONY: demo
demo: $(INSTALLED)  ## see it work: simulated backend, proxy, questions, summary (ARGS=--exit: do not stay up)
	@$(BIN)/semcache demo $(ARGS)

.PHONY: serve
serve: $(INSTALLED) model  ## start the proxy (UPSTREAM=http://127.0.0.1:8000/v1, more in ARGS)
	@$(BIN)/semcache serve $(if $(UPSTREAM),--upstream $(UPSTREAM)) $(ARGS)

.PHONY: test
test: lint model $(if $(CI),test-clients test-models)  ## the whole suite: lint, types, tests (ARGS="-k purge": some of the tests)
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

.PHONY: test-clients
test-clients: $(INSTALLED) model  ## the clients people use, each in its own environment (CLIENTS="openai-node -v": one)
	@$(BIN)/python -m tests.e2e.run $(CLIENTS)

.PHONY: test-models
test-models: $(INSTALLED)  ## two real model servers behind the proxy, one killed, one frozen: some minutes
	@SEMCACHE_MODEL_SERVERS=1 $(BIN)/python -m pytest tests/test_model_servers.py -s $(ARGS)

.PHONY: lint
lint: $(INSTALLED)  ## style and types only
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

.PHONY: bench
bench: $(INSTALLED) tools model  ## ratios to the bare limits of this machine, some minutes
	@$(BIN)/python -m loadtests.bench $(ARGS)

.PHONY: bench-routing
bench-routing: DATA ?= $(wildcard ../shared/data)
bench-routing: $(INSTALLED)  ## how well backends are chosen, and what becomes of them when one dies: three minutes (DATA=folder with a recorded hour)
	@$(BIN)/python -m loadtests.bench_routing $(if $(DATA),--data $(DATA)) $(ARGS)
	@$(BIN)/python -m loadtests.residency --requests 20000

.PHONY: demo-day
demo-day: $(INSTALLED) model  ## a day under rules: keys, limits, regions, faults, then usage and audit (ARGS=FOLDER keeps its files)
	@$(BIN)/python -m loadtests.demo_day $(ARGS)

.PHONY: loadtest
loadtest: $(INSTALLED) model  ## a one-minute load test against `semcache simulate`, report as JSON and HTML
	@$(BIN)/python -m loadtests $(ARGS)

.PHONY: quality
quality: DATA ?= $(wildcard ../shared/data)
quality: PARTS ?= pairs streams twins
quality: $(INSTALLED) model  ## how far hits can be trusted: pairs, streams, twins (DATA=labelled text; PARTS=streams ARGS=--quick)
	@for part in $(PARTS); do \
		if [ "$$part" = twins ]; then $(BIN)/python -m loadtests.quality_twins $(ARGS); \
		elif [ -n "$(DATA)" ]; then $(BIN)/python -m loadtests.quality_$$part $(DATA) $(ARGS); \
		else echo "quality: no labelled data for $$part: say make quality DATA=/path/to/folder," \
			"which python -m loadtests.quality_$$part -h describes"; fi; done

.PHONY: constraints
constraints: $(INSTALLED)  ## write the versions in .venv to constraints.txt
	@head -1 constraints.txt > constraints.txt.new
	@# A local build of torch is an index's choice, not ours: `+cpu` is cut off.
	@$(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed 's/+[a-z0-9.]*$$//' >> constraints.txt.new
	@mv constraints.txt.new constraints.txt

# Programs from Debian that drive the benchmark. Installed where that needs no question (root, apt).
.PHONY: tools
tools: PROGRAMS := wrk:wrk taskset:util-linux
tools:
	@missing=""; for pair in $(PROGRAMS); do \
		command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "not installed, and the benchmark needs them:$$missing" >&2; exit 0; fi; \
	echo "installing Debian packages:$$missing"; \
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $$missing >/dev/null; } \
		|| echo "could not install$$missing, which the benchmark needs" >&2

.PHONY: clean
clean:  ## remove what this file made, but the prepared models in the user's cache folder
	rm -rf .venv .venv-clients tests/e2e/clients/*/node_modules build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .make
	find semcache tests loadtests -name __pycache__ -prune -exec rm -rf {} +
