# make demo    train the demo, score it and write runs/demo/conversation.mp4 (continues where it was stopped)
# make compare train the generator with everything, without the partner and without the relation, two seeds each
# make test    run the tests
# Each creates .venv from requirements.txt first, if absent. Choose an interpreter with make PYTHON=python3.12.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/demo
CONFIG := configs/demo.py
SEEDS := 0 1
# An unseen conversation of the demo data.
TEST := runs/demo_data/conversations/test/demo-d009_sub_video_9

.PHONY: demo compare test clean

demo: $(VENV)/.installed
	$(PY) train.py --config=$(CONFIG) --workdir=$(RUN)
	$(PY) eval.py --config=$(CONFIG) --workdir=$(RUN)
	$(PY) generate.py --workdir=$(RUN) --speech_a=$(TEST)_speaker1.wav --motion_a=$(TEST)_speaker1.npz \
	  --speech_b=$(TEST)_speaker2.wav --relation=blood,equal --out=$(RUN)/conversation.mp4
	@echo "Watch $(RUN)/conversation.mp4 and read $(RUN)/evaluation/results.md"

compare: $(VENV)/.installed
	for variant in full no_partner no_relation; do for seed in $(SEEDS); do \
	  $(PY) train.py --config=$(CONFIG):$$variant --config.seed=$$seed --stage=motion \
	    --workdir=$(RUN)/compare/$$variant/seed_$$seed || exit; done; done
	$(PY) eval.py --config=$(CONFIG) --workdir=$(RUN)

test: $(VENV)/.installed
	$(PY) -m pytest -q -n 2 --dist loadfile tests

clean:
	rm -rf $(VENV) runs .jax_cache

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"$(PYTHON) is Python {v[0]}.{v[1]}; rsatalker-jax needs 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@
