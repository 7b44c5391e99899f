# Two commands: `make quickstart` and `make test`. Each builds .venv first, with pip's own settings (index, proxy, cache) as they are.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: env quickstart test check slow faults browser gpu clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf_shrink needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

quickstart: env
	HF_HUB_OFFLINE=1 $(BIN)/hf-shrink run recipes/quickstart.yaml

test: env
	$(BIN)/python -m pytest --numprocesses 2

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lm-eval]'
	$(BIN)/python -m pytest --numprocesses 2 -m slow

faults: env
	$(BIN)/python -m pytest -m faults -s tests/faults

browser: env
	$(BIN)/python -m pytest -m browser -s tests/browser

gpu: env
	$(BIN)/python -m pytest -m gpu -rs tests/gpu

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
