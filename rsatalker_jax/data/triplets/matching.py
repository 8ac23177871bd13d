"""Where in a video's sound a conversation's clip lies: its beginning, its speed, and how sure that is (Sec. 4.1).

A clip has two voices, one track each; the video has them mixed. So the sum of the tracks is looked for, in two steps:

- **Coarse, log-mel, by FFT.** Energies of mel bands without their mean of the last second, so that neither gain nor a
  microphone's colour counts. A clip is cut into pieces; each piece's normalised correlation with the whole video is one FFT a
  band (overlap-save, blocks whose transforms are kept), and pieces are put together for every speed between -2.5 and 2.5 %.
- **Fine, the waveform.** Short windows of clip and video are compared by the mean cosine of their phase differences in the
  band of speech (GCC-PHAT: Knapp and Carter, 1976). It is 1 for the same sound at any gain, and about 1 / sqrt(bins) for any
  two others, whoever speaks and whatever is said. A line through the windows' offsets is the beginning and the speed.

The confidence is `Placement.coherence`, that phase agreement on the fitted line, averaged over windows. A placement is accepted
when it is high, when most windows take part, and when no other place of the video is as good (`Rules`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
from jaxtyping import Bool, Complex, Float, Int8

from rsatalker_jax.data.audio import resample
from rsatalker_jax.types import SAMPLE_RATE

# --- What is compared: 50 frames a second of 20 mel bands from 150 to 4500 Hz, which every codec and telephone keeps.
FEATURE_RATE = 50
_HOP = SAMPLE_RATE // FEATURE_RATE
_WINDOW = 2 * _HOP
_BANDS = 20
_LOWEST, _HIGHEST = 150.0, 4500.0
_FLOOR = 1e-4  # Of the mean energy: below it is noise.
_QUANTUM = 0.04  # Features are kept as whole numbers of these, in one byte each.

# --- The coarse search.
_PIECE = 4 * FEATURE_RATE  # Short enough that a speed of 2 % stays within 40 ms of its middle.
_BLOCK = 1 << 13  # Frames of a transform: 160 s.
_MAX_SPEED = 0.025
_SPEED_STEP = 0.0025
_APART = 0.4  # Seconds: candidates nearer than this are one.

# --- The fine one.
_FINE = 8192  # Samples of a window, half a second.
_REACH = 1024  # Samples to each side that are searched: more than a feature frame and its error.
_FEW_WINDOWS = 12  # For a first look.
_MANY_WINDOWS = 32  # For the answer, or one a second of longer clips.
_QUIET = 10 ** (-30 / 20)  # Windows so far below the loudest say nothing.
_SURE_SPEED = 8.0  # Seconds of clip whose features tell the speed as well as phases need it.
_NEAR = 16  # Samples within which a window's offset agrees with the line.


@dataclasses.dataclass(frozen=True)
class Rules:
  """When a placement is accepted. benchmarks/triplet_matching.py prints what known negatives reach.

  Attributes:
    coherence: at least this.
    short_coherence: likewise, of clips below `short` seconds.
    short: seconds.
    agreement: share of the clip's windows that must lie on the line.
    gap: seconds of the clip in a row that may not.
    rival: another place may reach this share of the coherence at most.
    shortest: seconds below which nothing is accepted.
  """

  coherence: float = 0.10
  short_coherence: float = 0.30
  short: float = 2.0
  agreement: float = 0.75
  gap: float = 1.5
  rival: float = 0.5
  shortest: float = 1.0


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where a clip lies in a video.

  Attributes:
    start: seconds of the video's clock at the clip's first sample.
    speed: seconds of video for a second of clip, minus 1.
    coherence: agreement of phases on the line, averaged over windows; below 0.05 for sound that is not there.
    agreement: share of the windows that lie on the line.
    gap: seconds of the longest stretch of three and more windows that do not.
    similarity: of log-mel features there, -1 to 1.
  """

  start: float
  speed: float
  coherence: float
  agreement: float
  gap: float
  similarity: float

  def video_time(self, seconds: Float[np.ndarray, "n"] | float) -> Float[np.ndarray, "n"] | float:
    """The video's clock at some moments of the clip."""
    return self.start + (1 + self.speed) * seconds


