# Targets make their own virtual environment; nothing is needed but Python 3.11 or later and make.
PYTHON ?= python3
BIN := .venv/bin
# Tests start some hundred interpreters: whatever the environment says, modules are compiled for the first one only.
unexport PYTHONDONTWRITEBYTECODE
AS_COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR)

.PHONY: demo test test-long compiled test-compiled test-containers check docs picture screenshots bench fresh fuzz soak dist tagged release example mutants
demo: .venv/runtime
	$(BIN)/goreprox demo

# Tests of processes come first and mostly wait: more workers than cores, each of which is given the next test as it ends.
# Coverage is traced where all that it asks for is reached: what is traced takes up to five times as long.
PYTEST := $(BIN)/pytest --dist load --maxschedchunk 1 -n
TRACED := tests/unit/brokers tests/unit/protocol

test: .venv/dev
	$(PYTEST) 12 -m 'not long' $(addprefix --ignore=,$(TRACED))
	$(PYTEST) 2 $(TRACED) --cov=goreprox/protocol --cov=brokers --cov-branch

# Chaos, sieges, load, limits, a minute's outage, every byte of a handshake, every step of an upgrade.
test-long: .venv/dev
	$(PYTEST) 6 -m long

# The same, with the modules compiled by mypyc: needs a C compiler and Python's headers.
compiled: build/compiled/.done

build/compiled/.done: hatch_build.py pyproject.toml $(shell find goreprox brokers -name '*.py') | .venv/runtime
	rm -rf build/compiled
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/pip install --quiet --no-deps --target build/compiled .
	touch $@

# Tests of that code as compiled; those marked `pure` replace or instrument parts of it, which only the sources allow.
test-compiled: compiled .venv/dev
	$(AS_COMPILED) $(BIN)/goreprox --version | grep -F '(compiled)'
	$(AS_COMPILED) $(PYTEST) 6 -o pythonpath= -m 'not pure' \
		tests/unit tests/sim tests/integration tests/fuzz $(addprefix tests/e2e/test_,chaos.py reload.py upgrade_in_place.py)

# For a minute, seeds that nobody has tried, beside the fixed ones of the tests.
fresh: .venv/dev
	SOAK_S=60 $(BIN)/python -m tests.soak chaos siege sim fuzz

# Mutants of one module, MODULE=goreprox/protocol/chunks.py, against its tests or TESTS; continues where it was interrupted.
mutants: .venv/mutants
	$(BIN)/python -m tests.mutants $(MODULE) $(TESTS)

# In hosts of their own; starts a container engine where there is none (Debian, root).
test-containers: .venv/containers
	$(BIN)/python -m tests.containers

# A wheel and a source distribution in dist/; both install into an environment that has nothing else, and run there.
dist: .venv/dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	set -e; for file in $(CURDIR)/dist/*; do \
		$(PYTHON) -m venv --clear .venv/clean; \
		.venv/clean/bin/pip install --quiet "$$file"; \
		(cd / && $(CURDIR)/.venv/clean/bin/goreprox demo --size 16 --cuts 1 </dev/null); \
		test -f .venv/clean/share/doc/goreprox/docs/configuration.md; \
		test -f .venv/clean/lib/python3*/site-packages/goreprox/monitor/static/views/overview.js; \
	done

# What `make dist` makes of a commit with a tag, to the package index: deploy/publish.md.
release: tagged dist
	$(BIN)/twine upload dist/*

tagged:
	@git describe --exact-match --tags --match 'v*' && test -z "$$(git status --porcelain)" || \
		{ echo 'check out a commit with a tag such as v1.2.3, and nothing else' >&2; exit 1; }

# The file of all options, from their declarations.
example: .venv/dev
	$(BIN)/python -m tests.unit.test_example_file >deploy/goreprox.toml

# The site, in build/site. Every warning is an error, and so is every link to a page, file or heading that is not there.
docs: .venv/docs
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -c docs . build/site
	cp build/site/README.html build/site/index.html

# The moving picture of the README, from a run of the demo.
picture: .venv/docs
	$(BIN)/python -m benchmarks.picture >docs/demo.svg.new
	mv docs/demo.svg.new docs/demo.svg

# The pictures of docs/dashboard.md, by Debian's Chromium, from processes that run for two minutes.
screenshots: .venv/dev
	$(BIN)/python -m benchmarks.screenshots

check: .venv/dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# FUZZ_S and SOAK_S are seconds. Fuzzing needs atheris, whose wheels are for Linux on x86-64; without it soak leaves it out.
fuzz: .venv/dev
	$(BIN)/python -m tests.fuzz --seconds $${FUZZ_S:-600}

soak: .venv/dev
	SOAK_S=$${SOAK_S:-600} $(BIN)/python -m tests.soak

# QUICK=1: two minutes. COMPILED=1: as compiled. ARGS: options of `python -m benchmarks --help`, such as ARGS='--peers DIR'
bench: .venv/bench $(if $(COMPILED),compiled)
	$(if $(COMPILED),$(AS_COMPILED)) $(BIN)/python -m benchmarks $(if $(QUICK),--quick,--docs docs) $(ARGS)

.venv/runtime: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/bench .venv/dev .venv/docs .venv/dist: .venv/%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@ .venv/runtime

.venv/containers .venv/mutants: .venv/%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev,$*]'
	touch $@ .venv/dev .venv/runtime
