# make demo   compile a network for this machine and a Raspberry Pi 4, and run both (the Pi emulated)
# make test   all tests; `make lint types wheel` are the other checks of .ci/run
#
# Everything is installed into .venv; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: all demo test lint types wheel cross-tools clean distclean

all: lint types wheel test

demo: $(VENV)/.installed
	-@scripts/install-cross-tools.sh aarch64
	@mkdir -p build
	$(BIN)/python examples/demo.py --output build/mnist-binary.tvmq

# One thread for numpy's products: there is a process of tests on every core already.
test: $(VENV)/.tools $(VENV)/.torch cross-tools
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --dist worksteal --durations 25

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tools
	$(BIN)/mypy

wheel: $(VENV)/.tools
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation .

cross-tools:
	@scripts/install-cross-tools.sh aarch64 armhf sshd simulate

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "tvmq needs Python 3.10 or later; choose one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.torch: $(VENV)/.installed
	$(PIP) -e '.[torch]'
	touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tvmq tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