@dataclasses.dataclass(frozen=True)
class Match:
  """What was found for a clip in a video.

  Attributes:
    best: the best placement; None where there is nothing to compare.
    rival: coherence of the best other place.
    reason: why it is refused, "" if it is accepted.
  """

  best: Placement | None
  rival: float
  reason: str

  @property
  def accepted(self) -> bool:
    return not self.reason


# --- Features


def sound_features(wav: Float[np.ndarray, "S"]) -> Int8[np.ndarray, "n bands"]:
  """Log-mel energies without their running mean, 50 a second: what is kept of a sound to find others in it.

  Frame t is centred on t / 50 s.
  """
  count = len(wav) // _HOP + 1
  padded = np.pad(np.asarray(wav, np.float32), (_WINDOW // 2, _WINDOW))
  filters, window = _mel_filters(), np.hanning(_WINDOW).astype(np.float32)
  energies = np.empty((count, _BANDS), np.float32)
  for first in range(0, count, 4096):  # In pieces, so that hours of sound take no more memory than minutes.
    last = min(first + 4096, count)
    frames = np.lib.stride_tricks.sliding_window_view(padded[first * _HOP : (last - 1) * _HOP + _WINDOW], _WINDOW)[::_HOP]
    spectra = np.abs(scipy.fft.rfft(frames * window, axis=1)) ** 2
    energies[first:last] = spectra @ filters
  logs = np.log(energies + _FLOOR * max(float(energies.mean()), 1e-12))
  moving = logs - scipy.ndimage.uniform_filter1d(logs, FEATURE_RATE, axis=0, mode="nearest")
  return np.rint(np.clip(moving / _QUANTUM, -127, 127)).astype(np.int8)


@functools.cache
def _mel_filters() -> Float[np.ndarray, "frequencies bands"]:
  """Triangles, evenly spaced in mel, of unit sum."""
  to_mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
  edges = 700 * (10 ** (np.linspace(to_mel(_LOWEST), to_mel(_HIGHEST), _BANDS + 2) / 2595) - 1)
  hertz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None]
  rising, falling = (hertz - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - hertz) / np.diff(edges)[1:]
  filters = np.clip(np.minimum(rising, falling), 0, None)
  return (filters / np.maximum(filters.sum(axis=0), 1e-9)).astype(np.float32)


class SoundIndex:
  """A video's features, with the transforms of their blocks: made once, searched for many clips."""

  def __init__(self, features: Int8[np.ndarray, "n bands"]):
    self._features = features
    self._energy = np.concatenate([[0.0], np.cumsum(np.sum(np.square(features, dtype=np.float32), axis=1, dtype=np.float64))])

  def __len__(self) -> int:
    return len(self._features)

  @functools.cached_property
  def _blocks(self) -> Complex[np.ndarray, "blocks bands f"]:
    """Transforms of blocks that overlap by a piece; one piece of silence precedes the first."""
    step = _BLOCK - _PIECE
    count = -(-(len(self) + _PIECE) // step)
    padded = np.zeros((count * step + _PIECE, _BANDS), np.float32)
    padded[_PIECE : _PIECE + len(self)] = self._features
    blocks = [padded[i * step : i * step + _BLOCK].T for i in range(count)]
    return scipy.fft.rfft(np.stack(blocks), axis=2)

  def correlate(self, piece: "_Piece") -> Float[np.ndarray, "lags"]:
    """Normalised correlation of a piece that begins at each of the frames -200 ... n - 1; entry 0 is frame -200."""
    products = scipy.fft.irfft(np.einsum("nbf,bf->nf", self._blocks, piece.transform), _BLOCK, axis=1)
    lags = products[:, : _BLOCK - _PIECE].reshape(-1)[: len(self) + _PIECE]
    first = np.arange(len(lags)) - _PIECE
    energy = self._energy[np.clip(first + piece.length, 0, len(self))] - self._energy[np.clip(first, 0, len(self))]
    # A stretch of the video that is much quieter than the piece says nothing either.
    return (lags / np.sqrt(np.maximum(energy, 0.1 * piece.energy) * piece.energy)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A stretch of a clip: its first frame, its length, the conjugate transform of its features, their energy."""

  first: int
  length: int
  transform: Complex[np.ndarray, "bands f"]
  energy: float


class ClipSound:
  """A clip to be found: its voices mixed, and their features in pieces."""

  def __init__(self, voices: Sequence[Float[np.ndarray, "_"]]):
    self.wav = np.zeros(max(map(len, voices)), np.float32)
    for voice in voices:
      self.wav[: len(voice)] += voice

  @property
  def seconds(self) -> float:
    return len(self.wav) / SAMPLE_RATE

  @functools.cached_property
  def pieces(self) -> list[_Piece]:
    """All that have sound in them."""
    features = sound_features(self.wav).astype(np.float32)
    # Short clips too have four, as a speed can only be told from several.
    count = max(round(len(features) / _PIECE), min(round(len(features) / FEATURE_RATE), 4), 1)
    edges = np.linspace(0, len(features), count + 1).astype(int)
    pieces = []
    for first, last in zip(edges, edges[1:]):
      values = features[first : min(last, first + _PIECE)]
      energy = float(np.sum(values**2))
      transform = np.conj(scipy.fft.rfft(values.T, _BLOCK, axis=1))
      pieces.append(_Piece(int(first), len(values), transform, energy))
    most = max(piece.energy for piece in pieces)
    return [piece for piece in pieces if piece.energy > max(0.05 * most, 1.0)]


# --- Coarse


class Candidate(NamedTuple):
  """A place that sounds like a clip: its beginning in seconds, the speed, and how similar log-mel features are, -1 to 1."""

  start: float
  speed: float
  similarity: float


def correlate_pieces(clip: ClipSound, index: SoundIndex) -> list[Float[np.ndarray, "lags"]]:
  """`SoundIndex.correlate` of every piece of a clip."""
  return [index.correlate(piece) for piece in clip.pieces]


def find_candidates(clip: ClipSound, found: Sequence[Float[np.ndarray, "lags"]], count: int = 6) -> list[Candidate]:
  """The places of a video that sound most like a clip, that lie apart, the most similar first.

  Args:
    clip: what is looked for.
    found: `correlate_pieces` with the video.
    count: how many places at most.
  """
  pieces = clip.pieces
  if not pieces:
    return []
  weights = np.sqrt([piece.energy for piece in pieces])
  weights = weights / weights.sum()
  total = len(found[0])
  # Where the clip begins, in frames: it may begin before the video, as far as one piece.
  best = np.full(total, -1.0, np.float32)
  speeds = np.zeros(total, np.float32)
  last_first = pieces[-1].first
  # Speeds that move no piece by a frame are one.
  steps = 0 if last_first * _MAX_SPEED < 1 else round(_MAX_SPEED / _SPEED_STEP)
  for speed in np.arange(-steps, steps + 1) * _SPEED_STEP:
    scores = np.zeros(total, np.float32)
    for piece, correlation, weight in zip(pieces, found, weights):
      # The middle of the piece stays in place when its own stretch is ignored.
      shift = round(piece.first * (1 + speed) + piece.length * speed / 2)
      scores[max(-shift, 0) : max(total - shift, 0)] += weight * correlation[max(shift, 0) : total + min(shift, 0)]
    better = scores > best
    best, speeds = np.where(better, scores, best), np.where(better, np.float32(speed), speeds)
  apart = round(_APART * FEATURE_RATE)
  peaks = np.flatnonzero((best == scipy.ndimage.maximum_filter1d(best, 2 * apart + 1)) & (best > 0))
  peaks = peaks[np.argsort(-best[peaks], kind="stable")][:count]
  return [Candidate((int(peak) - _PIECE) / FEATURE_RATE, float(speeds[peak]), float(best[peak])) for peak in peaks]


def _refine_speed(
    clip: ClipSound, found: Sequence[Float[np.ndarray, "lags"]], start: float, speed: float
) -> tuple[float, float]:
  """A line through the pieces' own best offsets, to a few milliseconds."""
  offsets, middles, weights = [], [], []
  for piece, correlation in zip(clip.pieces, found):
    middle = (piece.first + piece.length / 2) / FEATURE_RATE
    guess = (start + middle * (1 + speed)) * FEATURE_RATE - piece.length / 2 + _PIECE
    first = int(np.clip(round(guess) - 5, 1, max(len(correlation) - 12, 1)))
    near = correlation[first : first + 11]
    if len(near) < 11:
      continue
    top = int(np.argmax(near)) + first
    if not 0 < top < len(correlation) - 1 or correlation[top] < 0.2:
      continue
    before, peak, after = correlation[top - 1 : top + 2]
    bend = before - 2 * peak + after
    place = top + (0.5 * (before - after) / bend if bend < 0 else 0.0)
    offsets.append((place - _PIECE + piece.length / 2) / FEATURE_RATE - middle)
    middles.append(middle)
    weights.append(float(correlation[top]))
  if not offsets:
    return start, speed
  line = _fit_line(np.array(middles), np.array(offsets), np.array(weights), tolerance=0.012)
  return (start, speed) if line is None else (line[0], line[1])


def _fit_line(
    x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], weights: Float[np.ndarray, "n"], tolerance: float
) -> tuple[float, float] | None:
  """y = a + b x through most of the points, |b| within the speeds: the pair of points on whose line the most weight lies,
  then least squares of those. A short stretch leaves b at 0."""
  if np.ptp(x) < 1.5:
    return float(np.average(y, weights=weights)), 0.0
  # Level lines through each point, and lines through points that lie far apart.
  i, j = np.nonzero(x[None] - x[:, None] > 0.3 * np.ptp(x))
  anchors = np.concatenate([np.arange(len(x)), i])
  slopes = np.concatenate([np.zeros(len(x)), (y[j] - y[i]) / (x[j] - x[i])])
  anchors, slopes = anchors[np.abs(slopes) <= 1.2 * _MAX_SPEED], slopes[np.abs(slopes) <= 1.2 * _MAX_SPEED]
  close = np.abs(y - y[anchors, None] - slopes[:, None] * (x - x[anchors, None])) <= tolerance
  # Of lines through the same points the level one is the likeliest: two clocks seldom differ.
  inliers = close[np.argmax(close @ weights + 1e-6 * (slopes == 0))]
  if inliers.sum() < 2 or np.ptp(x[inliers]) < 1.5:
    return None
  slope, constant = np.polyfit(x[inliers], y[inliers], 1, w=np.sqrt(weights[inliers]))
  return float(constant), float(slope)


# --- Fine


class _Windows:
  """Windows of a clip that have sound in them, spread over it."""

  def __init__(self, wav: Float[np.ndarray, "S"], most: int):
    length = min(_FINE, len(wav))
    starts = np.arange(0, len(wav) - length + 1, max(length // 2, 1))
    levels = np.array([np.sqrt(np.mean(np.square(wav[s : s + length]))) for s in starts])
    starts = starts[levels > max(_QUIET * levels.max(initial=0), 1e-6)]
    if len(starts) > most:
      starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    self.starts, self.length = starts, length

  @property
  def middles(self) -> Float[np.ndarray, "n"]:
    return (self.starts + self.length / 2) / SAMPLE_RATE


def _phase_agreement(
    clip: Float[np.ndarray, "S"], windows: _Windows, video: Float[np.ndarray, "V"], places: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
  """For each window the greatest agreement of phases, by its absolute value, and the seconds behind `places` where it is.

  Args:
    places: where in the video each window should begin, seconds.
  """
  size = scipy.fft.next_fast_len(windows.length + 2 * _REACH, real=True)
  hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
  band = (hertz >= _LOWEST) & (hertz <= 3800)
  firsts = np.rint(places * SAMPLE_RATE).astype(int) - _REACH
  ours, theirs = np.zeros((len(places), size), np.float32), np.zeros((len(places), size), np.float32)
  for i, (start, first) in enumerate(zip(windows.starts, firsts)):
    ours[i, : windows.length] = clip[start : start + windows.length]
    low, high = max(first, 0), min(first + windows.length + 2 * _REACH, len(video))
    if low < high:
      theirs[i, low - first : high - first] = video[low:high]
  cross = scipy.fft.rfft(theirs, axis=1) * np.conj(scipy.fft.rfft(ours, axis=1))
  cross = np.where(band, cross / np.maximum(np.abs(cross), 1e-12), 0)
  # irfft has both halves of the spectrum: the mean over the band's bins.
  agreement = scipy.fft.irfft(cross, size, axis=1)[:, : 2 * _REACH + 1] * (size / (2 * max(band.sum(), 1)))
  best = np.argmax(np.abs(agreement), axis=1)
  values = np.abs(agreement[np.arange(len(best)), best])
  return values, (firsts + best) / SAMPLE_RATE - places


def _measure(
    clip: Float[np.ndarray, "S"], video: Float[np.ndarray, "V"], start: float, speed: float, most: int = _FEW_WINDOWS
) -> tuple[float, float, float, float, float]:
  """The line through the windows of a clip near a start and a speed: start, speed, coherence, agreement, gap.

  The clip is played at the speed first: the phases of 0.5 s run apart at half a per mille.
  """
  played = clip if abs(speed) < 1e-5 else _play(clip, speed)
  windows = _Windows(played, most)
  nothing = start, speed, 0.0, 0.0, len(clip) / SAMPLE_RATE
  if not len(windows.starts):
    return nothing
  values, offsets = _phase_agreement(played, windows, video, start + windows.starts / SAMPLE_RATE)
  line = _fit_line(windows.middles, offsets, values**2, tolerance=_NEAR / SAMPLE_RATE)
  if line is None:
    return nothing
  near = np.abs(offsets - line[0] - line[1] * windows.middles) <= _NEAR / SAMPLE_RATE
  coherence, agreement = float(np.mean(values * near)), float(np.mean(near))
  return start + line[0], (1 + speed) * (1 + line[1]) - 1, coherence, agreement, _longest_gap(windows, near)


def _longest_gap(windows: _Windows, near: Bool[np.ndarray, "n"]) -> float:
  """Seconds from the first to the end of the last of three and more windows in a row that do not agree."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], ~near, [0]]).astype(int)))
  runs = [(first, last) for first, last in zip(edges[::2], edges[1::2] - 1) if last - first >= 2]
  return max((float(windows.starts[b] - windows.starts[a] + windows.length) / SAMPLE_RATE for a, b in runs), default=0.0)


def _play(wav: Float[np.ndarray, "S"], speed: float) -> Float[np.ndarray, "S2"]:
  """The wav, 1 + speed times as long."""
  return resample(wav, 1_000_000, round(1_000_000 * (1 + speed)))


def _refine(
    clip: ClipSound, video: Float[np.ndarray, "V"], found: Sequence[Float[np.ndarray, "lags"]], candidate: Candidate
) -> Placement:
  """The placement near a candidate: to a fraction of a millisecond where the waveform is the same."""
  guesses = [_refine_speed(clip, found, candidate.start, candidate.speed)]
  if abs(candidate.speed) <= 2 * _SPEED_STEP:
    guesses.append((candidate.start, 0.0))
  return max((_measure_twice(clip, video, *guess, candidate.similarity) for guess in guesses), key=lambda p: p.coherence)


def _measure_twice(
    clip: ClipSound, video: Float[np.ndarray, "V"], start: float, speed: float, similarity: float
) -> Placement:
  """On the line that was found windows agree better, and more of them do."""
  first = _measure(clip.wav, video, start, speed)
  if first[2] > 0.05:
    first = _measure(clip.wav, video, first[0], first[1], max(_MANY_WINDOWS, round(clip.seconds)))
  return Placement(*first, similarity)


def _search_speeds(clip: ClipSound, video: Float[np.ndarray, "V"], placement: Placement) -> Placement:
  """Other speeds near a placement's: features leave that of a short clip open to some per mille, which phases do not bear."""
  middle = clip.seconds / 2
  reach = min(max(0.004, 0.03 / max(clip.seconds, 1)), _MAX_SPEED)
  for step in np.arange(-reach, reach + 1e-9, 0.0008).tolist():
    other = _measure(clip.wav, video, placement.start - step * middle, placement.speed + step)
    if other[2] > placement.coherence:
      placement = Placement(*other, placement.similarity)
  return _better(placement, _measure_twice(clip, video, placement.start, placement.speed, placement.similarity))


def _better(one: Placement, other: Placement) -> Placement:
  return other if other.coherence > one.coherence else one


def place_clip(clip: ClipSound, video: Float[np.ndarray, "V"], index: SoundIndex, rules: Rules = Rules()) -> Match:
  """Finds a clip in a video's sound, or says why it is not to be trusted to be there.

  Args:
    clip: both voices.
    video: the sound, 16 kHz, of any length.
    index: `SoundIndex(sound_features(video))`.
    rules: when a placement is accepted.
  """
  found = correlate_pieces(clip, index)
  candidates = find_candidates(clip, found)
  # What is much less similar than the best cannot be as coherent over half of the clip.
  candidates = [candidate for candidate in candidates if candidate.similarity > 0.35 * candidates[0].similarity]
  placements = [_refine(clip, video, found, candidate) for candidate in candidates]
  if not placements:
    return Match(None, 0.0, "silence: there is nothing to compare")
  # The most similar first, and of clips so short that features may mislead by a little the next, too.
  for i in range(min(len(placements), 2)):
    enough = 0.35 if clip.seconds < _SURE_SPEED else rules.coherence
    if max(placement.coherence for placement in placements) < enough and placements[i].similarity > 0.3:
      placements[i] = _search_speeds(clip, video, placements[i])
  order = sorted(range(len(placements)), key=lambda i: -placements[i].coherence)
  best = placements[order[0]]
  # The video says it again as fast as it said it first.
  others = [_better(p, _measure_twice(clip, video, candidates[i].start, best.speed, p.similarity))
            for i in order[1:] if abs((p := placements[i]).start - best.start) > _APART]  # fmt: skip
  rival = max(others, key=lambda p: p.coherence, default=None)
  return Match(best, rival.coherence if rival else 0.0, _judge(clip, best, rival, len(video) / SAMPLE_RATE, rules))


def _judge(clip: ClipSound, best: Placement, rival: Placement | None, seconds: float, rules: Rules) -> str:
  needed = rules.short_coherence if clip.seconds < rules.short else rules.coherence
  if clip.seconds < rules.shortest:
    return f"too short: {clip.seconds:.2f} s, and {rules.shortest} s can be told apart"
  if best.coherence < needed:
    return f"not found: coherence {best.coherence:.3f}, and {needed:.2f} is needed"
  if rival is not None and rival.coherence > rules.rival * best.coherence:
    return f"ambiguous: coherence {best.coherence:.3f} at {best.start:.2f} s and {rival.coherence:.3f} at {rival.start:.2f} s"
  if best.agreement < rules.agreement:
    return f"only in part: {100 * best.agreement:.0f} % of the clip is there"
  if best.gap > rules.gap:
    return f"only in part: {best.gap:.1f} s in a row are not there"
  end = float(best.video_time(clip.seconds))
  if best.start < -0.5 / 25 or end > seconds + 0.5:
    return f"beyond the video: {best.start:.2f} to {end:.2f} s of {seconds:.2f} s"
  return ""


def rank(clip: ClipSound, index: SoundIndex) -> float:
  """How much the likeliest place of a video sounds like a clip, by two of its pieces: to choose among many videos."""
  pieces = sorted(clip.pieces, key=lambda piece: -piece.energy)[:2]
  return float(np.mean([index.correlate(piece).max(initial=-1.0) for piece in pieces])) if pieces else -1.0
