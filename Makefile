# Two commands: `make demo` and `make test`. Both make .venv first, if it is not there.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help venv demo stop test test-slow test-demo lint clean

help:
	@echo "make demo          prepare, train and serve a small real model; KEEP=1 leaves the server up"
	@echo "make stop          end what KEEP=1 left up"
	@echo "make test          the tests that need no root, GPU or browser"
	@echo "make test-slow     the tests that take minutes or need a browser"
	@echo "make test-demo     make demo, as a test, and how it is broken off"
	@echo "make lint          ruff and mypy"
	@echo "make venv          only the environment; then: . .venv/bin/activate"

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; try make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	# Ray's commands disagree on token authentication once ~/.ray/auth_token exists; with this
	# every Python of this environment has it on, unless the user's own environment decides.
	echo 'import os; os.environ.setdefault("RAY_AUTH_MODE", "token")' > \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ray_token_auth.pth"
	umask 077 && $(BIN)/ray get-auth-token --generate > /dev/null 2>&1
	chmod 600 "$$HOME/.ray/auth_token"
	touch $@

demo: venv
	@$(BIN)/python -m ochat_ray.demo $(if $(KEEP),--keep)

stop: venv
	@$(BIN)/python -m ochat_ray.demo stop

test: venv
	$(BIN)/python -m pytest -m "not end_to_end and not gpu and not slow and not browser"

test-slow: venv
	$(BIN)/python -m pytest -m "(slow or browser) and not gpu"

test-demo: venv
	$(BIN)/python -m pytest -m end_to_end

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
