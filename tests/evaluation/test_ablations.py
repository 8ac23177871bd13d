"""Tables 4 and 5 out of results.json: which frames are compared with which, in which direction, and what is refused."""

import json

import numpy as np
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import ablations
from rsatalker_jax.evaluation.tables import METRICS_VERSION

FRAMES = np.arange(0, 200, 5)


def make_results(title, seed=0, shift=0.0, frames=FRAMES, films=("a",), **overrides):
  """Scores whose every metric is the frame's number and a shift."""
  each = lambda more: {"frame": frames.tolist()} | {
      name: (np.sin(frames) + shift + more).tolist() for name in ("l1", "psnr", "ssim", "lpips_alex")
  }
  means = dict.fromkeys(("l1", "psnr", "ssim", "lpips_alex"), shift)
  return {
      "metrics_version": METRICS_VERSION,
      "title": title,
      "seed": seed,
      "motion": {"true motion": [{"lips/correlation": 1.0}], title: [{"lips/correlation": 0.5 + shift, "fd/expression": 2.0}]},
      "frames": {"generated motion": means, "tracked motion": means},
      "frames_each": {film: {"generated motion": each(i), "tracked motion": each(10)} for i, film in enumerate(films)},
  } | overrides


def write(folder, results):
  (folder / "evaluation").mkdir(parents=True)
  (folder / "evaluation" / "results.json").write_text(json.dumps(results))


def test_differences_are_of_the_same_frames_and_more_is_better():
  first = {0: make_results("full", films=("a", "b"))}
  # Other frames of one film, and a film that the first has not.
  second = {0: make_results("x", shift=0.25, frames=FRAMES[3:], films=("a", "c"))}
  found = ablations.compare_frames(first, second, "generated motion")
  assert found.keys() == {"l1", "psnr", "ssim", "lpips_alex"}
  for name, sign in (("l1", -1), ("lpips_alex", -1), ("psnr", 1), ("ssim", 1)):
    np.testing.assert_allclose(found[name], [sign * 0.25] * 3, atol=1e-12)
  # Rows apart: tracked frames of both are compared, or those of one with generated ones of the other.
  np.testing.assert_allclose(ablations.compare_frames(first, second, "tracked motion")["psnr"], [0.25] * 3)
  across = ablations.compare_frames(first, second, "tracked motion", "generated motion")
  np.testing.assert_allclose(across["psnr"], [10.25] * 3)
  assert ablations.compare_frames(first, {0: make_results("x", films=("c",))}, "generated motion") == {}
  assert ablations.compare_frames(first, {1: make_results("x", 1)}, "generated motion") == {}


def test_seeds_are_paired_and_averaged():
  first = {0: make_results("full"), 1: make_results("full", 1, shift=2.0), 2: make_results("full", 2, shift=9.0)}
  second = {0: make_results("x", shift=1.0), 1: make_results("x", 1, shift=4.0)}
  np.testing.assert_allclose(ablations.compare_frames(first, second, "generated motion")["psnr"], [1.5] * 3)


def test_intervals_grow_with_what_frames_have_in_common():
  """Frames whose differences come in runs of two seconds say less than as many that are independent."""
  r = np.random.default_rng(0)
  frames = np.arange(0, 1000, 5)
  width = {}
  for name, values in (("alone", r.normal(size=200)), ("runs", np.repeat(r.normal(size=20), 10))):
    second = make_results("x", frames=frames)
    second["frames_each"]["a"]["generated motion"]["psnr"] = (np.sin(frames) + values).tolist()
    mean, low, high = ablations.compare_frames({0: make_results("full", frames=frames)}, {0: second}, "generated motion")["psnr"]
    assert mean == pytest.approx(values.mean()) and low < mean < high
    width[name] = (high - low) / values.std()
  assert 0.15 < width["alone"] < 0.45  # 2 · 1.96 / sqrt(200) = 0.28
  assert width["runs"] > 2 * width["alone"]


