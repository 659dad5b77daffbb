# The front door. `make` alone prints what there is; CI calls the same targets.
# Needs make and Python 3.11 or later with its venv module, nothing else: every target makes its own
# environment in .venv and keeps it until setup.cfg or pyproject.toml change.

.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHONS := python3.13 python3.12 python3.11 python3
VENV := .venv
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
PIP := $(PY) -m pip install --quiet

# How much `make test` and `make sim` try; `make sim SEEDS=100000` for a night.
SEEDS := 1000
SEED :=
KILLS := 50
N := $(KILLS)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Programs that look for `lmq` find the one of this checkout.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help
help:  ## print this list
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(RUNTIME)  ## see lmq at work, with a simulated LM Studio: no model, no set-up
	@$(VENV)/bin/lmq demo

.PHONY: dev
dev: $(DEV)  ## make .venv with lmq (editable) and the tools
	@echo "ready; type: . $(VENV)/bin/activate"

.PHONY: check
check: lint types spelling fast  ## lint, types, spelling and the fast tests: within a minute

.PHONY: test
test: lint types spelling tests fresh-install  ## all that CI runs: check, every test, a fresh install; < 20 min

.PHONY: lint
lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: types
types: $(DEV)
	$(PY) -m mypy

.PHONY: spelling
spelling: $(DEV)
	$(PY) -m codespell_lib

.PHONY: fast
fast: $(DEV)
	$(PY) -m pytest -q -m "not slow" tests/test_house.py $(wildcard tests/unit tests/property)

.PHONY: tests
tests: $(DEV)
	$(PY) -m pytest --seeds=$(SEEDS) --kills=$(KILLS) --durations=10

.PHONY: sim
sim: $(DEV)  ## the simulated world: SEED=8412 replays one seed, SEEDS=100000 tries many
	$(PY) -m pytest tests/simulation $(if $(SEED),--seed=$(SEED) -v,--seeds=$(SEEDS))

.PHONY: crash
crash: $(DEV)  ## kill -9 a real broker N=50 times and look for what was lost
	$(PY) -m pytest tests/crash --kills=$(N) --timeout=0

.PHONY: bench
bench: $(BENCH)  ## measure lmq beside other queues
	$(PY) -m benchmarks

.PHONY: dist
dist: $(DEV)  ## build the sdist, and from it the wheel, into dist/
	rm -rf dist
	$(PY) -m build --outdir dist .

# The wheel as a stranger gets it: an empty environment, a foreign folder, no checkout in sight.
.PHONY: fresh-install
fresh-install: dist  ## install the built wheel into an empty environment and try it there
	@set -eu; empty=$$(mktemp -d); trap 'rm -rf "$$empty"' EXIT; \
	$(PY) -m venv "$$empty/venv"; \
	"$$empty/venv/bin/python" -m pip install --quiet dist/*.whl; \
	cd "$$empty"; \
	venv/bin/lmq --help; \
	for daemon in broker worker simulator forecast; do venv/bin/lmq $$daemon --help >/dev/null; done; \
	venv/bin/lmq-broker --help >/dev/null; \
	venv/bin/lmq-worker --help >/dev/null; \
	venv/bin/python -c 'from importlib.resources import files; import sys; \
units = sorted(u.name for u in files("lmq_systemd").iterdir() if u.name.endswith(".service")); \
sys.exit(0 if units else "the wheel holds no systemd units")'

.PHONY: clean
clean:  ## remove all that make made, .venv too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than what it was made from, or the installation is made again.
$(RUNTIME): setup.cfg pyproject.toml | $(PY)
	@echo "installing lmq into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(DEV): setup.cfg pyproject.toml | $(PY)
	@echo "installing lmq and its tools into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(RUNTIME)

$(BENCH): setup.cfg pyproject.toml | $(PY)
	@echo "installing lmq and the queues it is measured against into $(VENV)"
	@$(PIP) --editable '.[bench]'
	@touch $@ $(RUNTIME)

$(PY):
	@found=; \
	for python in $(PYTHONS); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		found=$${found:-$$python}; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
		echo "making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV) && exit 0; \
	done; \
	if [ -n "$$found" ]; then \
		echo "$$found cannot make a virtual environment; on Debian and Ubuntu type: sudo apt install $$found-venv" >&2; \
	else \
		echo "lmq needs Python 3.11 or later, tried: $(PYTHONS); on Debian and Ubuntu type: sudo apt install python3 python3-venv" >&2; \
	fi; \
	exit 1
