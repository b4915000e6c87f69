# Ballast's commands. `make repro` and `make test` are all a fresh machine needs (Python 3.11, git, make, pip).
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Used once, to create .venv. `command -v` is not enough: a version manager's shim can be there without the version.
PYTHON ?= $(shell python3.11 -c '' >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# What is installed; written last, so that a killed install leaves neither and the next `make` installs again.
INSTALLED := $(VENV)/.installed-lock
INSTALLED_TEST := $(VENV)/.installed-lock-test
INSTALLING := $(VENV)/.installing

# Nothing here reports home. MLflow knows DO_NOT_TRACK only as the word "true", which the others read as well.
export DO_NOT_TRACK := true
export ITERATIVE_DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# `make repro` reads DVC's output through a pipe: without this a stage's lines would come in blocks.
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'
	@echo
	@echo "  PYTHON=...                 the Python 3.11 that .venv is made with (now: $(PYTHON))"
	@echo "  BALLAST_INSTALLER=uv|pip   install with this one only (otherwise uv, then pip if uv fails)"
	@echo "  PIP_FIND_LINKS=FOLDER      where pip and uv find a CPU build of torch; unset, Linux gets the CUDA build"

# follow_champion only looks where the alias is: it runs every time and does not count as something done.
.PHONY: repro
repro: $(INSTALLED) ## install what is missing, then run every stage that is out of date
	@output=$$(mktemp); trap 'rm -f "$$output"' EXIT; \
	$(BIN)/dvc repro | tee -i "$$output"; \
	if ! grep -E "^(Running stage|Stage '.*' is cached)" "$$output" | grep -qv "'follow_champion'"; then echo 'nothing to do: every stage is up to date'; fi

# WHY, WHO and FORCE reach the shell as variables, never as text of the command: a reason may hold quotes.
.PHONY: promote rollback gate
promote: $(INSTALLED) ## make a version the champion: VERSION=3 WHY="..." [WHO="..."] [FORCE=1]
	@$(BIN)/python -m flows.promote "$${VERSION:-}" --why="$${WHY:-}" --who="$${WHO:-}" $(if $(filter 1,$(FORCE)),--force)

rollback: $(INSTALLED) ## back to the champion before this one: WHY="..." [WHO="..."]
	@$(BIN)/python -m flows.rollback --why="$${WHY:-}" --who="$${WHO:-}"

gate: $(INSTALLED) ## what the gate says of the candidate (exit code of make: 2 unless it passes)
	@$(BIN)/dvc repro compare > /dev/null
	@cat artifacts/report/gate.md
	@exit $$($(BIN)/python -c 'import json; print(json.load(open("artifacts/report/gate.json"))["exit_code"])')

# Prefect, MLflow and their workers on this machine: infra/README.md. BALLAST_PREFECT_PORT, BALLAST_MLFLOW_PORT: other ports.
.PHONY: up stack down worker deploy
up: $(INSTALLED) ## start Prefect, MLflow and workers here, or what of them does not run
	@$(BIN)/python -m infra.local_stack up

stack: $(INSTALLED) ## what of them runs
	@$(BIN)/python -m infra.local_stack status || true

down: $(INSTALLED) ## end them; histories, runs and models stay
	@$(BIN)/python -m infra.local_stack down

worker: $(INSTALLED) ## start the workers of a pool for servers elsewhere: POOL=gpu, with PREFECT_API_URL and MLFLOW_TRACKING_URI set
	@$(BIN)/python -m infra.local_stack worker "$(or $(POOL),gpu)"

deploy: $(INSTALLED) ## bring pools and deployments to the server at PREFECT_API_URL
	@$(BIN)/python -m flows.deployments

.PHONY: install
install: $(INSTALLED) ## only create .venv from requirements.lock

.PHONY: install-lm-eval
install-lm-eval: $(INSTALLED) ## add lm-evaluation-harness, for evaluation.lm_eval_tasks
	@infra/install_lock.sh $(BIN)/python requirements.lock requirements-lm-eval.lock

.PHONY: install-infra
install-infra: $(INSTALLED) ## add what servers and workers need: PostgreSQL, object store, auth, Docker and Kubernetes workers
	@infra/install_lock.sh $(BIN)/python requirements.lock requirements-infra.lock

.PHONY: test
test: $(INSTALLED_TEST) ## add what tests need, run pytest, a file in one process (ARGS="-k cache" for some)
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

.PHONY: lint lint-style lint-types lint-floors
lint: lint-style lint-types lint-floors ## ruff (rules and format), mypy, the floors of the import graph

lint-style: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(INSTALLED_TEST)
	$(BIN)/mypy

lint-floors: $(INSTALLED_TEST)
	$(BIN)/lint-imports --no-cache

# Exit code of `python -m infra.audit`: 1 vulnerable, 3 nobody could be asked (make itself ends with 2 for both).
.PHONY: audit
audit: $(BIN)/pip ## known vulnerabilities of what the lock files install (asks PyPI; AUDIT_SERVICE=osv: OSV)
	@$(BIN)/python -m infra.audit

.PHONY: dvc-deps
dvc-deps: $(INSTALLED_TEST) ## write each stage's imports into dvc.yaml
	$(BIN)/python -m infra.sync_dvc_deps

.PHONY: format
format: $(INSTALLED_TEST) ## let ruff repair and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run it where the CPU build of torch is found: the CUDA build would put its nvidia-* packages into everybody's lock.
# The old pins stay as long as pyproject.toml allows them: LOCK_ARGS="--upgrade" or "--upgrade-package NAME" moves them.
.PHONY: lock
lock: $(BIN)/pip ## resolve pyproject.toml into the two lock files anew
	@$(call compile_lock,requirements.lock,pyproject.toml)
	@$(call compile_lock,requirements-infra.lock,--group infra --constraint requirements.lock)
	@$(call compile_lock,requirements-test.lock,--group test --constraint requirements.lock --constraint requirements-infra.lock)
	@$(call compile_lock,requirements-lm-eval.lock,--group lm_eval --constraint requirements.lock)

# The old file's pins are uv's preferences, but for torch's: `2.13.0` there would mean just that file, and never `2.13.0+cpu`.
define compile_lock
touch $(1); trap 'rm -f $(1).new' EXIT; \
sed '/^torch==/d' $(1) > $(1).new; \
infra/install_lock.sh --uv $(BIN)/python pip compile --quiet --python $(BIN)/python $(2) --output-file $(1).new \
  --custom-compile-command "make lock" $(LOCK_ARGS) > /dev/null; \
if grep -nE '^(nvidia|cuda|triton)' $(1).new; then \
  echo "error: $(1) was resolved against torch's CUDA build; show pip a folder with the CPU build (PIP_FIND_LINKS)" >&2; exit 1; fi; \
sed -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' $(1).new > $(1); \
echo "wrote $(1): $$(grep -c == $(1)) packages"
endef

.PHONY: clean-venv
clean-venv: ## remove .venv (the stages' results stay)
	rm -rf $(VENV)

# A folder whose last install was cut short may hold half a package, and one without a pip is half a venv: both are made anew.
ifneq ($(wildcard $(INSTALLING)),)
.PHONY: $(BIN)/pip
endif
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: Ballast's lock is for Python 3.11, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "       Install Python 3.11, or name it: make $(or $(MAKECMDGOALS),repro) PYTHON=<path of a python3.11>" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "error: '$(PYTHON) -m venv' failed (above); on Debian and Ubuntu it needs the package python3.11-venv." >&2; exit 1; }

$(INSTALLED): requirements.lock | $(BIN)/pip
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: $(VENV) was made with $$($(BIN)/python --version), the lock is for Python 3.11; 'make clean-venv' removes it" >&2; exit 1; }
	@rm -f $(INSTALLED) $(INSTALLED_TEST); touch $(INSTALLING)
	@infra/install_lock.sh $(BIN)/python requirements.lock
	@touch $(INSTALLED); rm $(INSTALLING)

$(INSTALLED_TEST): requirements-test.lock $(INSTALLED)
	@rm -f $(INSTALLED) $(INSTALLED_TEST); touch $(INSTALLING)
	@infra/install_lock.sh $(BIN)/python requirements.lock requirements-test.lock
	@touch $(INSTALLED) $(INSTALLED_TEST); rm $(INSTALLING)
