# The two main commands are `make demo` and `make test`. Both install what they need below .stack/ and nowhere else.
#   make demo STACK=docker    the demo on docker/compose.yaml
#   make test TESTS=tests/unit/tokens ARGS='-k states'
#   make check                lint, types and unit tests: a minute and a half, without Slurm and CouchDB

STACK  ?= native
TESTS  ?=
ARGS   ?=
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
            $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$python; break; }; done)
VENV   := .stack/airflow/bin

# What may differ between the site in containers and the native one: logins and host keys, the check of a site, pilots and their end;
# without the tests that mainly wait for a time-out.
DOCKER_TESTS := $(addprefix tests/integration/,cli/test_check.py hooks/test_ssh.py operators/pilots/test_cancel.py)

# Strict: a warning, such as a broken link or reference, fails. Links to other sites are not followed.
SPHINX := $(VENV)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs .stack/docs

unexport PYTHONDONTWRITEBYTECODE
.PHONY: demo test check chaos docker ondocker bench compat lint format docs dist diagrams screenshots install pins clean python

demo: python
	@exec $(PYTHON) -m stack.demo --stack $(STACK)

# In parallel: most tests mainly wait, for real servers; the Airflows of the end-to-end tests need CPU, so only two of those run at once.
# ARGS=--all also tests an embedded server that has not changed.
test: install lint
ifeq ($(strip $(TESTS)),)
	$(SPHINX)
	@$(PYTHON) -m stack.page test
	$(VENV)/pytest -n 4 --dist loadfile tests/unit tests/model tests/integration $(ARGS)
	$(VENV)/pytest -n 2 --dist loadfile tests/e2e $(ARGS)
else
	$(VENV)/pytest $(TESTS) $(ARGS)
endif

check: lint
	@$(PYTHON) -m stack.page test
	$(VENV)/pytest tests/unit $(ARGS)

# Kills, stops and disconnects the real parts while pilots work, and prints figures at the end. With PICAS_SOAK_SECONDS=180 the soak
# takes three minutes instead of ten. ARGS='--rounds=12 --seed=1' runs random rounds of faults instead, the first with this seed.
chaos: install
	$(VENV)/pytest -n 3 --dist loadfile tests/chaos $(ARGS)

# The demo and a share of the integration tests on docker/compose.yaml. Where no Docker engine answers, it makes one for that time, with
# stand-ins for the images that docker/ starts from, which needs root and Debian 12.
docker: python
	@$(PYTHON) -m stack.install airflow picas page
	@$(PYTHON) -m stack.engine $(MAKE) --no-print-directory ondocker

ondocker: python
	@$(PYTHON) -m stack.demo --stack docker </dev/null
	$(VENV)/pytest $(DOCKER_TESTS) -k 'not times_out and not stays_away' $(ARGS)

# Uses the CouchDB at PICAS_TEST_COUCHDB_URL, else the embedded one. ARGS=--keep rewrites benchmarks/results.*
bench: install
	$(VENV)/python -m benchmarks $(ARGS)

# Tests the provider on other versions of Airflow and Python, if they are found. ARGS='-t oldest newest' selects these pairs.
compat: install
	$(VENV)/python -m nox $(ARGS)

lint: python
	@$(PYTHON) -m stack.install airflow page
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports --no-logo
	@$(PYTHON) -m stack.page lint

format:
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

install: python
	@$(PYTHON) -m stack.install

# The documentation site.
docs: python
	@$(PYTHON) -m stack.install airflow
	$(SPHINX)
	@echo "file://$(CURDIR)/.stack/docs/index.html"

# The wheel and the sdist of the last commit in dist/: built twice, with the same bytes, and checked as PyPI checks them.
dist: install
	$(VENV)/python -m stack.dist build

# Draws docs/images/states.svg and the tables of docs/explanation/lifecycle.md from the tables of states and transitions.
diagrams: python
	@$(PYTHON) -m stack.install airflow
	$(VENV)/python docs/draw_states.py

# Takes the pictures of the page in docs/images, of runs on the demo's stack. ARGS=stages takes those of the graph of stages alone.
screenshots: install
	$(VENV)/python -m stack.screenshots $(ARGS)

# Pins newer versions for the stack. Afterwards run the tests and compat, and commit the files.
pins:
	@$(PYTHON) -m stack.install --pins

clean: python
	@$(PYTHON) -m stack.install --clean

python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found (tried python3, python3.13, python3.12, python3.11)." \
	  "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
