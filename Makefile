# Every target works alone on a fresh machine with Python >= 3.10 (with venv) and a Rust toolchain.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Processes that share the tests.
WORKERS ?= 2
RUST   := Cargo.toml Cargo.lock pyproject.toml $(shell find src kernels -type f 2>/dev/null)

# `make bench` runs all of these, `make bench head` (or `make head`) those that are named.
BENCHES := rows objectives head curate denoising prompts
BENCH   ?= $(or $(filter $(BENCHES),$(MAKECMDGOALS)),$(BENCHES))

# DeepSpeed in an environment of its own: transformers and others behave differently where it is installed.
DEEPSPEED      := 0.19.8
DEEPSPEED_VENV ?= $(VENV)-deepspeed

# TRL of another version, in an environment of its own: make test-trl VERSION=1.15.0 [TRANSFORMERS=4.57.6]
VERSION      ?= 1.15.0
TRANSFORMERS ?=
TRL_VENV     ?= $(VENV)-trl-$(VERSION)$(addprefix -,$(TRANSFORMERS))

.PHONY: demo models test test-rust test-python test-deepspeed test-trl lint bench $(BENCHES) docs gallery site smoke wheel clean help

help:
	@echo "make demo    train a small model with DPO end to end, print a report, draw a plot"
	@echo "make test    all tests (Rust and Python)"
	@echo "make test-deepspeed  beside the real DeepSpeed, on the CPU (takes g++; the first time compiles for minutes)"
	@echo "make test-trl VERSION=1.15.0  the trainers of another TRL with and without prefuse (TRANSFORMERS=4.57.6: with that one)"
	@echo "make lint    rustfmt, clippy, ruff, mypy, stubtest"
	@echo "make bench   CPU benchmarks beside their peers, results as JSON; one alone: make bench head (or rows, objectives, curate, denoising, prompts)"
	@echo "make models  write the table of model families: the fused head beside the models' own logits (long)"
	@echo "make gallery run the papers' toy experiments (examples/papers), draw their figures"
	@echo "make site    build the documentation as a site into site/, with the pages of all objectives, without network"
	@echo "make wheel   build the abi3 wheel into dist/"
	@echo "make smoke   try that wheel, or WHEEL=, in an environment that has torch and nothing else"

demo: $(VENV)/.demo
	$(BIN)/python -m prefuse demo $(DEMO)

test: test-rust test-python

test-rust:
	cargo test --no-default-features --lib --quiet

# OpenMP's threads of two processes would wait for each other's processors.
test-python: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# DeepSpeed compiles an extension with ninja, which is installed beside it, and g++. The lock of a build that was killed
# makes older versions of PyTorch wait for ever.
test-deepspeed: $(DEEPSPEED_VENV)/.created
	@command -v $${CXX:-g++} >/dev/null || { echo "DeepSpeed compiles an extension: install g++, or set CXX"; exit 1; }
	rm -f $(DEEPSPEED_VENV)/extensions/*/lock
	PATH="$(abspath $(DEEPSPEED_VENV))/bin:$$PATH" TORCH_EXTENSIONS_DIR=$(abspath $(DEEPSPEED_VENV))/extensions DS_ACCELERATOR=cpu \
		python -m pytest tests/real_deepspeed $(PYTEST)

test-trl: $(TRL_VENV)/.created
	$(TRL_VENV)/bin/python -m pytest -n0 tests/trl/versions $(PYTEST)

lint: $(VENV)/.test $(VENV)/.lint
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=python $(BIN)/stubtest --mypy-config-file pyproject.toml --concise prefuse._prefuse

bench: $(VENV)/.bench
	set -e; for name in $(BENCH); do for script in benchmarks/$${name}_cpu.py benchmarks/$${name}_*_cpu.py; do \
		if [ -e $$script ]; then $(BIN)/python $$script; fi; done; done

$(BENCHES): bench
	@:

models: $(VENV)/.test $(VENV)/.models
	$(BIN)/python -m tests.models docs/models.md

gallery: $(VENV)/.test
	$(BIN)/python examples/papers

# WHEEL: one that is there already.
smoke: $(VENV)/.test $(if $(WHEEL),,wheel)
	$(BIN)/python -m tests.wheel.environment $(or $(WHEEL),dist/prefuse-*.whl)

site docs: $(VENV)/.docs $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: $(VENV)/.created
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf target dist site $(VENV) $(DEEPSPEED_VENV) $(VENV)-trl-* python/prefuse/*.so demo-output

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prefuse needs Python >= 3.10, $(PYTHON) is " + sys.version.split()[0])'
	@command -v cargo >/dev/null || { echo "prefuse is built from Rust: install a toolchain (rustup) so that cargo is on PATH"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# An environment that sees what the tests' environment has, and wins with what is installed in it.
define environment
	$(BIN)/python -m venv $(1)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
endef

$(DEEPSPEED_VENV)/.created: $(VENV)/.test
	$(call environment,$(DEEPSPEED_VENV))
	$(DEEPSPEED_VENV)/bin/pip install --quiet --disable-pip-version-check deepspeed==$(DEEPSPEED) ninja
	touch $@

# Old versions of TRL name old ones of the others, which they do not need here.
$(TRL_VENV)/.created: $(VENV)/.test
	$(call environment,$(TRL_VENV))
	$(TRL_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps trl==$(VERSION)
	$(if $(TRANSFORMERS),$(TRL_VENV)/bin/pip install --quiet --disable-pip-version-check transformers==$(TRANSFORMERS))
	touch $@

# Editable: Python changes need no reinstall, changed Rust sources rebuild the extension.
$(VENV)/.demo $(VENV)/.test $(VENV)/.models $(VENV)/.bench $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.created $(RUST)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
