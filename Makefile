# `make` alone prints what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install install-dev demo fashion-mnist chromium test test-fast test-oldest torture wheel docs lint format bench bench-gpu clean

help:
	@echo "make install      a virtual environment in .venv with dmvae and what the demo needs"
	@echo "make demo         Fashion-MNIST, three tokenizers and their generators, a table and a report (runs/demo)"
	@echo "make install-dev  what tests, linters and benchmarks need too"
	@echo "make test         the tests"
	@echo "make test-fast    those that take less than a second or two each: some minutes"
	@echo "make test-oldest  the tests with the oldest versions of torch, diffusers and the others that are allowed"
	@echo "make torture      kills, damage, hostile files: what is lost, hangs, or is used in silence; hours"
	@echo "make lint         formatting, lint and types; make format mends what can be mended"
	@echo "make docs         the documentation as a site in build/site; broken links are errors"
	@echo "make wheel        build the wheel and try it in a fresh environment"
	@echo "make bench        speed of every stage's step against the machine's peak, and of reading images"
	@echo "make bench-gpu    the same on a GPU, at the paper's sizes, beside what dmvae plan says"
	@echo "make clean        remove .venv, build and caches; runs stay"

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[demo]"
	touch $@

install-dev: $(BIN)/.installed-dev

$(BIN)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(BIN)/.installed

# Debian's package where it can be had without a question; elsewhere dmvae downloads the files itself.
fashion-mnist:
	@if [ ! -e /usr/share/datasets/fashion-mnist ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist) >/dev/null 2>&1 \
			|| echo "Debian's package dataset-fashion-mnist could not be installed; dmvae will try to download the data"; \
	fi

# The browser in which the page of `dmvae serve` is tested, on the same terms; without one that test is skipped.
chromium:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then \
		(apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 \
			|| echo "Debian's package chromium could not be installed; the test of the page in a browser is skipped"; \
	fi

demo: install fashion-mnist
	$(BIN)/dmvae run recipes/demo.yaml --processes 2

# Files of tests side by side, each in one thread: networks this small gain next to nothing from a second one. Two workers
# more than there are cores, as some tests wait for processes that they kill. What is compiled is kept, whatever the shell
# says: every worker would rewrite the assertions of all files anew. A test that ends its worker is given to the next one:
# without a limit, for ever.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 2)') --maxprocesses 5 --max-worker-restart 2 --dist loadfile --no-loadscope-reorder

test: install-dev
	$(PYTEST)

test-fast: install-dev
	$(PYTEST) -m "not slow"

# The oldest versions that pyproject.toml allows, in an environment of its own; PYTHON is 3.10 to 3.12, as NumPy 1.26 was built
# for no newer one. On Linux torch comes with CUDA, some gigabytes.
OLDEST = build/oldest/bin

test-oldest:
	$(PYTHON) -m venv build/oldest
	$(OLDEST)/pip install --quiet uv
	$(OLDEST)/uv pip install --python $(OLDEST)/python --resolution lowest-direct --editable ".[dev]"
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest

torture: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture

# Needs Python 3.11 or newer. `python -m http.server -d build/site` serves it; without a server the search is missing.
docs: install-dev
	$(BIN)/python docs/build.py

# In an environment of its own that sees this one's packages: what is tried is the wheel, not its dependencies.
wheel: install-dev
	$(BIN)/python -m benchmarks.wheel

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-dev
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.steps --compile
	$(BIN)/python -m benchmarks.steps --recipe recipes/cifar10.yaml
	$(BIN)/python -m benchmarks.published
	$(BIN)/python -m benchmarks.published --compile
	$(BIN)/python -m benchmarks.models --only S/1
	$(BIN)/python -m benchmarks.decoding

# With the core dependencies alone, in whatever environment PYTHON is: a machine with a GPU has its own torch.
bench-gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
