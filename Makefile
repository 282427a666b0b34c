# Two commands for a fresh machine: `make demo` and `make test`. Everything lives in .venv; nothing else is installed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Waiting threads of libgomp spin unless told otherwise; every process that imports torch is started with these.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-slow endurance fuzz gpu check install bench simulate chaos pictures format clean

demo: install
	$(BIN)/farm render examples/demo.yaml --store .longtake --out demo.mp4

test: install  # unit tests beside those that start Ray; ends with the ten slowest
	$(BIN)/python tests/side_by_side.py test

test-slow: install  # what takes minutes; a thousand simulated worlds in the gaps
	$(BIN)/python tests/side_by_side.py slow

endurance: install  # hours, by hand: ten thousand worlds, chaos, gangs that break
	$(BIN)/pytest -q -m endurance tests
	$(MAKE) chaos
	$(MAKE) chaos GANGS=1 ROUNDS=20

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_imports.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 is needed: PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pipelines.rife_setup
	touch $@

gpu: install  # everything that needs a GPU, under ten minutes; without one a rehearsal at tiny size
	$(BIN)/python tests/gpu/everything.py

fuzz: install  # by hand: 100,000 spoiled inputs of each kind, hours
	FUZZ=100000 $(BIN)/pytest -q -n 2 tests/fuzz

bench: install  # make bench NAME=overlap
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	PYTHONPATH=tests $(BIN)/python tests/bench/$(NAME).py

simulate: install  # the farm in virtual time: make simulate WORLDS=1000
	$(BIN)/python -m farm.worlds --worlds $(or $(WORLDS),100000)

chaos: install  # kill real processes: make chaos ROUNDS=5, make chaos GANGS=1 ROUNDS=20
	PYTHONPATH=.:tests:tests/bench $(BIN)/python tests/chaos.py --rounds $(or $(ROUNDS),60) $(if $(GANGS),--gangs)

pictures: install  # the README's
	$(BIN)/python docs/pictures.py

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
