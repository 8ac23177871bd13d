"""Clips found in long sound: against plain sums, and where they are known to be."""

import os
import pathlib

import mock_realtalk as mock
import numpy as np
import pytest

from rsatalker_jax.data.audio import read_wav, resample
from rsatalker_jax.data.demo import voices
from rsatalker_jax.data.triplets import matching
from rsatalker_jax.data.triplets.matching import ClipSound, Rules, SoundIndex, place_clip, sound_features

RATE = 16_000
REAL = pathlib.Path(os.environ.get("RSATALKER_DUALTALK_DEMO", pathlib.Path(__file__).parents[3] / "shared/data/dualtalk_demo"))


@pytest.fixture(scope="module")
def world():
  """Three conversations of 12 s with pauses between, each one's beginning in samples, and a fourth that is not there."""
  tracks = [[voices.decode_track(path)[: 12 * RATE] for path in dialogue.tracks] for dialogue in voices.load_dialogues()[:4]]
  pause, pieces, starts, now = np.zeros(3 * RATE, np.float32), [], [], 0
  for pair in tracks[:3]:
    pieces += [pause, pair[0] + pair[1]]
    starts.append(now + len(pause))
    now += len(pause) + len(pieces[-1])
  video = np.concatenate([*pieces, pause])
  video += 1e-3 * np.random.default_rng(0).normal(size=len(video)).astype(np.float32)
  return tracks, starts, video, SoundIndex(sound_features(video))


def _place(world, tracks, rules=Rules()):
  return place_clip(ClipSound(tracks), world[2], world[3], rules)


def test_features_do_not_hear_gain_and_are_centred_on_their_moment():
  r = np.random.default_rng(0)
  wav = np.zeros(3 * RATE, np.float32)
  wav[RATE : RATE + 1600] = r.normal(size=1600)
  features = sound_features(wav)
  assert features.shape == (151, 20) and features.dtype == np.int8
  assert np.abs(sound_features(100 * wav).astype(int) - features).max() <= 1
  loud = np.flatnonzero(features.sum(axis=1) > 0.5 * features.sum(axis=1).max())
  assert (loud[0], loud[-1]) == (50, 55)  # 1 s to 1.1 s, 50 a second.
  # Bands are even in mel from 150 to 4500 Hz, and a steady tone, whatever its loudness, is no event.
  mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
  centers = 700 * (10 ** ((mel(150) + (mel(4500) - mel(150)) * np.arange(1, 21) / 21) / 2595) - 1)
  filters = matching._mel_filters()
  assert np.abs(np.argmax(filters, axis=0) * 25.0 - centers).max() <= 12.5
  np.testing.assert_allclose(filters.sum(axis=0), 1, atol=1e-5)
  tone = np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE).astype(np.float32)
  assert np.abs(sound_features(tone)[30:70].astype(int)).max() <= 1


@pytest.mark.parametrize("length", [400, 9000])  # One block of the transform, and two.
def test_correlations_are_plain_sums(length):
  r = np.random.default_rng(0)
  features = r.integers(-100, 100, (length, 20)).astype(np.int8)
  piece_values = r.normal(size=(150, 20)).astype(np.float32)
  transform = np.conj(np.fft.rfft(piece_values.T, 1 << 13, axis=1)).astype(np.complex64)
  piece = matching._Piece(0, 150, transform, float(np.sum(piece_values**2)))
  found = SoundIndex(features).correlate(piece)
  assert len(found) == length + 200
  padded = np.zeros((length + 600, 20))
  padded[200 : 200 + length] = features
  for lag in (0, 120, 200, 333, length + 100):
    window = padded[lag : lag + 150]
    energy = max(np.sum(window**2), 0.1 * piece.energy)
    np.testing.assert_allclose(found[lag], np.sum(window * piece_values) / np.sqrt(energy * piece.energy), atol=1e-4)


def test_lines_go_through_most_points():
  x = np.linspace(0, 10, 12)
  y = 0.02 + 0.015 * x
  y[[2, 7]] += 0.5
  constant, slope = matching._fit_line(x, y, np.ones(12), 0.001)
  np.testing.assert_allclose((constant, slope), (0.02, 0.015), atol=1e-9)
  assert matching._fit_line(x, 0.2 * x, np.ones(12), 0.001) is None  # No clock runs so fast.
  assert matching._fit_line(x[:1], y[:1], np.ones(1), 0.001) == (pytest.approx(y[0]), 0.0)


