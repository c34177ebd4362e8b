# `make help` lists what there is. Settings: PROFILE=mini, SET="section.key=value …", ONLY=04, DEVICES=1, PYTHON=python3.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PROFILE ?= mini
SET ?=
ONLY ?=
DEVICES ?= 1
PYTHON ?= python3

export PROFILE SET ONLY DEVICES PYTHON

# The active environment when it fits requirements.lock, else .venv, made when it is missing.
environment := python="$$("$$PYTHON" helpers/environment.py python)"

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-zA-Z0-9_%\/.-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' Makefile
	@echo '  settings: PROFILE=mini|smoke|paper  SET="section.key=value …"  ONLY=04  DEVICES=1  PYTHON=python3.12'

.PHONY: setup
setup: ## Make the environment: .venv from requirements.lock, unless one that fits is active
	@"$$PYTHON" helpers/environment.py setup

.PHONY: reproduce
reproduce: ## Run every notebook that is not up to date; write figures/ and appendix/
	@$(environment); exec "$$python" -m helpers.execution reproduce --profile "$$PROFILE" --set "$$SET" --only "$$ONLY"

.PHONY: collect
collect: ## Build the corpus alone, as in PROFILE=paper SET="corpus.domain=migraine"
	@$(environment); exec "$$python" -m helpers.execution collect --profile "$$PROFILE" --set "$$SET"

.PHONY: test
test: ## Lint, the notebooks in the smoke profile, and the tests (5 minutes at most on two cores)
	@$(environment)
	"$$python" -m ruff check --quiet .
	"$$python" -m ruff format --check --quiet .
	"$$python" -m helpers.execution reproduce --profile smoke
	exec "$$python" -m pytest -q -rs -n logical --maxprocesses 4 --dist loadfile

.PHONY: test-slow
test-slow: ## The grids that take long, such as kills at random moments
	@$(environment); exec "$$python" -m pytest -q -m slow

.PHONY: test-browser
test-browser: ## Notebook explore in a real browser against JupyterLab; takes its picture anew
	@$(environment); SCREENSHOT=notebooks/explore.png exec "$$python" -m pytest -q -rs -n0 -m browser

.PHONY: figures
figures: ## Redraw every figure of the profile from its saved table
	@$(environment); exec "$$python" -m helpers.figures --profile "$$PROFILE"

# Committed figures are always newer than nothing: asked for by name, a figure is always redrawn.
.PHONY: FORCE
figures/%.pdf: FORCE ## Redraw one figure, as in figures/mini/NAME.pdf
	@$(environment); exec "$$python" -m helpers.figures --profile "$(*D)" --only "$(*F)"

.PHONY: lab
lab: ## Open the notebooks in JupyterLab
	@$(environment); exec "$$python" -m helpers.kernel lab

.PHONY: train
train: ## Train the runs of notebook 02 alone, on DEVICES=1 processes, as in PROFILE=paper DEVICES=4
	@$(environment)
	several=(-m torch.distributed.run --standalone --nproc-per-node "$$DEVICES")
	[ "$$DEVICES" = 1 ] && several=()
	exec "$$python" "$${several[@]}" -m helpers.training --profile "$$PROFILE" --set "$$SET"

.PHONY: base-model
base-model: ## Train the embedded base model and the task model again (1 hour at most on two cores)
	@$(environment)
	"$$python" -m helpers.pretraining
	exec "$$python" -m helpers.task_model

.PHONY: plants
plants: ## Plant the knowledge of notebook 06, and edit it (90 minutes at most on two cores); goes on where it was stopped
	@$(environment)
	"$$python" -m helpers.plants
	exec "$$python" -m helpers.edits

.PHONY: leaderboard
leaderboard: ## Score every method on every plant again (1 hour at most on two cores); goes on where it was stopped
	@$(environment); exec "$$python" -m helpers.calibration

.PHONY: bench-sweep
bench-sweep: ## Time the patch sweep beside its peers (30 minutes at most); writes benchmarks/results/
	@$(environment); exec "$$python" -m benchmarks.sweep

.PHONY: bench
bench: bench-sweep ## All benchmarks: peers, memory, scaling, parsing, screening, training (1 hour at most on two idle cores)
	@$(environment)
	"$$python" -m benchmarks.memory
	"$$python" -m benchmarks.scaling
	"$$python" -m benchmarks.parsing
	"$$python" -m benchmarks.screening
	exec "$$python" -m benchmarks.training

.PHONY: clean
clean: ## Remove what was generated; never raw downloads, what explore saved, or what is committed
	@rm -rf build
	@for folder in data/*/; do \
	  [[ "$$folder" = data/@(embedded|explore)/ ]] || find "$$folder" -mindepth 1 -maxdepth 1 -not -name raw -exec rm -rf {} +; \
	done
	@find figures -mindepth 1 -maxdepth 1 -not -name mini -not -name explore -exec rm -rf {} +
	@find appendix -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
