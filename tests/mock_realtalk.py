"""A mock of RealTalk and DualTalk with known truth, from the embedded conversations.

RealTalk's part: long videos of two people side by side (drawn faces whose mouths open with the true jaw and that move with the
true head; or any film), their voices mixed to one track, compressed. DualTalk's part: clips cut from the same conversations
with the two voices apart, each damaged in a known way, and both motions. `Truth` says where each clip lies, and who is where.
"""

import dataclasses
import fractions
import io
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import av
import numpy as np
import scipy.signal
import soundfile
from PIL import Image, ImageDraw

from rsatalker_jax.data.audio import resample, write_wav
from rsatalker_jax.data.demo import dyads, voices
from rsatalker_jax.types import FPS, MOTION_GROUPS, SAMPLE_RATE, SAMPLES_PER_FRAME

WIDTH, HEIGHT = 320, 180
# Container, codec of pictures and of sound, bits a second, rate: RealTalk's own form first.
FORMATS = (
    ("avi", "mpeg4", "libmp3lame", 64_000, 44_100),
    ("avi", "libx264", "libmp3lame", 32_000, 22_050),
    ("mp4", "libx264", "aac", 48_000, 44_100),
    ("mkv", "libx264", "libopus", 24_000, 48_000),
)


@dataclasses.dataclass(frozen=True)
class Scene:
  """A conversation as it was filmed.

  Attributes:
    name: of the dialogue.
    tracks: both voices, as long as each other.
    motions: both motions, (T, 56).
    left: the speaker on the left, 1 or 2.
    film: draws a frame, (H, W, 3), in place of the drawn faces; None: those.
  """

  name: str
  tracks: tuple[np.ndarray, np.ndarray]
  motions: tuple[np.ndarray, np.ndarray]
  left: int
  film: Callable[[int], np.ndarray] | None = None

  @property
  def frames(self) -> int:
    return min(len(self.motions[0]), len(self.tracks[0]) // SAMPLES_PER_FRAME)


@dataclasses.dataclass(frozen=True)
class Truth:
  """Attributes:
    conversation: DualTalk's name.
    case: how it was damaged.
    video: where it is; "" where it is in none.
    frame: the video's frame that shows the clip's first, a fraction.
    left: the speaker on the left, 1 or 2; 0: not to be told.
    frames: length.
  """

  conversation: str
  case: str
  video: str
  frame: float
  left: int
  frames: int


def load_scene(dialogue: voices.Dialogue, performance: int = 0, left: int = 1) -> Scene:
  """A dialogue of the embedded ones, performed."""
  tracks = tuple(voices.decode_track(path) for path in dialogue.tracks)
  frames = int(dialogue.duration * FPS + 1e-6)
  loudness = np.stack([dyads.loudness_track(track, frames) for track in tracks])
  motions = dyads.simulate_dyad(dialogue, performance, loudness=loudness).motion
  return Scene(dialogue.id, tracks, (motions[0], motions[1]), left)


# --- Pictures


def draw_face(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], motion: np.ndarray, tint: int) -> None:
  """A head that shifts with its rotation, and a mouth that opens with the jaw, in a box of pixels."""
  left, top, right, bottom = box
  pitch, yaw, _ = motion[MOTION_GROUPS["pose"]]
  unit = (right - left) / 10
  x, y = (left + right) / 2 + 12 * unit * yaw, (top + bottom) / 2 + 12 * unit * pitch
  ellipse = lambda cx, cy, rx, ry, fill: draw.ellipse([cx - rx, cy - ry, cx + rx, cy + ry], fill=fill)
  ellipse(x, y, 3 * unit, 4 * unit, (200 + tint, 160, 130 - tint))
  for eye in (-1, 1):
    ellipse(x + eye * 1.2 * unit + 4 * unit * yaw, y - 1.2 * unit, 0.4 * unit, 0.25 * unit, (40, 40, 40))
  opening = 0.08 + 6 * max(float(motion[MOTION_GROUPS["jaw"]][0]), 0.0)
  ellipse(x + 3 * unit * yaw, y + 1.9 * unit, 0.9 * unit, min(opening, 1.6) * unit, (90, 20, 30))


def draw_pair(left: np.ndarray, right: np.ndarray, background: np.ndarray, noise: np.random.Generator | None) -> np.ndarray:
  """Both people's frame at one moment."""
  image = Image.fromarray(background)
  draw = ImageDraw.Draw(image)
  for side, motion in enumerate((left, right)):
    middle = WIDTH * (0.25 + 0.5 * side)
    draw_face(draw, (middle - 55, HEIGHT / 2 - 70, middle + 55, HEIGHT / 2 + 80), motion, 20 * side)
  frame = np.asarray(image)
  if noise is None:
    return frame
  grain = noise.integers(-4, 5, (HEIGHT, WIDTH, 1), np.int16)
  return np.clip(frame + grain, 0, 255).astype(np.uint8)


def face_boxes(side: int) -> tuple[float, float, float, float]:
  """The box of landmarks of a drawn face, as a detector might find it."""
  middle = WIDTH * (0.25 + 0.5 * side)
  return middle - 28, HEIGHT / 2 - 25, middle + 28, HEIGHT / 2 + 35


