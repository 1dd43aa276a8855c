# `make demo` and `make test` set up everything from a bare checkout; all they need is Python 3.10-3.13 with venv and pip.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One test process per core, a file of tests to each; one torch thread in each of them.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
export OMP_NUM_THREADS ?= 1
READY := $(VENV)/.ready

.PHONY: help demo test test-all test-oldest test-newest projects apps bench bench-full lint format types doctest docs wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      train, prune, export and run the digits example"
	@echo "make test      the tests without the slow ones"
	@echo "make test-all  every test"
	@echo "make test-oldest  the Lightning tests on the oldest Lightning, under both of its names"
	@echo "make test-newest  the tests without the slow ones on the newest versions that the metadata allow"
	@echo "make projects  real projects with pruning, an environment each; writes docs/projects.md (PROJECTS=darts for one)"
	@echo "make apps      the sample code for phones, compiled with today's Kotlin (needs Java) and, where it is, Swift"
	@echo "make bench     peers beside ours on digits and characters, against the results that were kept (bench-full: all)"
	@echo "make lint      ruff check and the formatter's check"
	@echo "make format    ruff's fixes and formatting"
	@echo "make types     pyright"
	@echo "make doctest   the examples in the docstrings"
	@echo "make docs      the documentation, warnings are errors (docs/_build/html)"
	@echo "make wheel     build the wheel, install it into an empty environment, import it"

$(READY): pyproject.toml constraints.txt
	@test ! -L $(VENV) || { echo "$(VENV) is a link, and what it links to would be emptied: take it away" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"lightning_prune is set up with Python 3.10 to 3.13, $(PYTHON) is {v[0]}.{v[1]}; name another one: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) comes without venv or ensurepip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python examples/digits.py

# Lightning's features under its other name, pytorch_lightning, whose classes are not the same; test-oldest runs all.
BOTH := $(addprefix tests/trainer/test_,packages.py callback.py fit.py first_forward.py averages.py guard.py baseline.py resume.py \
	sparsity_checkpoint.py mixin.py lightning_features.py shrink_while_training.py teaching.py)
ON_OLDEST := tests/trainer tests/guard tests/distillation tests/classes tests/checkpoints tests/run/test_resuming.py

test: $(READY)
	$(PYTEST) -m "not slow"
	LIGHTNING_PACKAGE=pytorch_lightning $(PYTEST) -m "not slow" $(BOTH)

test-all: $(READY)
	$(PYTEST)
	LIGHTNING_PACKAGE=pytorch_lightning $(PYTEST) $(BOTH)

# It lies over the environment of the tests, as those of the projects do. Old Lightning is deprecated by what it imports.
OLDEST := .venv-oldest
OLD_PYTEST := $(OLDEST)/bin/python -m pytest --numprocesses auto --dist loadfile -m "not slow" \
	-W ignore::DeprecationWarning -W ignore::FutureWarning $(ON_OLDEST)

test-oldest: $(OLDEST)/.ready
	$(OLD_PYTEST)
	LIGHTNING_PACKAGE=pytorch_lightning $(OLD_PYTEST)

$(OLDEST)/.ready: constraints-oldest.txt $(READY)
	$(BIN)/python -m venv --clear $(@D)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement constraints-oldest.txt
	@touch $@

# The newest of everything, torch too, without constraints.txt; `rm -r .venv-newest` asks for the newest again.
NEWEST := .venv-newest

test-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python -m pip list
	$(NEWEST)/bin/python -m pytest --numprocesses auto --dist loadfile -m "not slow"

$(NEWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --editable '.[all,dev]'
	@touch $@

# Each project lies over the environment of the tests: its own packages, at its own versions, come first on the path,
# and torch is installed once. --no-deps: the files name every package, and some pin an older torch or want torchvision's
# operators. darts and deeptab need Python 3.11.
PROJECTS ?= $(notdir $(patsubst %/requirements.txt,%,$(wildcard projects/*/requirements.txt)))
ENVS := projects/.envs

projects: $(PROJECTS:%=$(ENVS)/%/.ready)
	@for name in $(PROJECTS); do \
		PYTHONPATH=$(CURDIR) HF_HUB_OFFLINE=1 $(ENVS)/$$name/bin/python -m projects.$$name.fit || failed="$$failed $$name"; \
	done; $(BIN)/python -m projects.table; test -z "$$failed" || { echo "did not run:$$failed" >&2; exit 1; }

# Kotlin's compiler, which is in no other wheel; Java is not installed here (Debian: default-jdk-headless).
apps: .venv-apps/.ready
	.venv-apps/bin/python -m pytest tests/deploy/test_apps.py

.venv-apps/.ready: $(READY)
	$(BIN)/python -m venv --clear $(@D)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	$(@D)/bin/python -m pip install --quiet --no-deps kotlin-jupyter-kernel==0.19.0.944
	@touch $@

# The peers lie over the environment of the tests too; ninja and telemetry are asked for by NNCF and not used here.
BENCH := benchmarks/.env

bench: $(BENCH)/.ready
	PYTHONPATH=$(CURDIR) $(BENCH)/bin/python -m benchmarks.peers --check

bench-full: $(BENCH)/.ready
	PYTHONPATH=$(CURDIR) $(BENCH)/bin/python -m benchmarks.peers --seeds 3 --tasks digits letters characters
	PYTHONPATH=$(CURDIR) $(BENCH)/bin/python -m benchmarks.peers --page

$(BENCH)/.ready: benchmarks/requirements.txt $(READY)
	$(BIN)/python -m venv --clear $(@D)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

$(ENVS)/%/.ready: projects/%/requirements.txt $(READY)
	$(BIN)/python -m venv --clear $(@D)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

doctest: $(READY)
	$(BIN)/python -m pytest --doctest-modules lightning_prune

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel: $(READY)
	.ci/wheel $(BIN)/python

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) .venv-apps $(BENCH) $(ENVS) build dist docs/_build .pytest_cache .ruff_cache .hypothesis
