# `make demo` and `make test` each set up .venv by themselves; a second run installs nothing.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt
# pyright's wrapper would otherwise ask at each run whether there is a newer pyright.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: demo test check clean

demo: .venv/.demo ## train, prune, recover and measure a small network
	.venv/bin/prunus run digits

test: .venv/.test ## tests, laws and doctests
	.venv/bin/python -m pytest

check: .venv/.check ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist

# pip is the last thing that venv writes, so a broken set-up is begun again.
.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) -e '.[demo]'
	@touch $@

# --no-deps: torchvision would bring the CUDA build of torch; tests/vision.py makes it run without.
.venv/.test: .venv/.demo
	$(PIP) -e '.[test]'
	$(PIP) --no-deps torchvision
	$(PIP) transformers
	@touch $@

.venv/.check: .venv/.test
	$(PIP) -e '.[dev]'
	@touch $@
