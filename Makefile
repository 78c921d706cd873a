# `make help` lists the commands. Each does the set-up that it needs.

PYTHON ?= python3
# published: tables from the published records; quick: everything live on the embedded digits, in minutes
PROFILE ?= published
# for test-torch: the oldest that pyproject.toml allows
TORCH ?= 2.6.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTED := $(VENV)/.tested

NOTEBOOKS := $(wildcard notebooks/*.ipynb)
LIVE := book/executed/records
EXECUTED := $(patsubst notebooks/%,book/executed/%,$(NOTEBOOKS))
PACKAGE := $(shell find convopt -name '*.py' -o -name '*.json')
RECORDS := $(wildcard book/records/*)
PAGES := $(wildcard book/*.md book/*.yml book/*.bib book/_static/* book/extensions/*.py book/extra/*/*)
SOURCES := $(PACKAGE) $(NOTEBOOKS) $(RECORDS) $(PAGES) $(wildcard tests/*.py tests/*.json benchmarks/*.py templates/* *.md *.toml *.txt *.yml *.cff \
	.ci/run .pre-commit-config.yaml .devcontainer/* .github/workflows/* Makefile)
TORCH_VENV := .venv-torch-$(TORCH)
# The tests of the optimizers and the theory: all that import neither the experiments nor a trainer.
TORCH_TESTS = $(shell grep -LE '^(from|import) (accelerate|conftest|convopt\.(cli|lab)|lightning|skorch|transformers)\b' \
	tests/test_*.py)
HTML := book/_build/html/index.html
SINGLE := book/_build/singlehtml/index.html
PDF := book/_build/convopt.pdf
MATHJAX := book/extra/mathjax/tex-svg.js

MAKEFLAGS += --jobs=2  # two notebooks at a time

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Many containers set it. Then every process would compile torch and pandas anew: twice the time of each command.
unexport PYTHONDONTWRITEBYTECODE
# Of two notebooks at a time, each with a thread per core, most of the time goes into waiting for each other.
$(EXECUTED): export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help setup lab book figures serve pdf publish-check reproduce test retest test-all test-torch lint clean FORCE
.DELETE_ON_ERROR:

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "make %-13s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with the pinned versions

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv --clear $(VENV)
	# Python compiles what it imports; to compile all of it takes longer than to install it.
	$(BIN)/pip install --no-compile --constraint constraints.txt --editable '.[lab,test]'
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name 'Python 3 (convopt)'
	touch $@

lab: setup  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=. notebooks/01-idea.ipynb

book: $(HTML)  ## build the report (PROFILE=quick: all of it live on the embedded digits)
	@echo "The book is at $(HTML)"

$(MATHJAX): $(READY)
	mkdir -p $(@D)
	cp $(VENV)/lib/python*/site-packages/sphinx-mathjax-offline/static/mathjax/$(@F) $@

$(HTML): $(EXECUTED) $(PAGES) $(RECORDS) $(MATHJAX)
	rm -rf $(@D)/_images  # of earlier builds, under other names
	$(BIN)/jupyter-book build book --all --nitpick --warningiserror --keep-going
	find $(@D) -name '*.map' -delete  # of the theme's scripts, for its developers
	cp $(NOTEBOOKS) $(@D)/_sources/executed/  # to download: without outputs, which were a quarter of the book
	touch $@

book/executed/%.ipynb: notebooks/%.ipynb $(PACKAGE) $(RECORDS) book/executed/.profile $(READY) | $(LIVE)
	$(BIN)/convopt notebooks $* --profile $(PROFILE) $(if $(filter quick,$(PROFILE)),--store $(LIVE)) --output book/executed

# What the notebooks of a quick build share. It is live: when the package changes, it goes.
$(LIVE): $(PACKAGE) book/executed/.profile
	rm -rf $@
	mkdir -p $@

# Changes only when the profile does, so that switching it executes the notebooks again.
book/executed/.profile: FORCE
	@mkdir -p book/executed
	@echo '$(PROFILE)' | cmp -s - $@ || echo '$(PROFILE)' > $@

serve: book  ## build the report and serve it on http://localhost:8000
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(dir $(HTML))

pdf: $(READY)  ## print the report as one PDF, with Chromium
	$(BIN)/python -m convopt.lab.printing  # better now than after the build
	$(MAKE) $(PDF)
	@echo "The PDF is at $(PDF)"

$(PDF): $(HTML)
	$(BIN)/jupyter-book build book --builder singlehtml --nitpick --warningiserror --keep-going
	$(BIN)/python -m convopt.lab.printing $(SINGLE) $@

figures: $(READY)  ## draw the README's figures anew, one of them from the published records
	$(BIN)/python -m convopt.lab.finding book/_static
	$(BIN)/python -m convopt.lab.valley book/_static

publish-check: book  ## build the report as GitHub Pages would get it, and check it in a browser
	$(BIN)/pytest -n auto -m browser -rs

reproduce: $(READY)  ## train all published runs anew (many hours; goes on where it stopped), print the differences
	$(BIN)/convopt reproduce --store runs/reproduced

test: $(TESTED)  ## run the tests, except the slow ones, if anything has changed since they passed
	@echo "The tests pass on the files as they are. (make retest runs them again.)"

$(TESTED): $(READY) $(SOURCES)
	$(BIN)/pytest -n auto --dist worksteal
	touch $@

retest:  ## run the tests whether or not anything has changed
	rm -f $(TESTED)
	$(MAKE) test

test-all: $(READY)  ## run all tests
	$(BIN)/pytest -n auto --dist worksteal -m ''

test-torch: $(TORCH_VENV)/.ready  ## test the optimizers and the theory with another torch (TORCH=2.6.0), in a .venv of its own
	$(TORCH_VENV)/bin/python -m pytest -n auto -rfEs $(TORCH_TESTS)

# Each torch brings its own sympy. Installing the package makes pip refuse a torch that pyproject.toml does not allow.
$(TORCH_VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	grep -vE '^(sympy|torch|torchvision)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/pip install --constraint $(@D)/constraints.txt torch==$(TORCH) torchvision --editable . \
		expecttest hypothesis numpy pytest pytest-xdist pytorch_optimizer schedulefree scikit-learn scipy
	touch $@

lint: $(READY)  ## check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:  ## remove what was built, but not .venv, runs or data
	rm -rf book/_build book/executed .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