def test_phases_agree_as_computed_one_by_one():
  r = np.random.default_rng(0)
  video = r.normal(size=RATE).astype(np.float32)
  clip = -0.1 * video[3000:11192]  # Another gain and polarity.
  windows = matching._Windows(clip, 12)
  assert windows.starts.tolist() == [0] and windows.length == 8192
  values, offsets = matching._phase_agreement(clip, windows, video, np.array([(3000 - 200) / RATE]))
  np.testing.assert_allclose(offsets * RATE, 200, atol=1e-6)
  # The same by the definition: the mean over the band of the cosine of phase differences.
  size = 8192 + 2048
  theirs, ours = np.zeros(size), np.zeros(size)
  first = 3000 - 200 - 1024
  theirs[:] = video[first : first + size]
  ours[:8192] = clip
  cross = np.fft.rfft(theirs) * np.conj(np.fft.rfft(ours))
  hertz = np.fft.rfftfreq(size, 1 / RATE)
  turned = np.angle(cross) + 2 * np.pi * hertz * (200 + 1024) / RATE
  expected = abs(np.mean(np.cos(turned)[(hertz >= 150) & (hertz <= 3800)]))
  np.testing.assert_allclose(values, expected, rtol=1e-3)
  assert expected > 0.5
  # Of two sounds that have nothing in common, the best of 2049 offsets is chance.
  values, _ = matching._phase_agreement(r.normal(size=8192).astype(np.float32), windows, video, np.array([0.1]))
  assert values[0] < 0.07


@pytest.mark.parametrize("case", mock.DAMAGE)
@pytest.mark.parametrize("scene, first, seconds", [(0, 1.0, 10), (2, 3.52, 5)])
def test_clips_are_found_to_a_frame(world, case, scene, first, seconds):
  part = slice(int(first * RATE), int((first + seconds) * RATE))
  tracks = mock.DAMAGE[case]([track[part] for track in world[0][scene]], 1)
  match = _place(world, tracks)
  assert match.accepted, match.reason
  speed = {"drift+1%": 0.01, "drift-2%": -0.02, "all": 0.015}.get(case, 0.0)
  assert abs(match.best.start - (world[1][scene] / RATE + first)) < 0.004
  assert abs(match.best.speed - speed) < 2e-4
  np.testing.assert_allclose(match.best.video_time(2.0), match.best.start + 2 * (1 + match.best.speed))
  assert match.best.coherence > 0.25 and match.rival < 0.1


@pytest.mark.parametrize("speed", [-0.02, 0.0, 0.015])
def test_features_alone_tell_the_speed(world, speed):
  tracks, starts, _, index = world
  clip = ClipSound([mock._play(track, speed) for track in tracks[1]])
  best, *others = matching.find_candidates(clip, matching.correlate_pieces(clip, index))
  assert abs(best.speed - speed) <= 0.003 and abs(best.start - starts[1] / RATE) < 0.06, best
  assert best.similarity > 0.75 and all(other.similarity < 0.5 for other in others)


def test_music_under_the_video(world):
  tracks, starts, video, _ = world
  loud = video + 1.0 * mock.music(len(video), 3)
  match = place_clip(ClipSound([t[RATE : 9 * RATE] for t in tracks[1]]), loud, SoundIndex(sound_features(loud)))
  assert match.accepted, match.reason
  assert abs(match.best.start - starts[1] / RATE - 1) < 0.004


def test_what_is_not_there_is_refused(world):
  tracks = world[0]
  for other in (tracks[3], [track[::-1] for track in tracks[0]], [mock.music(8 * RATE, 1), np.zeros(8 * RATE)]):
    match = _place(world, [np.ascontiguousarray(track, np.float32) for track in other])
    assert not match.accepted and match.reason.startswith("not found"), match
    assert match.best.coherence < 0.06
  match = _place(world, [np.zeros(5 * RATE, np.float32)] * 2)
  assert match.best is None and match.reason.startswith("silence")


def test_clips_of_which_a_part_is_there_are_refused(world):
  tracks = world[0]
  part = [np.concatenate([a[: 5 * RATE], b[: 5 * RATE]]) for a, b in zip(tracks[0], tracks[3])]
  match = _place(world, part)
  assert match.reason.startswith("only in part"), match
  assert match.best.agreement < 0.75 and match.best.coherence > 0.1
  assert place_clip(ClipSound(part), *world[2:], Rules(gap=99)).reason == match.reason
  assert place_clip(ClipSound(part), *world[2:], Rules(gap=99, agreement=0.2)).accepted


