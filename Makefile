PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test docs generated picture coverage lint types contracts calibrate fingerprints release-notes clean

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
	@echo "build/site/index.html; with search: python3 -m http.server --directory build/site"

generated: install  ## what README and docs say that commands print; one runs a model: a minute or more
	$(BIN)/python docs/generated.py

# The pictures of README and docs, from the reference records; erases and draws what is not in the cache.
picture: install
	$(BIN)/bench figure examples --results results/reference --task van-gogh --method p-esd \
	    --attack unlearndiff --limit 4 --out docs/examples.png
	$(BIN)/bench figure budget --results results/reference --task nudity --method esd --method p-esd \
	    --out docs/budget.png
	$(BIN)/bench leaderboard --results results/reference --out build/leaderboard
	$(BIN)/python docs/screenshot.py build/leaderboard/index.html docs/leaderboard.png

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
