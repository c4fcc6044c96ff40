# `make demo`, `make test` and `make docs` each set up .venv by themselves; a second run installs nothing.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt
# pyright's wrapper would otherwise ask at each run whether there is a newer pyright.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: demo test check docs clean bench-coverage

demo: .venv/.demo ## train, prune, recover and measure a small network
	.venv/bin/prunus run digits

test: .venv/.test ## tests, laws and doctests
	.venv/bin/python -m pytest

check: .venv/.check ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# The last line: nothing that the site needs may come from a server, it is read from the disk too.
docs: .venv/.docs ## the site, into site/; a warning is an error
	.venv/bin/python docs/build.py
	.venv/bin/zensical build --clean --strict
	! grep -rnE '<(script|img|iframe)[^>]*src="?(https?:)?//|<link[^>]*href="?(https?:)?//' site --include='*.html'

# Hours on one core; a killed run goes on where it was. Torch-Pruning comes with the second tool, see benchmarks/README.md.
bench-coverage: .venv/.test ## which models can be pruned: every row, then docs/coverage.md
	$(PIP) diffusers
	.venv/bin/python benchmarks/coverage.py --resume
	.venv/bin/python benchmarks/coverage.py --into benchmarks/results/coverage.json --table docs/coverage.md

clean:
	rm -rf .venv .cache build site .pytest_cache .ruff_cache .hypothesis dist

# pip is the last thing that venv writes, so a broken set-up is begun again.
.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) -e '.[demo]'
	@touch $@

# --no-deps: torchvision would bring the CUDA build of torch; tests/vision.py makes it run without. Of
# axe-playwright-python we take axe-core alone, the checker of accessibility.
.venv/.test: .venv/.demo
	$(PIP) -e '.[test]'
	$(PIP) --no-deps torchvision
	$(PIP) --no-deps axe-playwright-python
	@touch $@

.venv/.check: .venv/.test
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) -e '.[docs]'
	@touch $@