def write_film(
    path: pathlib.Path, frames: Iterable[np.ndarray], sound: np.ndarray | None, form=FORMATS[0], quality: int = 24, fps: int = FPS
) -> None:
  """A compressed video with mono sound of 16 kHz."""
  _, picture_codec, sound_codec, bits, rate = form
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(picture_codec, rate=fps)
    stream.pix_fmt = "yuv420p"
    if picture_codec == "libx264":
      stream.options = {"crf": str(quality), "preset": "veryfast"}
    else:
      stream.bit_rate = 800_000
    audio = None
    if sound is not None:
      audio = container.add_stream(sound_codec, rate=rate, layout="mono")
      audio.bit_rate = bits
    for number, frame in enumerate(frames):
      if not number:
        stream.height, stream.width = frame.shape[:2]
      picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
      picture.pts, picture.time_base = number, fractions.Fraction(1, fps)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
    if audio is not None:
      # AVI does not say by how much an encoder of mp3 is late; the file is made so that sound and pictures meet.
      late = round(1105 * SAMPLE_RATE / rate) if sound_codec == "libmp3lame" else 0
      encode_sound(container, audio, sound[late:], rate)


def encode_sound(container, stream, sound: np.ndarray, rate: int) -> None:
  resampler = av.AudioResampler(format=stream.codec_context.codec.audio_formats[0].name, layout="mono", rate=rate)
  packed = av.AudioFrame.from_ndarray(np.clip(sound, -1, 1)[None].astype(np.float32), format="flt", layout="mono")
  packed.sample_rate, packed.pts = SAMPLE_RATE, 0
  for piece in [*resampler.resample(packed), *resampler.resample(None)]:
    container.mux(stream.encode(piece))
  container.mux(stream.encode())


