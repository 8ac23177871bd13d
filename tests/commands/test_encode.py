"""encode_speech.py on a tiny world: every voice once, damage repaired, what is wrong named; and training on its features."""

import grain
import jax
import numpy as np
import pytest
import soundfile

import tiny_world
from rsatalker_jax import talker
from rsatalker_jax.commands import encode, train
from rsatalker_jax.data.sound import chain
from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.speech import StoredFeatures
from rsatalker_jax.speech.encoder_ids import EncoderIds
from speech import whisper_checkpoints


@pytest.fixture
def config(tmp_path):
  tiny_world.write_world(tmp_path / "data")
  return tiny_world.tiny_config(tmp_path / "data")


@pytest.fixture
def stages(monkeypatch):
  """Names of the stages that `train.train` makes ready and hands to the loop, which is not run here."""
  names = []
  monkeypatch.setattr(train.loop, "run_stage", lambda stage, **_: names.append(stage.name))
  return names


def encode_all(config):
  """The lines that the command says."""
  lines = []
  encode.encode_voices(config, say=lines.append)
  return "\n".join(lines)


def test_every_voice_once_and_damage_repaired(config, tmp_path):
  cache = tmp_path / "data" / "features"
  said = encode_all(config)
  # One conversation of 60 frames, two voices, in each of the three splits.
  for split in ("train", "val", "test"):
    assert f"{split}: 2 clips" in said
  assert said.count("  2 voices, 0.1 minutes: 2 encoded, 0 there already, 0 damaged and rebuilt") == 3
  files = sorted(cache.glob("*.npz"))
  assert len(files) == 6 and str(cache) in said
  (encoder,) = EncoderIds(cache).all()
  assert f"speech features of encoder {encoder.key[:8]} (LogMel(" in said
  content = [path.read_bytes() for path in files]
  files[0].write_bytes(content[0][:100])
  said = encode_all(config)
  assert said.count("2 there already, 0 damaged") == 2 and "0 encoded, 1 there already, 1 damaged and rebuilt" in said
  assert [path.read_bytes() for path in files] == content and len(list(cache.glob("*.npz"))) == 6


def test_voices_heard_by_whisper(config, tmp_path):
  """Encoded by the command, and a new voice by the encoder of the config; a checkpoint that is none is a line."""
  folder = whisper_checkpoints.write_checkpoint(tmp_path / "whisper", max_source_positions=400)
  config.speech.update(encoder="whisper", checkpoint=str(folder))
  assert encode_all(config).count("2 voices, 0.1 minutes: 2 encoded") == 3
  voice, _ = soundfile.read(tmp_path / "data" / "conversations" / "train" / "tiny-0_sub_video_0_speaker1.wav", dtype="float32")
  made = np.asarray(talker.make_encoder(config.speech, None)(voice, 60))
  assert made.shape == (60, 64) and made.std() > 0.1
  (folder / "model.safetensors").write_bytes(b"")
  with pytest.raises(InputError, match="model.safetensors"):
    talker.make_encoder(config.speech, None)(voice, 60)


def test_processes_begin_with_their_shares_and_help_the_slower_ones(config, monkeypatch):
  orders = [encode.visiting_order(range(20), process, 3) for process in range(3)]
  assert sorted(orders[0][:7] + orders[1][:7] + orders[2][:6]) == list(range(20))
  assert all(sorted(order) == list(range(20)) for order in orders)
  common = set(orders[0][7:]) & set(orders[1][7:])  # Where two help a third, they do not meet at each voice.
  assert [i for i in orders[0] if i in common] != [i for i in orders[1] if i in common]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for process, counts in ((1, "2 encoded, 0 there"), (0, "0 encoded, 2 there")):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert encode_all(config).count(counts) == 3


def test_what_is_wrong_is_named_and_the_rest_encoded(config, tmp_path):
  folder = tmp_path / "data" / "conversations"
  (folder / "val" / "tiny-1_sub_video_0_speaker2.wav").unlink()
  for n in (1, 2):
    tiny_world.write_voice(folder / "val" / f"more_sub_video_0_speaker{n}.wav", 20 + n)
    tiny_world.write_npz(folder / "val" / f"more_sub_video_0_speaker{n}.npz", tiny_world.make_motion(20 + n))
    soundfile.write(folder / "test" / f"tiny-2_sub_video_0_speaker{n}.wav", np.zeros(38400), 16000)
  config.data.default_relation = "unknown"
  lines = []
  with pytest.raises(InputError, match="found 2 clips that cannot be read, named above"):
    encode.encode_voices(config, say=lines.append)
  said = "\n".join(lines)
  assert "skipped tiny-1_sub_video_0: no tiny-1_sub_video_0_speaker2.wav" in said and "1 conversations without a label" in said
  assert said.count("  2 voices") == 2 and "  0 voices" in said
  assert said.count("not encoded: ") == 2 and "silence in both voices" in said
  config.data.conversations = str(tmp_path)
  with pytest.raises(InputError, match="found no split, expected a folder train, val, test or ood"):
    encode_all(config)


def test_training_reads_features_and_never_encodes(config, stages, tmp_path, monkeypatch):
  config.speech.encode_missing = False
  workdir = tmp_path / "run"
  with pytest.raises(MissingFeatures) as error:
    train.train(config, str(workdir), stage="motion")
  message = str(error.value)
  assert "\n" not in message and str(tmp_path / "data" / "features") in message
  assert "tiny-0_sub_video_0_speaker1" in message and "`python encode_speech.py`" in message
  encode_all(config)
  monkeypatch.setattr("rsatalker_jax.speech.cache.encode_locally", lambda *_: pytest.fail("the encoder ran"))
  train.train(config, str(workdir), stage="motion")
  config.speech.encode_missing = True  # Allowed later, the run is the same.
  train.train(config, str(workdir), stage="motion")
  assert stages == ["motion", "motion"]


