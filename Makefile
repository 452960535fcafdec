# Two commands matter: `make book` and `make test`. Both make what they need; `make help` lists the rest.
# Needs python3 (3.10 or newer, with venv) and make; no Node, no GPU, no account, no data set.

PYTHON ?= python3
UV     ?= uv
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
PORT   ?= 8000
NOTEBOOKS = _build/.notebooks
NEWEST  = _build/newest
NEWEST_TESTS = pytest pytest-timeout hypothesis pyaupro beautifulsoup4 markdown-it-py nbformat

# The chapters run inside book/, so a relative data folder has to be made absolute here.
ifneq ($(strip $(SSAE_MVTEC_ROOT)),)
override SSAE_MVTEC_ROOT := $(abspath $(SSAE_MVTEC_ROOT))
export SSAE_MVTEC_ROOT
endif

# One way to run on every machine: the kernel of this environment and no user packages.
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_PLATFORM_DIRS := 1
export PYTHONNOUSERSITE := 1
export PYTHONHASHSEED := 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help book test quick notebooks serve pdf lighthouse newest lint lock clean distclean

help:
	@echo "make book       environment, locked packages, every chapter executed: _build/html/index.html"
	@echo "make test       everything above, then the whole test suite"
	@echo "make quick      the tests that take under five seconds each"
	@echo "make serve      the built book on http://localhost:$(PORT)"
	@echo "make pdf        the whole book as _build/book.pdf (needs Chromium)"
	@echo "make lighthouse Lighthouse on five pages of the built book (needs Chromium and Node)"
	@echo "make newest     the quick tests of the package beside the newest torch"
	@echo "make notebooks  the .ipynb beside each chapter, made from its .md"
	@echo "make lint       ruff and mypy"
	@echo "make lock       requirements.lock anew from pyproject.toml (needs uv)"
	@echo "make clean      remove what the build made; make distclean removes the environment too"

# The environment is complete when the stamp is there: an interrupted installation starts again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12 book" >&2; exit 1; }
	@test ! -d $(VENV)/conda-meta || { echo "$(VENV) is a conda environment and older than what the book needs: \
	  conda env update --file environment.yml, then touch $@" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-build-isolation --no-deps --editable .
	@touch $@

# A page with a warning would be taken as read the next time, and the warning be gone: so all are read again.
book: $(NOTEBOOKS)
	$(BIN)/jupyter-book build book --config _config.yml --toc "$(CURDIR)/_toc.yml" --path-output . -W --keep-going \
	  || { rm -rf _build/.doctrees; exit 1; }

notebooks: $(READY)
	@PYTHONPATH=book/_ext $(BIN)/python -m ssae_book.notebooks
	@mkdir -p _build && touch $(NOTEBOOKS)

$(NOTEBOOKS): $(READY) _config.yml $(wildcard book/*.md book/*.ipynb book/*.bib ssae/*.py book/_ext/ssae_book/*.py)
	@$(MAKE) --no-print-directory notebooks

# Side by side, a file of tests in each process; what has to be alone comes after.
test: book
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not alone"
	$(BIN)/python -m pytest -m alone

quick: $(READY)
	$(BIN)/python -m pytest -m "not slow and not browser" --ignore=tests/test_book.py

serve: book
	$(BIN)/python -m http.server --directory _build/html $(PORT)

pdf: book
	PYTHONPATH=book/_ext $(BIN)/python -m ssae_book.pdf

lighthouse: book
	PYTHONPATH=book/_ext $(BIN)/python -m ssae_book.lighthouse --phone

# As in a Colab: the newest torch is there, and installing the package must leave it as it is. Without the book.
newest:
	rm -rf $(NEWEST) && mkdir -p _build && $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet torch torchvision numpy
	$(NEWEST)/bin/pip freeze | grep -E '^(torch|torchvision|numpy)==' > $(NEWEST)/before.txt
	$(NEWEST)/bin/pip install --quiet . $(NEWEST_TESTS)
	$(NEWEST)/bin/pip freeze | grep -E '^(torch|torchvision|numpy)==' > $(NEWEST)/after.txt
	diff $(NEWEST)/before.txt $(NEWEST)/after.txt
	$(NEWEST)/bin/python -m pytest -m "not slow and not browser" \
	  $(foreach name,book project accessibility pdf pages,--ignore=tests/test_$(name).py)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Maintainers only. The header keeps the file free of machine-specific command lines.
lock:
	{ echo "# Every package of the book and its tests, pinned for Python 3.10 and newer. Made by: make lock"; \
	  $(UV) pip compile pyproject.toml --extra book --extra test --universal --python-version 3.10 \
	    --no-header --no-annotate --quiet; } > requirements.lock.new || { rm -f requirements.lock.new; exit 1; }
	mv requirements.lock.new requirements.lock

clean:
	rm -rf _build build book/_build book/_generated .pytest_cache .mypy_cache .ruff_cache

distclean: clean
	rm -rf $(VENV) ssae.egg-info web/node_modules .hypothesis
