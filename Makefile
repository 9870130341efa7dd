# make local        set everything up and run a whole cluster on this machine (ARGS="--json --headless")
# make test         set everything up and run the tests (ARGS="-k config")
# make lint         ruff and mypy
# make bench        what a packet, a handshake, a rekey, a migration, a commit, a restart and a drain cost
#                   (docs/benchmarks.md; ARGS="--only aes256gcm16" for some packets alone, bench-gmn and
#                   bench-migration for the rest)
# make bench-peers  Protego beside strongSwan's ESP in user space: bits per second of CPU (as root; strongSwan)
# make pictures     draw what these have measured, into docs/pictures
# make acceptance   migrations under a real strongSwan's traffic, held against the figures (as root, at rest)
# make strongswan-6  a peer for some of the tests, from Debian 13 into build/ (nothing is installed)
# make binary       the command as one executable, dist/protego, that needs no Python
# make fuzz         hunt for inputs that break a parser (ARGS="ike 600": that target, so many seconds)
# make worlds       hunt for seeds by which a simulated gateway breaks a promise (ARGS=600: so many seconds)
# make completions  write completions/ anew
# make clean        remove what these made
#
# Needs Python 3.11 or later; name another one with  make PYTHON=python3.13 local

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
FIGURES := build/figures
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.DEFAULT_GOAL := local
.DELETE_ON_ERROR:
.PHONY: local test lint bench bench-gmn bench-migration bench-peers pictures acceptance strongswan-6 binary fuzz worlds \
  completions clean

local: $(VENV)/.installed
	@$(BIN)/protego local $(ARGS)

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.installed | $(FIGURES)
	@failed=; \
	$(BIN)/python -m benchmarks $(or $(ARGS),--json $(FIGURES)/packets.json) || failed=1; \
	$(if $(ARGS),,$(MAKE) --no-print-directory bench-gmn || failed=1;) \
	$(if $(ARGS),,$(MAKE) --no-print-directory bench-migration || failed=1;) \
	test -z "$$failed"

bench-gmn: $(VENV)/.installed
	@for part in control restart drain; do $(BIN)/python -m benchmarks.$$part || exit; done

bench-migration: $(VENV)/.installed | $(FIGURES)
	@$(BIN)/python -m benchmarks.migration $(or $(ARGS),--json $(FIGURES)/migration.json)

bench-peers: $(VENV)/.installed | $(FIGURES)
	@$(BIN)/python -m benchmarks.peers $(or $(ARGS),--json $(FIGURES)/peers.json)

pictures: $(VENV)/.installed-plot
	@$(BIN)/python -m benchmarks.pictures $(FIGURES) docs/pictures

$(FIGURES):
	@mkdir -p $@

acceptance: $(VENV)/.installed-test
	@PROTEGO_ACCEPTANCE=1 $(BIN)/python -m pytest tests/real/test_strongswan.py -k "migrates or rekeys" -s $(ARGS)

strongswan-6:
	@tests/support/strongswan6.sh build/strongswan-6

binary: $(VENV)/.installed-binary
	@$(BIN)/pyinstaller --noconfirm --clean --log-level ERROR --distpath dist --workpath build/binary packaging/protego.spec
	@ls -l dist/protego

fuzz: $(VENV)/.installed-fuzz
	@$(BIN)/python -m tests.fuzz.hunt $(ARGS)

worlds: $(VENV)/.installed-test
	@$(BIN)/python -m tests.worlds --hunt $(or $(ARGS),60)

completions: $(VENV)/.installed
	@for shell in bash zsh fish; do \
	  _PROTEGO_COMPLETE=source_$$shell $(BIN)/protego > completions/protego.$$shell || exit; \
	done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than pyproject.toml: a second run installs nothing. The package is installed editable,
# so the code is always that of this directory.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing protego into $(VENV)"
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing protego and its tests' requirements into $(VENV)"
	@$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing protego and its developers' tools into $(VENV)"
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-binary $(VENV)/.installed-fuzz $(VENV)/.installed-plot: $(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing protego and what 'make $*' needs into $(VENV)"
	@$(INSTALL) '.[$*]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Protego needs Python 3.11 or later, and '$(PYTHON)' is not: name one with  make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu:  apt install python3-venv" >&2; \
	  exit 1; }
