# Every target works alone on a fresh machine with Python >= 3.10 (with venv) and a Rust toolchain.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Processes that share the tests.
WORKERS ?= 2
RUST   := Cargo.toml Cargo.lock pyproject.toml $(shell find src kernels -type f 2>/dev/null)

# `make bench` runs all of these, `make bench head` (or `make head`) those that are named.
BENCHES := rows objectives head curate denoising prompts trainers
BENCH   ?= $(or $(filter $(BENCHES),$(MAKECMDGOALS)),$(BENCHES))

# DeepSpeed in an environment of its own: transformers and others behave differently where it is installed.
DEEPSPEED      := 0.19.8
DEEPSPEED_VENV ?= $(VENV)-deepspeed

# Training frameworks, each in an environment of its own. Without their dependencies, some of which take an older PyTorch;
# what is needed of those stands in tests/integrations/real_NAME/requirements.txt.
FRAMEWORKS := llamafactory swift
PACKAGES_llamafactory := llamafactory==0.9.5 torchaudio==2.11.1
PACKAGES_swift := ms-swift==4.6.0

.PHONY: demo models test test-rust test-python test-deepspeed $(FRAMEWORKS:%=test-%) lint bench $(BENCHES) docs gallery site smoke wheel clean help

help:
	@echo "make demo    train a small model with DPO end to end, print a report, draw a plot"
	@echo "make test    all tests (Rust and Python)"
	@echo "make test-deepspeed  beside the real DeepSpeed, on the CPU (takes g++; the first time compiles for minutes)"
	@echo "make test-llamafactory, test-swift  beside the real LLaMA-Factory, ms-swift, on the CPU"
	@echo "make lint    rustfmt, clippy, ruff, mypy, stubtest"
	@echo "make bench   CPU benchmarks beside their peers, results as JSON; one alone: make bench head (or rows, objectives, curate, denoising, prompts, trainers)"
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

$(FRAMEWORKS:%=test-%): test-%: $(VENV)-%/.created
	$(VENV)-$*/bin/python -m pytest tests/integrations/real_$* $(PYTEST)

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
	rm -rf target dist site $(VENV) $(DEEPSPEED_VENV) $(FRAMEWORKS:%=$(VENV)-%) python/prefuse/*.so demo-output

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prefuse needs Python >= 3.10, $(PYTHON) is " + sys.version.split()[0])'
	@command -v cargo >/dev/null || { echo "prefuse is built from Rust: install a toolchain (rustup) so that cargo is on PATH"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# Sees what the tests' environment has.
$(DEEPSPEED_VENV)/.created: $(VENV)/.test
	$(BIN)/python -m venv $(DEEPSPEED_VENV)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(DEEPSPEED_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
	$(DEEPSPEED_VENV)/bin/pip install --quiet --disable-pip-version-check deepspeed==$(DEEPSPEED) ninja
	touch $@

$(FRAMEWORKS:%=$(VENV)-%/.created): $(VENV)-%/.created: $(VENV)/.test tests/integrations/real_%/requirements.txt
	$(BIN)/python -m venv $(VENV)-$*
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(VENV)-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
	$(VENV)-$*/bin/pip install --quiet --disable-pip-version-check --requirement tests/integrations/real_$*/requirements.txt
	$(VENV)-$*/bin/pip install --quiet --disable-pip-version-check --no-deps $(PACKAGES_$*)
	touch $@

# Editable: Python changes need no reinstall, changed Rust sources rebuild the extension.
$(VENV)/.demo $(VENV)/.test $(VENV)/.models $(VENV)/.bench $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.created $(RUST)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
