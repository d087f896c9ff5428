PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test docs coverage lint types contracts calibrate fingerprints release-notes clean

install: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install  ## the main job on the first 50 prompts: erase, attack, judge, tabulate
	$(BIN)/bench run --method none --method p-esd --attack none --attack unlearndiff --task nudity --limit 50

test: install  ## the whole test suite
	$(BIN)/python -m pytest -q -n 2

docs: install  ## the documentation, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

coverage: install  ## the same, and which lines no test runs
	$(BIN)/python -m pytest -q -n 2 --cov --cov-report term:skip-covered

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

# The grid for the emoji world's defaults, on the -calibration sets; its docstring says what was run.
calibrate: install
	$(BIN)/python -m bench.emoji.recipe.calibrate --results results/local/calibration

# Which sources of plug-ins are released; before a commit that changes one.
fingerprints: install
	$(BIN)/python -m bench.plugins.fingerprint

release-notes:  ## the newest section of CHANGELOG.md
	@awk '/^## /{n++} n==1' CHANGELOG.md

clean:
	rm -rf .venv build *.egg-info
