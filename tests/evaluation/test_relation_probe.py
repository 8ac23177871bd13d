"""The relation probe on synthetic pairs whose answers are known: a gain, a sign and a lag per relation."""

import dataclasses

import numpy as np
import pytest

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import relation_probe
from rsatalker_jax.social.relation import RELATIONS, parse_relation

FRAMES = 500
# How B answers A's first two channels, per relation: nothing else tells them apart.
GAINS = dict(zip(RELATIONS, ((0.8, 0.6), (0.8, -0.6), (-0.5, 0.6), (0.1, -0.1)), strict=True))


def slow_noise(rng, frames, width):
  """Noise that moves within half a second."""
  kernel = np.hanning(15) / np.hanning(15).sum()
  white = rng.normal(size=(frames + 14, width))
  return np.stack([np.convolve(column, kernel, "valid") for column in white.T], axis=1)


def make_clip(relation, seed, *, noise=0.1, frames=FRAMES):
  """B's smile and head turn follow A's ten frames later; all else is each one's own."""
  rng = np.random.default_rng(seed)
  a, b = slow_noise(rng, frames, 56), noise * slow_noise(rng, frames, 56)
  lagged = np.concatenate([a[:1].repeat(10, axis=0), a[:-10]])
  for column, gain in zip((3, 54), GAINS[relation], strict=True):
    b[:, column] += gain * lagged[:, column]
  return MotionClip(
      name=f"{relation} {seed}",
      speech_a=np.zeros((frames, 1), np.float32),
      motion_a=a.astype(np.float32),
      speech_b=np.zeros((frames, 1), np.float32),
      motion_b=b.astype(np.float32),
      relation=parse_relation(relation),
      basis="flame2020",
  )


def make_clips(seeds, **options):
  return [make_clip(relation, 100 * seed + i, **options) for seed in seeds for i, relation in enumerate(RELATIONS)]


def fit(clips):
  return relation_probe.fit_relation_probe((clip.motion_a, clip.motion_b, clip.relation) for clip in clips)


def score_relation(probe, clips, motions):
  scores = relation_probe.RelationScores(probe)
  for clip, motion in zip(clips, motions, strict=True):
    scores.add(clip, motion)
  return scores.scores()


@pytest.fixture(scope="module")
def probe():
  return fit(make_clips(range(6), noise=0.5))


def test_names_unseen_pairs_and_their_conditional_mean(probe):
  test = make_clips(range(10, 15), noise=0.5)
  scores = score_relation(probe, test, [clip.motion_b for clip in test])
  assert scores["relation/accuracy"] == 1.0 and scores["relation/clips"] == 20 and scores["relation/left_out"] == 0
  assert scores["relation/pieces"] > 0.9
  # Generated motion has less of its own noise than the truth: the same answers without any of it.
  smooth = make_clips(range(10, 15), noise=0.0)
  assert score_relation(probe, test, [clip.motion_b for clip in smooth])["relation/accuracy"] == 1.0


def test_only_the_answer_counts(probe):
  """B's motion without its bond to A tells nothing, whatever A does; nor does a B that answers every A alike."""
  test = make_clips(range(10, 40), noise=0.5)
  strangers = [clip.motion_b for clip in test[-4:] + test[:-4]]  # The same relation's answers, to another A.
  assert score_relation(probe, test, strangers)["relation/accuracy"] < 0.45
  alike = [0.3 * np.roll(clip.motion_a, 10, axis=0) for clip in test]
  assert score_relation(probe, test, alike)["relation/accuracy"] < 0.35


def test_told_relation_shows_or_does_not(probe):
  test = make_clips(range(10, 20), noise=0.2)
  by_pair = {clip.motion_a.tobytes(): i for i, clip in enumerate(test)}

  def obeys(clip):
    i = by_pair[clip.motion_a.tobytes()]
    relation = next(r for r in RELATIONS if (parse_relation(r) == clip.relation).all())
    return make_clip(relation, 100 * (10 + i // 4) + i % 4).motion_b

  ignores = lambda clip: test[by_pair[clip.motion_a.tobytes()]].motion_b
  for generate, shown in ((obeys, 1.0), (ignores, 0.0)):
    rng, told, scores = np.random.default_rng(0), [], relation_probe.RelationScores(probe)
    for clip in test:
      told.append(relation_probe.choose_other(probe, clip, rng))
      scores.add_told(clip, told[-1], generate(dataclasses.replace(clip, relation=told[-1])))
    found = scores.scores()
    assert (found["relation/told_shown"], found["relation/told_wrong"]) == (shown, 1.0 - shown)
  # Any of the others, and never the clip's own.
  pairs = {(relation_probe.relation_index(clip.relation), relation_probe.relation_index(t)) for clip, t in zip(test, told)}
  assert len(pairs) > 8 and all(own != other for own, other in pairs)


def test_regressions_are_least_squares_per_relation(probe):
  """The head's turn answers the head's turn at 0.4 s with the gains that made the clips (ridge, smoothing: 15 %)."""
  lag, turn = relation_probe.LAGS.index(2), relation_probe.COMPONENTS + 1
  row = lag * (relation_probe.COMPONENTS + 3) + turn
  found = probe.answers[:, row, turn]
  np.testing.assert_allclose(found, [GAINS[relation][1] for relation in RELATIONS], atol=0.12)


def test_unknown_short_and_unseen_are_left_out_and_counted(probe):
  clips = make_clips([50])
  unknown = dataclasses.replace(clips[0], relation=np.array([-1, 1], np.int32))
  short = make_clip(RELATIONS[0], 1, frames=relation_probe.least_frames() - 1)
  scored = [*clips, unknown, short]
  scores = score_relation(probe, scored, [clip.motion_b for clip in scored])
  assert scores["relation/clips"] == 4 and scores["relation/left_out"] == 2
  three = fit([unknown, short, *(clip for clip in make_clips(range(3)) if not clip.name.startswith(RELATIONS[3]))])
  assert three.relations == (0, 1, 2)
  assert score_relation(three, clips, [clip.motion_b for clip in clips])["relation/left_out"] == 1


def test_one_relation_or_none_gives_no_probe():
  assert fit([make_clip(RELATIONS[0], i) for i in range(3)]) is None
  assert fit([dataclasses.replace(make_clip(RELATIONS[0], 1), relation=np.array([-1, -1], np.int32))]) is None
  assert relation_probe.relation_index(np.array([1, -1])) is None
  assert [relation_probe.relation_index(parse_relation(r)) for r in RELATIONS] == [0, 1, 2, 3]


def test_lengths_must_agree(probe, unchecked_signatures):
  clip = make_clip(RELATIONS[0], 0)
  with pytest.raises(ValueError, match="must be equal and at least 20"):
    probe.name_relation(clip.motion_a, clip.motion_b[:-1])
