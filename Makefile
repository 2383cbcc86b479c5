# Needs make, python3.11 and its venv module. Everything else goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STUDENT := emoji-student
DECODER := models/emoji-tiny-decoder
EXPORT := model_repository/$(STUDENT)/1/export.json

.PHONY: serve test check release clean

## serve: install, export the shipped student if needed, start Triton and the gateway
serve: $(VENV)/serve.stamp $(EXPORT)
	$(BIN)/cdm-serve --open

## test: install, then style, types and the test suite; what failed is run once more, alone
# (1 is pytest's word for that; a run that broke off has other numbers, and stays broken off)
test: $(VENV)/test.stamp check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder || \
	{ test $$? -eq 1 && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

## check: style and types
check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## release: sdist and wheel in dist/
release: $(VENV)/test.stamp
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info

$(EXPORT): models/$(STUDENT)/cdm.json $(DECODER)/config.json | $(VENV)/serve.stamp
	$(BIN)/cdm-export models/$(STUDENT) --decoder $(DECODER) --to onnx --out model_repository

$(VENV)/serve.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export]'
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