def test_a_missing_stretch_is_told_from_single_windows():
  windows = matching._Windows(np.ones(6 * RATE, np.float32), 100)  # A window of 0.512 s every 0.256 s.
  near = np.ones(len(windows.starts), bool)
  assert matching._longest_gap(windows, near) == 0
  near[[3, 4, 9, 11]] = False
  assert matching._longest_gap(windows, near) == 0
  near[[15, 16, 17, 18]] = False
  assert matching._longest_gap(windows, near) == pytest.approx(0.512 + 3 * 0.256)
  near[-8:] = False
  assert matching._longest_gap(windows, near) == pytest.approx(0.512 + 7 * 0.256)


def test_a_clip_without_its_beginning_is_refused(world):
  """Of 11 s the first 2 are of another conversation: most of it is there, and not all."""
  tracks = world[0]
  part = [np.concatenate([b[5 * RATE : 7 * RATE], a[2 * RATE : 11 * RATE]]) for a, b in zip(tracks[0], tracks[3])]
  match = _place(world, part)
  assert match.reason.startswith("only in part") and match.best.agreement > 0.75 and match.best.gap > 1.5, match


def test_what_is_said_twice_is_ambiguous_unless_more_is_around_it(world):
  tracks, starts, video, _ = world
  again = video[starts[0] + 4 * RATE : starts[0] + 7 * RATE]
  video = np.concatenate([video, again, np.zeros(RATE, np.float32)])
  index = SoundIndex(sound_features(video))
  cut = lambda first, last: ClipSound([track[first * RATE : last * RATE] for track in tracks[0]])
  match = place_clip(cut(4, 7), video, index)
  assert match.reason.startswith("ambiguous") and match.rival > 0.5 * match.best.coherence, match
  match = place_clip(cut(1, 11), video, index)
  assert match.accepted and abs(match.best.start - starts[0] / RATE - 1) < 0.004, match


def test_real_voices_are_found_in_what_a_room_and_a_codec_make_of_them(world):
  name = "UbjUDM1MiGE_sub_video_72_speaker"
  if not REAL.is_dir():
    pytest.skip("DualTalk's demo files are not here")
  tracks = [read_wav(REAL / f"{name}{n}.wav")[0] for n in (1, 2)]
  mixed = mock._room(1.5 * tracks[0] + 0.6 * tracks[1], 3)
  video = mock.through_codec(np.concatenate([world[2][: 20 * RATE], mixed, world[2][20 * RATE :]]), bits=32_000)
  index = SoundIndex(sound_features(video))
  for first, last in ((0, 23), (5, 9)):
    match = place_clip(ClipSound([track[first * RATE : last * RATE] for track in tracks]), video, index)
    assert match.accepted and abs(match.best.start - 20 - first) < 0.004 and match.best.coherence > 0.3, match
  match = place_clip(ClipSound(tracks), *world[2:])
  assert not match.accepted and match.best.coherence < 0.06, match


def test_short_clips_need_more(world):
  tracks, starts = world[:2]
  cut = lambda seconds: [track[3 * RATE : int((3 + seconds) * RATE)] for track in tracks[1]]
  match = _place(world, cut(1.5))
  assert match.accepted and abs(match.best.start - starts[1] / RATE - 3) < 0.004, match
  assert _place(world, cut(0.7)).reason.startswith("too short")
  coherence = match.best.coherence
  assert _place(world, cut(1.5), Rules(short_coherence=coherence + 0.01)).reason.startswith("not found")
  assert _place(world, cut(1.5), Rules(coherence=coherence + 0.01)).accepted


def test_clips_beyond_the_video_are_refused(world):
  tracks, starts, video, _ = world
  cut = video[starts[0] + 2 * RATE : starts[0] + 9 * RATE]
  index, rules = SoundIndex(sound_features(cut)), Rules(agreement=0.3, gap=99)
  for first, last in ((0, 8), (4, 11)):
    match = place_clip(ClipSound([track[first * RATE : last * RATE] for track in tracks[0]]), cut, index, rules)
    assert match.reason.startswith("beyond the video"), match
    assert abs(match.best.start - (first - 2)) < 0.004
  assert place_clip(ClipSound([track[2 * RATE : 9 * RATE] for track in tracks[0]]), cut, index, rules).accepted


def test_features_choose_among_videos(world):
  tracks, _, _, index = world
  other = SoundIndex(sound_features(resample(np.concatenate(list(tracks[3])), 16000, 16000)))
  clip = ClipSound([track[: 8 * RATE] for track in tracks[1]])
  assert matching.rank(clip, index) > matching.rank(clip, other) + 0.2