def through_codec(wav: np.ndarray, codec: str = "libmp3lame", bits: int = 24_000) -> np.ndarray:
  """A voice as it comes out of a codec, its delay taken away."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="matroska") as container:
    stream = container.add_stream(codec, rate=24_000, layout="mono")
    stream.bit_rate = bits
    encode_sound(container, stream, wav, 24_000)
  buffer.seek(0)
  with av.open(buffer) as container:
    decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
  decoded = resample(decoded.astype(np.float32), 24_000, SAMPLE_RATE)
  lags = scipy.signal.correlate(decoded[: 4 * SAMPLE_RATE], wav[: 4 * SAMPLE_RATE], method="fft")
  delay = int(np.argmax(lags)) - (min(len(wav), 4 * SAMPLE_RATE) - 1)
  decoded = decoded[delay:] if delay >= 0 else np.pad(decoded, (-delay, 0))
  return np.pad(decoded[: len(wav)], (0, max(len(wav) - len(decoded), 0)))


def music(samples: int, seed: int) -> np.ndarray:
  """Chords of a few partials that change every half second, with a beat."""
  r, time = np.random.default_rng(seed), np.arange(samples) / SAMPLE_RATE
  out = np.zeros(samples)
  for start in range(0, samples, SAMPLE_RATE // 2):
    part = slice(start, min(start + SAMPLE_RATE // 2, samples))
    root = 110 * 2 ** (r.integers(0, 12) / 12)
    for ratio in (1, 1.25, 1.5, 2, 3, 4):
      out[part] += np.sin(2 * np.pi * root * ratio * time[part] + r.uniform(0, 6)) / ratio
    beat = r.normal(size=part.stop - start) * np.exp(-np.arange(part.stop - start) / 800)
    out[part] += 2 * beat
  return (0.08 * out / out.std()).astype(np.float32)


# --- Long videos


def make_video(
    path: pathlib.Path, scenes: Sequence[Scene], form=FORMATS[0], *, seed: int = 0, music_level: float = 0.0,
    repeat: tuple[int, int, int] | None = None, noise: bool = True,
) -> list[int]:
  """Writes a long video of scenes with pauses between; returns the first frame of each.

  Args:
    music_level: of music under everything.
    repeat: (scene, first frame, frames): that stretch is said once more at the end, in sound and picture.
  """
  r = np.random.default_rng(seed)
  background = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
  background[:, :, 2] = np.linspace(80, 160, WIDTH).astype(np.uint8)
  starts, sounds, plan, now = [], [], [], 0
  still = np.zeros(56, np.float32)

  def pause(frames: int) -> None:
    nonlocal now
    sounds.append(0.0005 * r.normal(size=frames * SAMPLES_PER_FRAME))
    plan.extend([(still, still, None)] * frames)
    now += frames

  def show(scene: Scene, first: int, frames: int) -> None:
    nonlocal now
    samples = slice(first * SAMPLES_PER_FRAME, (first + frames) * SAMPLES_PER_FRAME)
    sounds.append(scene.tracks[0][samples] + scene.tracks[1][samples])
    order = (0, 1) if scene.left == 1 else (1, 0)
    for t in range(first, first + frames):
      film = None if scene.film is None else (scene.film, t)
      plan.append((scene.motions[order[0]][t], scene.motions[order[1]][t], film))
    now += frames

  pause(int(r.integers(20, 60)))
  for scene in scenes:
    starts.append(now)
    show(scene, 0, scene.frames)
    pause(int(r.integers(15, 50)))
  if repeat is not None:
    scene, first, frames = repeat
    show(scenes[scene], first, frames)
    pause(20)
  sound = np.concatenate(sounds).astype(np.float32)
  if music_level:
    sound = sound + music_level * music(len(sound), seed)
  sound = 0.7 * sound / max(float(np.abs(sound).max()), 1e-6)
  grain = np.random.default_rng(seed + 1) if noise else None
  frames = (draw_pair(a, b, background, grain) if film is None else film[0](film[1]) for a, b, film in plan)
  write_film(path, frames, sound, form)
  return starts


# --- Clips


def _leak(tracks, level):
  return [tracks[0] + level * tracks[1], tracks[1] + level * tracks[0]]


def _play(wav: np.ndarray, speed: float) -> np.ndarray:
  """As heard when the clip runs slower than the video by `speed`: 1 / (1 + speed) times as long."""
  return resample(wav, round(1_000_000 * (1 + speed)), 1_000_000)


def _room(wav: np.ndarray, seed: int) -> np.ndarray:
  """With a short reverberation."""
  r = np.random.default_rng(seed)
  decay = r.normal(size=2400) * np.exp(-np.arange(2400) / 500) * 0.05
  decay[0] = 1.0
  return scipy.signal.fftconvolve(wav, decay)[: len(wav)].astype(np.float32)


# How the two voices of a clip are damaged, by case; each gives both tracks again, of nearly the same length.
DAMAGE: dict[str, Callable[[list[np.ndarray], int], list[np.ndarray]]] = {
    "plain": lambda tracks, seed: tracks,
    "leaking": lambda tracks, seed: _leak(tracks, 0.3),
    "attenuated": lambda tracks, seed: [tracks[0], 0.1 * tracks[1]],
    "gain": lambda tracks, seed: [0.05 * track for track in tracks],
    "telephone": lambda tracks, seed: [resample(resample(track, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE) for track in tracks],
    "codec": lambda tracks, seed: [through_codec(track) for track in tracks],
    "noise": lambda tracks, seed: [t + 0.01 * np.random.default_rng(seed + i).normal(size=len(t)) for i, t in enumerate(tracks)],
    "room": lambda tracks, seed: [_room(track, seed) for track in tracks],
    "drift+1%": lambda tracks, seed: [_play(track, 0.01) for track in tracks],
    "drift-2%": lambda tracks, seed: [_play(track, -0.02) for track in tracks],
    "all": lambda tracks, seed: [through_codec(0.3 * _play(t, 0.015)) for t in _leak(tracks, 0.2)],
}


def write_clip(
    folder: pathlib.Path, name: str, tracks: Sequence[np.ndarray], motions: Sequence[np.ndarray], cam: tuple = (8.5, 0.0, 0.0)
) -> None:
  """A conversation's four files, as DualTalk has them."""
  folder.mkdir(parents=True, exist_ok=True)
  for speaker, (track, motion) in enumerate(zip(tracks, motions), 1):
    write_wav(folder / f"{name}_speaker{speaker}.wav", np.asarray(track, np.float32))
    frames = len(motion)
    arrays = dict(
        shape=np.zeros((frames, 100)), tex=np.zeros((frames, 50)), exp=motion[:, :50],
        pose=np.concatenate([motion[:, 53:], motion[:, 50:53]], axis=1), cam=np.tile(cam, (frames, 1)), light=np.zeros((frames, 9, 3)),
    )  # fmt: skip
    arrays = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    np.savez(folder / f"{name}_speaker{speaker}.npz", **arrays, basis="arkit")


def cut_clip(
    folder: pathlib.Path, name: str, scene: Scene, first: int, frames: int, *, video: str, scene_frame: int, case: str = "plain", seed: int = 0
) -> Truth:
  """Cuts a clip from a scene, damages and writes it.

  Args:
    first, frames: of the scene.
    video, scene_frame: where the scene begins.
  """
  samples = slice(first * SAMPLES_PER_FRAME, (first + frames) * SAMPLES_PER_FRAME)
  tracks = DAMAGE[case]([track[samples] for track in scene.tracks], seed)
  length = len(tracks[0]) // SAMPLES_PER_FRAME
  # Motion is on the clip's clock: where that runs slower or faster, so does the motion.
  places = np.clip(np.rint(first + np.arange(length) * frames / length).astype(int), 0, scene.frames - 1)
  write_clip(folder, name, tracks, [motion[places] for motion in scene.motions])
  return Truth(name, case, video, scene_frame + first, scene.left, length)


def read_frames(path: pathlib.Path) -> Iterator[np.ndarray]:
  """Every frame of a film in order, (H, W, 3)."""
  with av.open(str(path)) as container:
    for frame in container.decode(video=0):
      yield frame.to_ndarray(format="rgb24")


def read_sound_file(path: pathlib.Path) -> np.ndarray:
  return soundfile.read(path, dtype="float32")[0]
