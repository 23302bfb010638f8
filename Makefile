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
.PHONY: lab lab-status lab-down preview up check test bench campaign requirements venv toolchain artifacts clean help _dev _lint
.NOTPARALLEL:

##@ Try it on this machine

lab: ## the whole fleet on this machine: a cloud, VMs, agents (lab/ says how)
	@$(TOOLCHAIN) venv && $(BIN)/python -m lab up

lab-status: ## what the lab has and does
	@$(TOOLCHAIN) venv && $(BIN)/python -m lab status

lab-down: ## end the lab and leave nothing behind
	@$(TOOLCHAIN) venv && $(BIN)/python -m lab down

##@ Run it on Google Compute Engine

preview: artifacts ## plan the fleet and check it against the policies; needs no Google account
	@$(TOOLCHAIN) venv && $(TOOLCHAIN) preview "$(STACK)" $(ARGS)

up: artifacts ## make the fleet so (asks first; PILOT_FLEET_YES=1 where there is no terminal)
	@$(TOOLCHAIN) venv && $(TOOLCHAIN) up "$(STACK)" $(ARGS)

##@ Work on it

check: _lint ## linters, types and the tests that are quick: a minute
	@echo "· tests"
	@$(PYTEST) -q -m "not engine" $(ARGS)

test: _lint toolchain artifacts ## every check and every test, those with the real engine too
	@echo "· tests, those with the real engine and real programs too (minutes)"
	@$(PYTEST) --durations=10 $(ARGS)

bench: _dev toolchain artifacts ## measure plans, units, starts and a VM of 4,500 agents (root; long)
	@echo "· what a plan costs, for 4 VMs and for 101"
	@$(BIN)/python -m tools.bench.preview
	@echo "· what it costs that a plan asks Google first"
	@$(BIN)/python -m tools.bench.refresh
	@$(BIN)/python -m tools.bench.status
	@echo "· what live costs beside watch"
	@$(BIN)/python -m tools.bench.live
	@echo "· what the help of pilot-fleet costs"
	@$(BIN)/python -m tools.bench.help_time
	@echo "· what each directive of the agents' unit costs"
	@$(BIN)/python -m tools.bench.units
	@echo "· how fast agents start, and what a VM full of them costs"
	@$(BIN)/python -m tools.bench.scale $(ARGS)

campaign: _dev toolchain artifacts ## the acceptance rows with full counts; resumable, 110 minutes at most (root)
	@$(BIN)/python -m tests.vm.campaign $(ARGS)

requirements: ## pin requirements*.in again, with hashes
	@tools/toolchain/pin-requirements

##@ Set-up, which every target does by itself

venv: ## set up .venv: the pinned requirements, and the command pilot-fleet
	@$(TOOLCHAIN) venv

toolchain: ## have a Pulumi: the installed one, its own release, or one built from source (minutes)
	@$(TOOLCHAIN) venv && $(TOOLCHAIN) ensure

artifacts: ## fetch pilot-daemon into artifacts/
	@$(TOOLCHAIN) artifacts

clean: ## remove .venv and caches; keeps .state/ (your state) and artifacts/
	@# The guests of a lab ask for their metadata through programs in .venv.
	@[ ! -e .lab/driver ] || { echo "a lab is here, and runs from .venv: \`make lab-down\` first" >&2; exit 1; }
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n -e 's/^##@ \(.*\)/\n\1/p' -e 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 22
	@echo
	@echo "  STACK=$(STACK) names the stack, ARGS='…' is passed to Pulumi or pytest"
	@echo "  .venv/bin/pilot-fleet --help lists the operator's commands (docs/RUNBOOK.md)"

_dev:
	@$(TOOLCHAIN) venv --dev

_lint: _dev
	@echo "· ruff, mypy, shellcheck"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .
	@git ls-files -z -co --exclude-standard | tools/toolchain/shell-files | xargs -0r $(BIN)/shellcheck
