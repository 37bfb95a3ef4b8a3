# The README's commands. `make run` and `make test` need Python 3.11, git, make and gcc, nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run test ui lint clean

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Any Python from 3.11 on; the versions in constraints.txt were tested with 3.11.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
# Which datasets of params.yaml: make run DATASETS="cub200 imagenet". `dvc repro` brings all up to date.
DATASETS ?= aist
PORT ?= 5000

export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME
# Images of containers often set it; each of hundreds of processes would then compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make run    environment, data, codec, denoiser, music, scores, registered model"
	@echo "make test   everything for the tests"
	@echo "make ui     the MLflow UI on the project's store"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove caches of tools; keeps data/ and $(VENV)"

# A stamp is touched last, so an interrupted installation is done again. Python compiles what is
# imported; --no-compile spares a minute for the many files that never are.
define install
	@test -n "$(PYTHON)" || { echo "make needs Python 3.11 or newer: none found; install it or set PYTHON=" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(VENV)/.run-stamp $@
endef

$(VENV)/.run-stamp: EXTRAS := all
$(VENV)/.run-stamp: pyproject.toml constraints.txt
	$(install)

# What `make run` needs is part of it: a fresh clone installs once.
$(VENV)/.test-stamp: EXTRAS := all,dev
$(VENV)/.test-stamp: pyproject.toml constraints.txt
	$(install)

run: $(VENV)/.run-stamp
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "make run needs a Git clone, as DVC does: run git init, or clone the repository" >&2; exit 1; }
	@started=$$(date +%s) && \
	$(BIN)/dvc repro $(foreach d,$(DATASETS),register@$(d)) && \
	$(BIN)/python -m flows.summary --since $$started $(if $(DATASETS),--datasets $(DATASETS))

test: $(VENV)/.test-stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test-stamp
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

ui: $(VENV)/.run-stamp
	@$(BIN)/python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT))).close()' 2>/dev/null \
	|| { echo "make ui needs a free port: $(PORT) is none; end what listens there, or set PORT=" >&2; exit 1; }
	@uri=$$($(BIN)/python -c 'from cdcd.tracking import ensure_store; print(ensure_store())') && \
	echo "MLflow UI: http://127.0.0.1:$(PORT) (choose \"Model training\"); Ctrl-C stops it" && \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri "$$uri" \
	--host 127.0.0.1 --port $(PORT) --workers 1

clean:
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
