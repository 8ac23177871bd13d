# make demo    train the demo, score it and write runs/demo/conversation.mp4 (continues where it was stopped)
# make compare make demo, then train all that the generator is compared with (configs/ablations.py), three seeds each, and score them
# make ablations make demo, then train the paper's ablations of it (whole runs; configs/ablations.py), score them, and write a page
# make test    run the tests
# make test-aot  compile the accelerators' kernels with the accelerators' compilers, on a machine that has none of them
# make pod-check  compile the train steps of configs/pod.py for pods and a GPU node that are not there: memory, traffic, estimated times
# Each creates .venv from requirements.txt first, if absent (test-aot, pod-check: .venv-aot, with requirements-aot.txt, too).
# Choose an interpreter with make PYTHON=python3.12.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/demo
CONFIG := configs/demo.py
SEEDS := 0 1 2
VARIANTS := full no_relation dualtalk speaker_only listener_only causal
# Written last by training, and left alone by a run that finds everything trained.
TRAINED := $(RUN)/joint/metrics.jsonl
# An unseen conversation of the demo data.
TEST := runs/demo_data/conversations/test/demo-d009_sub_video_9

.PHONY: demo compare ablations test test-aot pod-check clean

demo: $(VENV)/.installed
	$(PY) train.py --config=$(CONFIG) --workdir=$(RUN)
	[ $(RUN)/evaluation/results.md -nt $(TRAINED) ] || $(PY) eval.py --config=$(CONFIG) --workdir=$(RUN)
	[ $(RUN)/conversation.mp4 -nt $(TRAINED) ] || \
	  $(PY) generate.py --workdir=$(RUN) --speech_a=$(TEST)_speaker1.wav --motion_a=$(TEST)_speaker1.npz \
	  --speech_b=$(TEST)_speaker2.wav --relation=blood,equal --out=$(RUN)/conversation.mp4
	@echo "Watch $(RUN)/conversation.mp4 and read $(RUN)/evaluation/results.md"

compare: demo
	for variant in $(VARIANTS); do for seed in $(SEEDS); do \
	  $(PY) train.py --config=$(CONFIG):$$variant --config.seed=$$seed --stage=motion \
	    --workdir=$(RUN)/compare/$$variant/seed_$$seed || exit; done; done
	$(PY) eval.py --config=$(CONFIG) --workdir=$(RUN)

ablations: demo
	$(PY) tools/train_ablations.py --config=$(CONFIG) --workdir=$(RUN)
	$(PY) -m rsatalker_jax report --workdir=$(RUN)

# The longest file first, so that no worker is left alone with it.
test: $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile tests/test_end_to_end.py tests

test-aot: $(VENV)-aot/.installed
	$(VENV)-aot/bin/python -m pytest -q tests_aot

pod-check: $(VENV)-aot/.installed
	$(VENV)-aot/bin/python tools/pod_check.py

clean:
	rm -rf $(VENV) $(VENV)-aot runs .jax_cache

$(VENV)/.installed: requirements.txt
$(VENV)-aot/.installed: requirements.txt requirements-aot.txt
$(VENV)/.installed $(VENV)-aot/.installed:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"$(PYTHON) is Python {v[0]}.{v[1]}; rsatalker-jax needs 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet $(addprefix -r ,$^)
	@touch $@