def test_tables_have_the_seeds_the_order_and_what_is_missing(tmp_path):
  write(tmp_path, make_results("RSATalker", shift=0.5))
  write(tmp_path / "ablations/full/seed_1", make_results("RSATalker", 1, shift=0.7))
  write(tmp_path / "ablations/no_relation/seed_0", make_results("without relation", shift=0.2))
  write(tmp_path / "offsets/no_offsets/seed_0", make_results("none", shift=0.2))
  write(tmp_path / "offsets/offsets/seed_0", make_results("c = GON(q, t)", shift=0.6))
  order = ["full", "no_relation", "paper", "no_offsets", "offsets"]
  markdown = ablations.write_tables(tmp_path, order)
  results = json.loads((tmp_path / "ablations/results.json").read_text())
  assert markdown == (tmp_path / "ablations/results.md").read_text()
  assert list(results["frames"]) == ["full pipeline", "without relation"]
  assert results["frames_with_offsets"]["c = GON(q, t), tracked motion"] == [[0.6]] * 4
  assert results["frames"]["full pipeline"][1] == [0.5, 0.7] and results["missing"] == ["paper"]
  assert results["motion"]["without relation"][0] == [0.7]
  assert "Not trained: paper." in markdown and "| 0.6 ± 0.1 |" in markdown
  # Less PSNR than full; less LPIPS, too, which is better.
  np.testing.assert_allclose(results["differences"]["without relation"]["psnr"], [-0.3] * 3)
  assert "- without relation: PSNR (dB) worse, as in the paper; LPIPS BETTER, against the paper (than" in markdown
  np.testing.assert_allclose(results["offsets"]["c = GON(q, t), tracked motion"]["psnr"], [0.4] * 3)
  assert r"\toprule" in (tmp_path / "ablations/results.tex").read_text()


def test_results_of_other_metrics_are_refused(tmp_path):
  write(tmp_path / "run", make_results("x"))
  assert ablations.is_scored(tmp_path / "run") and not ablations.is_scored(tmp_path / "none")
  (tmp_path / "run/joint").mkdir()
  (tmp_path / "run/joint/metrics.jsonl").write_text("")  # Trained again since.
  assert not ablations.is_scored(tmp_path / "run")
  write(tmp_path / "old", make_results("x", metrics_version=METRICS_VERSION - 1))
  assert not ablations.is_scored(tmp_path / "old")
  with pytest.raises(InputError, match=f"results.json: metrics_version: found {METRICS_VERSION - 1}, expected {METRICS_VERSION}"):
    ablations.read_results(tmp_path / "old")
  with pytest.raises(InputError, match="scores that eval.py has written"):
    ablations.write_tables(tmp_path / "none", ["full"])
  (tmp_path / "old/evaluation/results.json").write_text("[]")
  with pytest.raises(InputError, match="found a list"):
    ablations.read_results(tmp_path / "old")


def test_stages_that_others_have_trained_are_taken_over():
  from tools import train_ablations

  words = lambda variant, seed: train_ablations.commands_of("runs/demo", "configs/demo.py", variant, seed, ["--config.joint.steps=3"])
  motion, joint = words("no_relation", 2)
  assert motion[2:] == [
      "--config=configs/demo.py:no_relation", "--config.seed=2", "--workdir=runs/demo/ablations/no_relation/seed_2",
      "--stage=motion", "--init_from=runs/demo/ablations/full/seed_2:avatar", "--config.joint.steps=3",
  ]  # fmt: skip
  assert "--stage=joint" in joint and "--init_from=runs/demo/ablations/full/seed_2:avatar" in joint
  assert "--init_from=runs/demo:avatar" in words("no_motion_stage", 0)[0] and len(words("no_motion_stage", 0)) == 1
  (last,) = words("degraded_offsets", 0)
  assert last.index("--init_from=runs/demo:motion") < last.index("--init_from=runs/demo/offsets/degraded/seed_0:avatar")
  assert [command[5] for command in words("paper", 0)] == ["--stage=motion", "--stage=avatar", "--stage=joint"]


def test_every_ablation_is_a_variant_and_comes_after_what_it_takes():
  from configs.ablations import ABLATIONS, VARIANTS

  of = {
      "motion": ("motion.", "generator.", "speech.", "social.enabled", "data.conversations"),
      "avatar": ("avatar.", "gaussians.", "density.", "data.capture"),
  }
  for place, (variant, taken) in enumerate(ABLATIONS.items()):
    assert variant in VARIANTS
    for stage, other in taken.items():
      assert list(ABLATIONS).index(other) < place
      # What it takes it would train alike: none of its keys is of that stage, but those that the other has too.
      changed = {k: v for k, v in VARIANTS[variant][1].items() if k.startswith(of[stage])}
      assert changed.items() <= VARIANTS[other][1].items(), (variant, stage)
