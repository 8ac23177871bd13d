# make demo    train the demo, score it and write runs/demo/conversation.mp4 (continues where it was stopped)
# make compare make demo, then train all that it is compared with (COMPARED in configs/ablations.py), and score them
# make ablations make demo, then train the paper's ablations of it (whole runs; configs/ablations.py), score them, and write a page
# make test    run the tests
# make quick   run the quick tests with another Python, in a virtual environment of its own: make quick PYTHON=python3.13 VENV=.venv-3.13
# make coverage  run the tests and say how many of the lines of each module they run; takes a third longer
# make live    train a generator that hears nothing early (minutes), after make demo, and hold a conversation with it in a browser (docs/live.md)
# make live-tracker  fetch what the live page's camera needs (docs/live.md)
# make lint    look for errors without running anything: ruff's rules and ty's types (pyproject.toml)
# make test-aot  compile the accelerators' kernels with the accelerators' compilers, on a machine that has none of them
# make pod-check  compile the train steps of configs/pod.py for pods and a GPU node that are not there: memory, traffic, estimated times
# Each creates .venv from requirements.txt first, if absent (test-aot, pod-check: .venv-aot, with requirements-aot.txt, too).
# Choose an interpreter with make PYTHON=python3.12.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/demo
CONFIG := configs/demo.py
# Further flags of tools/train_compared.py: make compare COMPARED="--variants=timar --seeds=0".
COMPARED :=
# Written last by training, and left alone by a run that finds everything trained.
TRAINED := $(RUN)/joint/metrics.jsonl
# An unseen conversation of the demo data.
TEST := runs/demo_data/conversations/test/demo-d009_sub_video_9

# What a newer Python or JAX breaks, in a few minutes: numerics, files, sound, videos, the command line, the training loop.
QUICK := tests/avatar/test_binding.py tests/commands/test_command_line.py tests/commands/test_config_values.py \
  tests/commands/test_encode.py tests/commands/test_train.py tests/data tests/evaluation/test_motion_metrics.py tests/head \
  tests/motion/test_motion_layers.py tests/runs tests/social tests/speech tests/splat_kernels/test_binning.py \
  tests/splat_kernels/test_distribution.py tests/splat_kernels/test_projection.py \
  tests/labelling tests/live/test_dialogue.py tests/live/test_endpoint.py tests/live/test_live_refusals.py tests/live/test_live_server.py tests/live/test_voice.py tests/study tests/test_architecture.py tests/test_files.py tests/test_lmdb.py tests/test_npz.py tests/test_pickles.py tests/test_sharding.py \
  tests/training/test_loop.py tests/training/test_losses.py tests/training/test_optimizers.py

.PHONY: demo compare ablations live test coverage quick live-tracker lint test-aot pod-check clean

demo: $(VENV)/.installed
	$(PY) train.py --config=$(CONFIG) --workdir=$(RUN)
	[ $(RUN)/evaluation/results.md -nt $(TRAINED) ] || $(PY) eval.py --config=$(CONFIG) --workdir=$(RUN)
	[ $(RUN)/conversation.mp4 -nt $(TRAINED) ] || \
	  $(PY) generate.py --workdir=$(RUN) --speech_a=$(TEST)_speaker1.wav --motion_a=$(TEST)_speaker1.npz \
	  --speech_b=$(TEST)_speaker2.wav --relation=blood,equal --out=$(RUN)/conversation.mp4
	@echo "Watch $(RUN)/conversation.mp4 and read $(RUN)/evaluation/results.md"

compare: demo
	$(PY) tools/train_compared.py --config=$(CONFIG) --workdir=$(RUN) $(COMPARED)
	$(PY) eval.py --config=$(CONFIG) --workdir=$(RUN)

# Further flags of the live page: make live LIVE="--endpoint=eliza --recordings=said".
LIVE :=

live: demo
	$(PY) train.py --config=$(CONFIG):causal --stage=motion --workdir=runs/causal
	$(PY) -m rsatalker_jax live --workdir=runs/causal --avatar_from=$(RUN) $(LIVE)

ablations: demo
	$(PY) tools/train_ablations.py --config=$(CONFIG) --workdir=$(RUN)
	$(PY) -m rsatalker_jax report --workdir=$(RUN)

# The longest files come first (tests/conftest.py). PYTEST holds further options, as .ci/run's of coverage.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed
	$(PY) -m pytest -q $(PARALLEL) $(PYTEST) tests

coverage: $(VENV)/.installed $(VENV)/.linters
	$(MAKE) test PYTEST="--cov --cov-report=term"

quick: $(VENV)/.installed
	$(PY) -m pytest -q $(PARALLEL) $(PYTEST) $(QUICK)

live-tracker: $(VENV)/.installed
	$(PY) -m rsatalker_jax tracker

lint: $(VENV)/.installed $(VENV)/.linters
	$(VENV)/bin/ruff check
	$(VENV)/bin/ty check --python $(VENV)

test-aot: $(VENV)-aot/.installed
	$(VENV)-aot/bin/python -m pytest -q $(PARALLEL) tests_aot

pod-check: $(VENV)-aot/.installed
	$(VENV)-aot/bin/python tools/pod_check.py

clean:
	rm -rf .venv .venv-* $(VENV) runs .jax_cache .coverage

$(VENV)/.linters: requirements-dev.txt $(VENV)/.installed
	$(PY) -m pip install --quiet -r $<
	@touch $@

$(VENV)/.installed: requirements.txt
$(VENV)-aot/.installed: requirements.txt requirements-aot.txt
$(VENV)/.installed $(VENV)-aot/.installed:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"$(PYTHON) is Python {v[0]}.{v[1]}; rsatalker-jax needs 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet $(addprefix -r ,$^)
	@touch $@
