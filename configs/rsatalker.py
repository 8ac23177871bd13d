"""The paper's model at the paper's size, on DualTalk's conversations and a VHAP capture.

    python encode_speech.py --config=configs/rsatalker.py       # once: Wav2Vec 2.0 features of all voices
    python train.py --config=configs/rsatalker.py --workdir=runs/rsatalker
    python train.py --config=configs/rsatalker.py:no_relation --workdir=runs/no_relation --stage=motion

Hardware: written for one GPU or TPU host; the motion stage alone also runs on a CPU (benchmarks/motion_step.py has a step's
time). Scores: none yet, DualTalk and FLAME may not be redistributed and no run on them has been made with this code.

Sizes and rates are DualTalk's where the paper gives none. A word behind a colon picks a variant of configs/ablations.py.
"""

from configs.ablations import apply_variant
from configs.common import base_config


def get_config(variant: str = ""):
  config = base_config()
  config.mesh.cpu_devices = 0
  config.data.update(dict(
      embedded_root="",
      conversations="data/dualtalk",
      relations="data/dualtalk/relations.csv",
      capture="data/capture",
      triplets="data/triplets.jsonl",
      features="data/features",
      default_relation="unknown",  # DualTalk comes without labels.
  ))
  config.head.path = "data/flame2020/generic_model.pkl"
  config.head.teeth = True  # VHAP tracks with them.
  config.speech.update(dict(
      encoder="wav2vec2",
      checkpoint="facebook/wav2vec2-large-960h-lv60-self",
      encode_missing=False,
  ))
  config.generator.update(dict(
      features=512,
      heads=4,
      encoder_layers=3,
      decoder_layers=1,
      mlp_ratio=4,
      speech_hidden=512,
      speech_layers=1,
      speech_kernel=1,  # Wav2Vec 2.0 has seen the surroundings.
      dropout=0.1,  # [DualTalk: 0.5]
      dtype="bfloat16",
  ))
  config.motion.update(dict(steps=100_000, batch=32, window=200, learning_rate=1e-4, warmup=1000))
  # GaussianAvatars' rates and steps.
  config.avatar.update(dict(steps=600_000, final_learning_rate=0.01))
  config.avatar.learning_rates.update(dict(means=5e-3, quats=1e-3, log_scales=1.7e-2, opacity_logits=5e-2, sh=2.5e-3))
  config.gaussians.update(dict(sh_degree=3, init_scale=1.0, init_opacity=0.1))
  config.joint.update(dict(steps=20_000, window=200, motion_batch=32))
  config.logging.update(dict(log_every=100, pictures_every=5000, checkpoint_every=2000))
  config.evaluation.lpips_nets = ("alex", "vgg")
  return apply_variant(config, variant)
