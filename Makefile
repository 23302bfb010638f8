# Every target does its own set-up, and costs nothing for what is set up already.
# What there is to do is done by tools/toolchain/toolchain.py; this file only names it.

STACK ?= swarm
ARGS ?=

SHELL := /bin/sh
TOOLCHAIN := tools/toolchain/python tools/toolchain/toolchain.py
BIN := .venv/bin
# How many of how many, so that one who waits sees it go on.
# By file: a fleet of booted VMs is made once for a file (docs/GOTCHAS.md: groups are not kept).
# In the order that tests/conftest.py gives them: by itself pytest-xdist begins with the files of
# the most tests, and those of the few that boot guests are left for the end.
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
	-o console_output_style=count

.DEFAULT_GOAL := help
.PHONY: help preview up lab lab-status lab-down test check bench campaign venv toolchain artifacts requirements clean _dev _lint
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 22
	@echo "  STACK=$(STACK) names the stack, ARGS='…' is passed to Pulumi or pytest"

preview: artifacts ## plan the fleet and check it against the policies; needs no Google account
	@$(TOOLCHAIN) venv && $(TOOLCHAIN) preview "$(STACK)" $(ARGS)

up: artifacts ## make the fleet so (asks first; PILOT_FLEET_YES=1 where there is no terminal)
	@$(TOOLCHAIN) venv && $(TOOLCHAIN) up "$(STACK)" $(ARGS)

lab: ## the whole fleet on this machine: a cloud, VMs, agents (lab/ says how)
	@$(TOOLCHAIN) venv && $(BIN)/python -m lab up

lab-status: ## what the lab has and does
	@$(TOOLCHAIN) venv && $(BIN)/python -m lab status

lab-down: ## end the lab and leave nothing behind
	@$(TOOLCHAIN) venv && $(BIN)/python -m lab down

test: _lint toolchain artifacts ## every check and every test, those with the real engine too
	@echo "· tests, those with the real engine and real programs too (minutes)"
	@$(PYTEST) --durations=10 $(ARGS)

check: _lint ## linters, types and the tests that are quick: a minute
	@echo "· tests"
	@$(PYTEST) -q -m "not engine" $(ARGS)

bench: _dev toolchain artifacts ## measure plans, units, starts and a VM of 4,500 agents (root; long)
	@echo "· what a plan costs, for 4 VMs and for 101"
	@$(BIN)/python -m tools.bench.preview
	@echo "· what it costs that a plan asks Google first"
	@$(BIN)/python -m tools.bench.refresh
	@$(BIN)/python -m tools.bench.status
	@echo "· what each directive of the agents' unit costs"
	@$(BIN)/python -m tools.bench.units
	@echo "· how fast agents start, and what a VM full of them costs"
	@$(BIN)/python -m tools.bench.scale $(ARGS)

campaign: _dev toolchain artifacts ## the acceptance rows with full counts; resumable, 110 minutes at most (root)
	@$(BIN)/python -m tests.vm.campaign $(ARGS)

venv: ## set up .venv with the pinned requirements
	@$(TOOLCHAIN) venv

toolchain: ## have a Pulumi: the installed one, or one built from source (minutes, once)
	@$(TOOLCHAIN) ensure

artifacts: ## fetch pilot-daemon into artifacts/
	@$(TOOLCHAIN) artifacts

requirements: ## pin requirements*.in again, with hashes
	@tools/toolchain/pin-requirements

clean: ## remove .venv and caches; keeps .state/ (your state) and artifacts/
	@# The guests of a lab ask for their metadata through programs in .venv.
	@[ ! -e .lab/driver ] || { echo "a lab is here, and runs from .venv: \`make lab-down\` first" >&2; exit 1; }
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

_dev:
	@$(TOOLCHAIN) venv --dev

_lint: _dev
	@echo "· ruff, mypy, shellcheck"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .
	@git ls-files -z -co --exclude-standard | tools/toolchain/shell-files | xargs -0r $(BIN)/shellcheck
