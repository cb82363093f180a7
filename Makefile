# Each target does its own set-up: a virtual environment in .venv, filled under constraints.txt.
PYTHON ?= python3
BUNDLE ?= runs/demo/bundle
BIN := .venv/bin
STAMP := .venv/installed
EXTRAS := cpu,serve,train,dev

.PHONY: help setup demo test check serve lock clean
help:
	@echo "make demo     train, export, serve and score on this machine, with two commands' worth of typing less"
	@echo "make test     the whole test suite"
	@echo "make check    format, lint, types, import arrows"
	@echo "make serve    serve $(BUNDLE) on http://127.0.0.1:8000"
	@echo "make lock     make constraints.txt again from pyproject.toml"

setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(STAMP)

demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/reward-train demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict service
	$(BIN)/lint-imports

serve: $(STAMP)
	$(BIN)/reward-serve run $(BUNDLE)

lock: $(STAMP)
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --upgrade -o constraints.txt

clean:
	rm -rf .venv runs