def test_who_encoded_for_another_encoder_is_told_so(config, stages, tmp_path):
  encode_all(config)
  config.speech.encode_missing = False
  config.speech.num_mels = 32
  with pytest.raises(MissingFeatures) as error:
    train.train(config, str(tmp_path / "run"), stage="motion")
  wanted = talker.make_encoder(config.speech, None).id
  (there,) = EncoderIds(tmp_path / "data" / "features").all()
  assert f"found no whole speech features of encoder {wanted}, but files of {there}, expected" in str(error.value)
  assert "num_mels = 32" in wanted.name and "num_mels = 64" in there.name and wanted.key != there.key


def test_training_leaves_features_on_disk_and_reads_with_the_threads_of_the_config(config, tmp_path, monkeypatch):
  made = {}
  monkeypatch.setattr(train.loop, "run_stage", lambda stage, **_: made.update({stage.name: stage}))
  given = []
  for module in ("motion_stage", "avatar_stage"):
    maker = getattr(train, module)
    monkeypatch.setattr(train, module, lambda inputs, maker=maker: given.append(inputs) or maker(inputs))
  asked = []
  options = grain.ReadOptions
  monkeypatch.setattr(grain, "ReadOptions", lambda **kw: asked.append(kw["num_threads"]) or options(**kw))
  for stage, threads in (("motion", 3), ("avatar", 5)):  # They change nothing that is computed: the run is the same.
    config.data.reader_threads = threads
    train.train(config, str(tmp_path / "run"), stage=stage)
  assert asked == [3, 5] and list(made) == ["motion", "avatar"]
  assert all(isinstance(clip.speech_a, StoredFeatures) for clip in given[0].training_clips)


def test_the_avatar_stage_needs_no_encoder(config, stages, tmp_path):
  config.speech.encoder, config.speech.checkpoint = "wav2vec2", str(tmp_path / "nowhere")
  train.train(config, str(tmp_path / "run"), stage="avatar")
  assert stages == ["avatar"]
  with pytest.raises(InputError, match="nowhere: found no such folder"):
    train.train(config, str(tmp_path / "run"), stage="motion")
  with pytest.raises(InputError, match="speech.encoder: found 'mfcc', expected 'logmel', 'wav2vec2' or 'whisper'"):
    config.speech.encoder = "mfcc"
    talker.make_encoder(config.speech, None)


def test_clips_too_short_for_a_window_are_listed(config, stages, tmp_path, capsys):
  folder = tmp_path / "data" / "conversations" / "train"
  for n in (1, 2):
    tiny_world.write_voice(folder / f"short_sub_video_0_speaker{n}.wav", 30 + n, frames=15)
    tiny_world.write_npz(folder / f"short_sub_video_0_speaker{n}.npz", tiny_world.make_motion(30 + n, frames=15))
  config.data.default_relation = "unknown"
  train.train(config, str(tmp_path / "run"))
  said = capsys.readouterr().out
  for stage in ("motion", "joint"):
    assert f"{stage}: 2 of 4 clips are shorter than a window of 20 frames and not used" in said
  assert said.count("skipped short_sub_video_0_speaker1: 15 frames") == 2
  assert stages == ["motion", "avatar", "joint"]


def test_training_voices_alone_get_variants_which_training_finds(config, stages, tmp_path, monkeypatch):
  config.speech.augmentation.variants = 2
  said = encode_all(config)
  assert said.count("degraded variants") == 1
  assert "4 degraded variants of them: 4 encoded, 0 there already, 0 damaged and rebuilt" in said
  assert len(list((tmp_path / "data" / "features").glob("*.npz"))) == 10  # Six voices, of which two have two variants.
  assert "4 degraded variants of them: 0 encoded, 4 there already" in encode_all(config)
  config.speech.encode_missing = False
  monkeypatch.setattr("rsatalker_jax.data.sound.Degradation.__call__", lambda *_: pytest.fail("degraded again"))
  inputs = train.make_inputs(config)
  (one, _), (held_out, _) = inputs.training_clips, inputs.validation_clips
  assert len(one.degraded_a) == len(one.degraded_b) == 2 and held_out.degraded_a == held_out.degraded_b == ()
  assert not np.allclose(one.degraded_b[0][:], one.speech_b[:], atol=0.1)
  train.train(config, str(tmp_path / "run"), stage="motion")
  # Other variants, or a chain of another version, have no features yet.
  config.speech.augmentation.seed = 1
  with pytest.raises(MissingFeatures, match="tiny-0_sub_video_0_speaker1: found .* of the voice degraded, expected"):
    train.make_inputs(config).training_clips  # noqa: B018
  config.speech.augmentation.seed = 0
  monkeypatch.setattr("rsatalker_jax.data.sound.chain.VERSION", chain.VERSION + 1)
  with pytest.raises(MissingFeatures, match="of the voice degraded"):
    train.make_inputs(config).training_clips  # noqa: B018


def test_a_recording_that_is_missing_is_one_line(config, tmp_path):
  config.speech.augmentation.update(variants=1, noises=(str(tmp_path / "street.wav"),))
  for command in (encode_all, lambda config: train.train(config, str(tmp_path / "run"), stage="motion")):
    with pytest.raises(InputError, match="street.wav: found no such file, expected a RIFF/WAVE file"):
      command(config)
  assert not (tmp_path / "run" / "config.json").exists()
