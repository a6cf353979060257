# Two commands matter: `make run` and `make test`. Options go through ARGS: make run ARGS="--port 9000 --no-demo"
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
PIP_COMPILE := $(BIN)/python -m piptools compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
ARGS ?=
CLIENTS := mcpsite/tests/clients
UPSTREAMS := mcpsite/tests/upstreams
CONFORMANCE := bench/conformance
PARTS := test-mcpsite test-pages test-audit test-gateway test-tools

.PHONY: programs run test $(PARTS) check lock bench fuzz conformance tamper chaos screenshots clean

# Everything, as one process tree, from a bare machine. exec: Ctrl-C reaches it once, and so does make's SIGTERM.
run: .venv/.installed
	@exec $(BIN)/python manage.py up $(ARGS)

# In parts, two at a time, each with engines of its own: the longest first, so that both end at about the same time.
FOR_UPSTREAMS := $(UPSTREAMS)/node_modules/.installed .venv-upstreams/.installed
FOR_CLIENTS := $(CLIENTS)/node_modules/.installed .venv-mcp1/.installed .venv-fastmcp/.installed

ifeq ($(ARGS)$(DATABASE_URL)$(REDIS_URL),)
test: programs .venv/.installed-dev
	@$(MAKE) --no-print-directory --jobs=2 --keep-going $(PARTS)
else
test: programs .venv/.installed-dev $(FOR_UPSTREAMS) $(FOR_CLIENTS)
	@exec $(BIN)/python -m pytest $(ARGS)
endif

test-mcpsite: TESTS := mcpsite --ignore=mcpsite/tests/browser --ignore=mcpsite/tests/clients
test-mcpsite: $(FOR_UPSTREAMS)
test-pages: TESTS := mcpsite/tests/browser mcpsite/tests/clients
test-pages: $(FOR_CLIENTS)
test-audit: TESTS := audit keyring
test-gateway: TESTS := gateway access
test-tools: TESTS := tools agents

$(PARTS): .venv/.installed-dev
	@$(BIN)/python -m pytest -q -p no:cacheprovider $(TESTS)

# What `check --deploy` looks at: the settings of an installation behind HTTPS. The secrets are of no use to anyone.
PRODUCTION := env -u MCPSITE_DATA \
	PUBLIC_URL=https://mcp.example.com \
	SECRET_KEY=not-a-secret-but-long-enough-0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEFG \
	ENCRYPTION_KEYS=k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= \
	DATABASE_URL=postgresql://site:none@127.0.0.1:5432/mcpsite \
	DATABASE_OWNER_URL=postgresql://owner:none@127.0.0.1:5432/mcpsite \
	REDIS_URL=redis://127.0.0.1:6379/0

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PRODUCTION) $(BIN)/mypy .
	$(PRODUCTION) $(BIN)/python -W ignore:Got:RuntimeWarning manage.py makemigrations --check --dry-run
	$(PRODUCTION) $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(BIN)/python -m pytest -q mcpsite/tests/test_layers.py mcpsite/tests/test_docs.py

lock: .venv/.installed-dev
	$(PIP_COMPILE) --output-file=requirements.lock requirements.txt
	$(PIP_COMPILE) --output-file=requirements-dev.lock requirements-dev.txt
	$(PIP_COMPILE) --output-file=$(CLIENTS)/requirements-python1.lock $(CLIENTS)/requirements-python1.txt
	$(PIP_COMPILE) --output-file=bench/fuzz/requirements.lock bench/fuzz/requirements.txt
	$(PIP_COMPILE) --output-file=$(CLIENTS)/requirements-fastmcp.lock $(CLIENTS)/requirements-fastmcp.txt
	$(PIP_COMPILE) --output-file=$(UPSTREAMS)/requirements.lock $(UPSTREAMS)/requirements.txt

bench: .venv/.installed-dev
	@exec $(BIN)/python -m bench $(ARGS)

# What parses messages of clients and upstreams, fed with bytes that find their own way: make fuzz ARGS="--seconds 600"
fuzz: .venv/.installed-dev .venv-fuzz/.installed
	@PYTHONPATH=$$(echo .venv-fuzz/lib/python3*/site-packages) $(BIN)/python -m bench.fuzz $(ARGS)

# The official suite of MCP, at each revision, with an upstream of our own behind the site: make conformance ARGS=--direct
conformance: .venv/.installed-dev $(CONFORMANCE)/node_modules/.installed
	@exec $(BIN)/python -m bench.conformance $(ARGS)

# A thousand changes to a ledger by a superuser of PostgreSQL, each of which the verifier must find and name.
tamper: .venv/.installed-dev
	@exec $(BIN)/python -m bench.tamper $(ARGS)

# Kills, freezes, fills and locks everything under load, and looks for what was lost: make chaos ARGS="--cycles 3"
chaos: .venv/.installed-dev
	@exec $(BIN)/python -m bench.chaos $(ARGS)

# The pictures of the guides, all or those that are named: make screenshots ARGS="dashboard records"
screenshots: programs .venv/.installed-dev
	@exec $(BIN)/python -m mcpsite.tests.browser.screenshots $(ARGS)

clean:
	rm -rf .venv .venv-* $(CLIENTS)/node_modules $(UPSTREAMS)/node_modules $(CONFORMANCE)/node_modules .pytest_cache .mypy_cache .ruff_cache staticfiles
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed.")'
	$(PYTHON) -m venv .venv

.venv/.installed: requirements.lock | $(BIN)/python
	$(PIP) --requirement requirements.lock
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed | $(BIN)/python
	$(PIP) --requirement requirements-dev.lock
	@touch $@

# What tests use of Debian: a browser to look at pages, curl for the commands that the admin gives to paste, and git for a
# server that reads repositories.
programs:
	@missing=; for each in chromium curl git; do command -v $$each >/dev/null || missing="$$missing $$each"; done; \
	ls /usr/lib/*/rsyslog/lmnsd_gtls.so >/dev/null 2>&1 || missing="$$missing rsyslog rsyslog-gnutls"; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends $$missing; } || \
		{ echo "The tests need programs that are not installed: sudo apt-get install$$missing"; exit 1; }

# The clients that are tested besides the Python SDK which the site itself uses, the servers that are called through the site,
# and the suite of conformance. No script of a package is run.
%/node_modules/.installed: %/package-lock.json .venv/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm --prefix $* ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

.venv-mcp1/.installed: $(CLIENTS)/requirements-python1.lock
.venv-fastmcp/.installed: $(CLIENTS)/requirements-fastmcp.lock
.venv-upstreams/.installed: $(UPSTREAMS)/requirements.lock
.venv-mcp1/.installed .venv-fastmcp/.installed .venv-upstreams/.installed: | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement $<
	@touch $@

.venv-fuzz/.installed: bench/fuzz/requirements.lock | $(BIN)/python
	$(BIN)/python -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement $<
	@touch $@
