"""Degraded voices against closed forms: rooms, noise at its level, bands, codecs; chains that follow from seed and voice alone."""

import numpy as np
import pytest
import scipy.signal
import soundfile

from oracles import needs
from rsatalker_jax.data import sound
from rsatalker_jax.data.sound import chain, degradations
from rsatalker_jax.errors import InputError

RATE = 16_000


def make_voice(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
  """Noise of speech's band in syllables, with a pause of a third."""
  rng = np.random.default_rng(seed)
  time = np.arange(round(seconds * RATE)) / RATE
  band = scipy.signal.sosfilt(scipy.signal.butter(2, (150, 3000), "bandpass", fs=RATE, output="sos"), rng.normal(size=len(time)))
  syllables = (0.5 - 0.5 * np.cos(2 * np.pi * 4 * time)) * (time % 1.5 < 1.0)
  return (0.1 * band * syllables).astype(np.float32)


VOICE = make_voice()


def decibels(power: float) -> float:
  return 10 * np.log10(power)


def gain_at(change, hertz: float) -> float:
  """What a change does to a sine, in dB, away from the ends."""
  sine = 0.1 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE).astype(np.float32)
  middle = slice(RATE // 4, -RATE // 4)
  return decibels(np.mean(change(sine)[middle] ** 2) / np.mean(sine[middle] ** 2))


def lag(before: np.ndarray, after: np.ndarray) -> int:
  """Samples by which `after` is late."""
  lags = scipy.signal.correlation_lags(len(after), len(before))
  return int(lags[np.argmax(scipy.signal.correlate(after, before))])


# --- People


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_a_smaller_person_has_higher_pitch_and_formants_at_the_same_times(factor):
  time = np.arange(2 * RATE) / RATE
  # A train of pulses at 120 Hz through a resonance at 1500 Hz.
  pulses = (np.diff(np.floor(120 * time), prepend=-1) > 0).astype(float)
  vowel = scipy.signal.lfilter([1], np.poly(0.97 * np.exp(2j * np.pi * 1500 / RATE * np.array([1, -1]))).real, pulses)
  vowel = (0.05 * vowel / vowel.std()).astype(np.float32)
  resized = sound.resize(vowel, factor)
  assert resized.shape == vowel.shape and resized.dtype == np.float32
  _, power = scipy.signal.welch(resized[RATE // 2 : -RATE // 2], RATE, nperseg=8000)
  harmonics = power[np.rint(120 * factor * np.arange(1, 40) / 2).astype(int)]  # Bins of 2 Hz.
  assert (np.argmax(harmonics) + 1) * 120 * factor == pytest.approx(1500 * factor, abs=70 * factor)
  # What lies between two harmonics is little.
  between = power[np.rint(120 * factor * (np.arange(8, 17) + 0.5) / 2).astype(int)]
  assert decibels(between.max() / harmonics[8:17].max()) < -25
  assert decibels(np.mean(resized**2) / np.mean(vowel**2)) == pytest.approx(0, abs=1)

  # Syllables of 80 ms, every 400 ms: when they begin and end.
  syllable = (time % 0.4 > 0.2) & (time % 0.4 < 0.28)
  loudness = scipy.signal.filtfilt(np.ones(240) / 240, [1.0], sound.resize(vowel * syllable, factor) ** 2)
  heard = loudness > 0.25 * np.quantile(loudness, 0.95)
  edges = lambda x: np.flatnonzero(np.diff(x.astype(int)))
  np.testing.assert_allclose(edges(heard), edges(syllable), atol=0.015 * RATE)
  if factor == 1:
    np.testing.assert_allclose(resized, vowel, atol=1e-4)


def test_a_voice_is_coloured_by_its_gains_and_as_loud_as_before():
  gains = np.array([0, 0, 6, 0, -6, 0, 0, -3.0])  # 250 Hz louder, 1 kHz quieter.
  change = lambda wav: sound.equalise(wav, gains)
  level = gain_at(change, 500)  # Brought back to its loudness, whatever the gains.
  assert level == pytest.approx(0, abs=0.05)
  turns = 2 * np.pi * np.arange(RATE) / RATE

  def between(a, b):
    tones = (0.05 * (np.sin(a * turns) + np.sin(b * turns))).astype(np.float32)
    power = np.abs(np.fft.rfft(change(tones) * np.hanning(RATE))) ** 2
    return decibels(power[a] / power[b])

  assert between(250, 500) == pytest.approx(6, abs=0.1) and between(1000, 2000) == pytest.approx(-6, abs=0.1)
  assert between(354, 500) == pytest.approx(3, abs=0.1)  # Half an octave from both.
  assert between(7900, 4000) == pytest.approx(-3 * np.log2(7900 / 4000), abs=0.1)
  assert sound.active_power(change(VOICE)) == pytest.approx(sound.active_power(VOICE), rel=1e-3)
  assert abs(lag(VOICE, change(VOICE))) <= 1
  assert not change(np.zeros(1000, np.float32)).any()


# --- Rooms

SIZE, SOURCE, MICROPHONE = (4.0, 5.0, 3.0), (1.0, 2.0, 1.6), (2.7, 3.3, 1.2)


def test_the_direct_path_and_the_first_reflections_come_when_and_as_strong_as_geometry_says():
  # At 192 kHz arrivals do not overlap within 40 samples.
  rate = 192_000
  response = sound.room_impulse_response(SIZE, SOURCE, MICROPHONE, 0.3, seconds=0.03, rate=rate)
  paths = {(): 0}
  for axis in range(3):
    paths |= {(axis, 0): 1, (axis, 1): 1}
  for path, walls in paths.items():
    image = np.array(SOURCE)
    if path:
      axis, far = path
      image[axis] = 2 * SIZE[axis] * far - image[axis]
    distance = np.linalg.norm(image - MICROPHONE)
    expected, place = np.sqrt(0.7) ** walls / (4 * np.pi * distance), distance / 343.0 * rate
    near = response[round(place) - 20 : round(place) + 21]
    centre = round(place) - 20 + np.sum(np.arange(41) * near) / near.sum()
    assert near.sum() == pytest.approx(expected, rel=0.03), path  # The interpolation's window.
    assert centre == pytest.approx(place, abs=0.5), path
  before = round(np.linalg.norm(np.subtract(SOURCE, MICROPHONE)) / 343.0 * rate) - 20
  assert np.abs(response[:before]).max() < 0.01 * np.abs(response).max()


def test_half_the_pressure_at_twice_the_distance():
  free = lambda x: sound.room_impulse_response((40, 40, 40), (20, 20, 20), (20 + x, 20, 20), 1.0, seconds=0.02)
  # 343 m a second: a whole number of samples, where the impulse is one sample.
  unit = 343.0 / RATE * 50
  for times in (1, 2, 4):
    response = free(times * unit)
    assert np.argmax(response) == 50 * times
    assert response.max() == pytest.approx(1 / (4 * np.pi * times * unit), rel=0.02)


def reverberation_time(power: np.ndarray) -> float:
  """Of Schroeder's backward integral, from -5 to -25 dB, times three."""
  left = decibels(np.cumsum(power[::-1])[::-1] / np.sum(power) + 1e-12)
  falling = (left < -5) & (left > -25)
  slope = np.polyfit(np.arange(len(power))[falling] / RATE, left[falling], 1)[0]
  return -60 / slope


@pytest.mark.parametrize("absorption", [0.15, 0.3, 0.5])
def test_rooms_reverberate_as_long_as_sabine_and_eyring_say(absorption):
  size = (4.0, 3.6, 3.3)  # Nearly a cube: the formulas suppose that sound comes from everywhere.
  eyring, sabine = sound.eyring_time(size, absorption), sound.sabine_time(size, absorption)
  response = sound.room_impulse_response(size, (1.0, 1.2, 1.6), (2.9, 2.3, 1.4), absorption, seconds=1.5 * eyring)
  # Low, images of one sign add up.
  heard = scipy.signal.sosfilt(scipy.signal.butter(4, 200, "highpass", fs=RATE, output="sos"), response)
  found = reverberation_time(heard**2)
  assert found == pytest.approx(eyring, rel=0.15)
  # What flies in direction u meets c t sum |u_i| / L_i walls: the mean over all directions is the field's energy.
  up, around = np.meshgrid((np.arange(99) + 0.5) / 99, (np.arange(99) + 0.5) / 99 * np.pi / 2)
  flat = np.sqrt(1 - up**2)
  walls = 343.0 * (flat * np.cos(around) / size[0] + flat * np.sin(around) / size[1] + up / size[2])
  times = np.arange(0, len(response), 16) / RATE
  energy = [np.mean((1 - absorption) ** (walls * time)) for time in times]
  assert found == pytest.approx(reverberation_time(np.repeat(energy, 16)), rel=0.1)
  # Sabine is the limit of walls that take little, above Eyring.
  assert eyring < sabine < eyring * (1 + absorption) and (absorption > 0.2 or found == pytest.approx(sabine, rel=0.1))
  assert sound.eyring_time(size, sound.absorption_for(size, 0.4)) == pytest.approx(0.4)
  assert sound.sabine_time((5, 4, 3), 0.2) == pytest.approx(0.161 * 60 / (0.2 * 94), rel=2e-3)


def test_source_and_microphone_are_two_places_in_the_room():
  for source, microphone in (((5, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 0, 1))):
    with pytest.raises(ValueError, match="two places in a room"):
      sound.room_impulse_response((4, 4, 3), source, microphone, 0.3, seconds=0.1)


@needs("pyroomacoustics")
def test_rooms_are_those_of_pyroomacoustics():
  import pyroomacoustics

  pyroomacoustics.constants.set("octave_bands_keep_dc", True)
  room = pyroomacoustics.ShoeBox(SIZE, fs=RATE, materials=pyroomacoustics.Material(0.3), max_order=30, use_rand_ism=False)
  room.set_sound_speed(343.0)
  room.add_source(SOURCE)
  room.add_microphone(MICROPHONE)
  room.compute_rir()
  late = pyroomacoustics.constants.get("frac_delay_length") // 2
  theirs = room.rir[0][0][late:]
  ours = sound.room_impulse_response(SIZE, SOURCE, MICROPHONE, 0.3, seconds=0.2)
  # They leave out 4 π, high-pass or not by version: compared in the middle of the band.
  band = scipy.signal.butter(4, (300, 5000), "bandpass", fs=RATE, output="sos")
  a, b = (scipy.signal.sosfiltfilt(band, np.pad(x[:3000], 500)) for x in (ours, theirs))
  assert np.corrcoef(a, b)[0, 1] > 0.995


def test_a_voice_in_a_room_is_as_loud_and_in_its_place():
  response = sound.room_impulse_response((3.0, 4.0, 2.5), (1.0, 1.5, 1.4), (1.4, 1.7, 1.3), 0.3, seconds=0.3)
  click = np.zeros(RATE, np.float32)
  click[5000] = 1.0
  heard = sound.reverberate(click, response)
  assert abs(int(np.argmax(heard)) - 5000) <= 1 and np.abs(heard[:4980]).max() < 0.02 * heard.max()
  heard = sound.reverberate(VOICE, response)
  assert sound.active_power(heard) == pytest.approx(sound.active_power(VOICE), rel=1e-3)
  alone = np.array([0, 0, 0.3, 0], np.float32)  # No wall: nothing happens.
  np.testing.assert_allclose(sound.reverberate(VOICE, alone), VOICE, atol=1e-6)


# --- Level and noise


def test_power_is_of_where_the_voice_sounds():
  tone = 0.2 * np.sin(2 * np.pi * 400 * np.arange(2 * RATE) / RATE).astype(np.float32)
  tone[RATE:] = 0
  assert sound.active_power(tone) == pytest.approx(0.02, rel=1e-3)
  assert sound.active_power(np.zeros(1000, np.float32)) == 0
  assert decibels(sound.active_power(sound.amplify(tone, 12)) / 0.02) == pytest.approx(12, abs=0.01)


@pytest.mark.parametrize("kind", ["white", "pink", "speech"])
def test_noise_has_its_level_and_its_spectrum(kind):
  rng = np.random.default_rng(0)
  noise = sound.make_noise(kind, VOICE, rng)
  added = sound.add_noise(VOICE, noise, 15) - VOICE
  assert decibels(sound.active_power(VOICE) / np.mean(added**2)) == pytest.approx(15, abs=0.05)
  hertz, power = scipy.signal.welch(added, RATE, nperseg=2048)
  level = lambda low, high: decibels(power[(hertz >= low) & (hertz < high)].mean())
  octave = level(1000, 2000) - level(2000, 4000)
  falls = {"white": 0, "pink": 3, "speech": 0.0}[kind]
  if kind == "speech":  # As the voice's own spectrum.
    _, own = scipy.signal.welch(VOICE, RATE, nperseg=2048)
    falls = decibels(own[(hertz >= 1000) & (hertz < 2000)].mean() / own[(hertz >= 2000) & (hertz < 4000)].mean())
    assert level(5500, 7500) < level(500, 2500) - 8
  assert octave == pytest.approx(falls, abs=0.7)


def test_noise_of_a_silent_voice_has_a_level_too():
  silence, rng = np.zeros(RATE, np.float32), np.random.default_rng(0)
  noisy = sound.add_noise(silence, sound.make_noise("speech", silence, rng), 20)
  assert decibels(np.mean(noisy**2)) == pytest.approx(-46, abs=0.1)
  with pytest.raises(ValueError, match="expected white, pink or speech"):
    sound.make_noise("brown", VOICE, rng)


# --- Lines


def test_bands_pass_what_they_should():
  telephone = lambda wav: sound.limit_band(wav, degradations.TELEPHONE)
  assert gain_at(telephone, 1000) == pytest.approx(0, abs=0.1)
  assert gain_at(telephone, 300) == pytest.approx(-6, abs=0.3) and gain_at(telephone, 3400) == pytest.approx(-6, abs=0.3)
  assert gain_at(telephone, 100) < -40 and gain_at(telephone, 6000) < -40
  wideband = lambda wav: sound.limit_band(wav, degradations.WIDEBAND)
  assert gain_at(wideband, 200) == pytest.approx(0, abs=0.1) and gain_at(wideband, 5000) == pytest.approx(0, abs=0.1)


def test_mu_law_by_its_formula():
  # The curve's own steps come back exactly; between them the error is at most half a step: (1 + 255 |x|) ln 256 / 255 / 127 / 2.
  steps = np.arange(-127, 128) / 127
  values = (np.sign(steps) * (256 ** np.abs(steps) - 1) / 255).astype(np.float32)
  np.testing.assert_allclose(sound.code_mu_law(values), values, rtol=1e-5)
  assert len(np.unique(values)) == 255
  x = np.linspace(-1, 1, 20_001).astype(np.float32)
  error = np.abs(sound.code_mu_law(x) - x)
  assert (error <= (1 + 255 * np.abs(x)) * np.log(256) / 255 / 254 * 1.03).all() and error.max() > 0.01
  np.testing.assert_array_equal(sound.code_mu_law(np.float32([-3, 3])), [-1, 1])


def test_opus_keeps_time_and_loses_more_at_fewer_bits():
  kept = []
  for bits in (8_000, 24_000):
    coded = sound.code_opus(VOICE, bits)
    assert len(coded) == len(VOICE) and abs(lag(VOICE, coded)) <= 8
    kept.append(np.corrcoef(VOICE, coded)[0, 1])
  assert 0.2 < kept[0] < kept[1] < 0.999


def test_peaks_are_cut_off():
  clipped = sound.clip_peaks(VOICE, 0.3)
  peak = np.abs(VOICE).max()
  assert np.abs(clipped).max() == pytest.approx(0.3 * peak)
  quiet = np.abs(VOICE) < 0.3 * peak
  np.testing.assert_array_equal(clipped[quiet], VOICE[quiet])


# --- Chains


def test_a_chain_follows_from_seed_variant_and_voice_alone():
  first, second, other_seed = sound.Degradation(1), sound.Degradation(2), sound.Degradation(1, seed=5)
  np.testing.assert_array_equal(first(VOICE), sound.Degradation(1)(VOICE.copy()))
  for changed in (second, other_seed):
    assert changed.draw(VOICE) != first.draw(VOICE) and changed.key != first.key
  assert first.draw(make_voice(seed=1)) != first.draw(VOICE)  # Another person.
  assert sound.make_degradations(0) == () and [d.variant for d in sound.make_degradations(3)] == [1, 2, 3]


def test_chains_keep_length_and_time_and_have_all_steps_in_order():
  order, seen = ["size", "colour", "room", "noise", "gain", "clip", "line"], set()
  for variant in range(1, 41):
    steps = sound.Degradation(variant).draw(VOICE)
    names = [name for name, _ in steps]
    assert names == [name for name in order if name in names] and "gain" in names
    seen |= {name if name not in ("noise", "line") else f"{name} {parameters['kind']}" for name, parameters in steps}
  assert seen == {
      "size", "colour", "room", "gain", "clip", "noise white", "noise pink", "noise speech", "line wideband", "line telephone", "line opus"
  }
  # Half of the voices stay where they were recorded; of the others 1 in 16 draws nothing.
  indoors = [len({"room", "noise", "clip", "line"} & {name for name, _ in sound.Degradation(k).draw(VOICE)}) for k in range(1, 201)]
  assert 0.45 < np.mean([found == 0 for found in indoors]) < 0.68
  for variant in range(1, 9):
    degraded = sound.Degradation(variant)(VOICE)
    assert degraded.dtype == np.float32 and degraded.shape == VOICE.shape and np.isfinite(degraded).all()
    assert np.abs(degraded - VOICE).max() > 0.01
  change = sound.Degradation(1)
  factor, gains = 1.2, [3.0, 0, 0, 6, 0, 0, -6, 0]
  np.testing.assert_array_equal(change._size(VOICE, None, factor=factor), sound.resize(VOICE, factor))
  np.testing.assert_array_equal(change._colour(VOICE, None, decibels=gains), sound.equalise(VOICE, np.array(gains)))
  silence = np.zeros(RATE, np.float32)
  assert all(np.isfinite(sound.Degradation(variant)(silence)).all() for variant in range(1, 9))


def test_mouths_and_microphones_are_within_their_rooms_and_heard_in_time():
  rng = np.random.default_rng(0)
  for _ in range(40):
    room = sound.Degradation(1)._draw_room(rng)
    response = chain.make_room(**room)
    distance = np.linalg.norm(np.subtract(room["mouth"], room["microphone"]))
    first = np.argmax(np.abs(response) >= 0.5 * np.abs(response).max())  # As `reverberate` looks for it.
    assert abs(first - distance / 343.0 * RATE) <= 1.0


def test_what_chains_do_is_pinned_to_their_version():
  """Features of degraded voices are kept by version: whoever changes a chain raises it, and these numbers."""
  assert chain.VERSION == 2
  steps = dict(sound.Degradation(1).draw(np.arange(1000, dtype=np.float32)))
  assert list(steps) == ["size", "colour", "gain"]
  drawn = steps["size"]["factor"], steps["colour"]["decibels"][2], steps["gain"]["decibels"]
  assert drawn == pytest.approx((1.0551930410, -4.7765645042, 13.9500398057), abs=1e-9)


def test_own_recordings_are_used_and_part_of_the_key(tmp_path):
  rng = np.random.default_rng(3)
  hum = np.sin(2 * np.pi * 6000 * np.arange(RATE) / RATE).astype(np.float32)
  echo = np.zeros(RATE // 2, np.float32)
  echo[[10, 4010]] = 1.0, 0.8
  soundfile.write(tmp_path / "hum.wav", hum, RATE)
  soundfile.write(tmp_path / "echo.wav", echo, RATE)
  own = sound.make_degradations(30, 0, [str(tmp_path / "hum.wav")], [str(tmp_path / "echo.wav")])
  assert len({d.key for d in (*own, *sound.make_degradations(30))}) == 60
  steps = [d.draw(VOICE) for d in own]
  assert {p["kind"] for names in steps for name, p in names if name == "noise"} == {0}
  assert all("response" in p for names in steps for name, p in names if name == "room")
  noisy = own[0]._noise(VOICE, rng, 0, 10.0) - VOICE
  hertz, power = scipy.signal.welch(noisy, RATE)
  assert hertz[np.argmax(power)] == pytest.approx(6000, abs=100) and len(noisy) == len(VOICE) > len(hum)
  again = own[0]._room(VOICE, rng, response=0)
  late = np.correlate(again[4000:14000], VOICE[:10000], "valid")[0] / np.sum(VOICE[:10000] ** 2)
  assert late > 0.3


@pytest.mark.parametrize("argument", ["noises", "impulse_responses"])
def test_recordings_that_are_missing_or_of_another_rate_are_one_line(tmp_path, argument):
  soundfile.write(tmp_path / "slow.wav", VOICE, 8000)
  with pytest.raises(InputError, match="slow.wav: rate: found 8000 Hz, expected 16000 Hz"):
    sound.make_degradations(1, **{argument: [str(tmp_path / "slow.wav")]})
  with pytest.raises(InputError, match=r"none.wav: found no such file"):
    sound.make_degradations(1, **{argument: [str(tmp_path / "none.wav")]})
