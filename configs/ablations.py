"""What RSATalker is compared with, and its own parts left out one at a time: variants of the other configs.

    make compare                                              all baselines on the embedded conversations, with COMPARED's seeds
    make compare COMPARED="--variants=full,plain_eq5 --seeds=0"     some of them
    make ablations                                            whole runs: the paper's Tables 4 and 5
    python train.py --config=configs/demo.py:dualtalk ...     one

All are trained by the same loop on the same data; baselines for steps and by rates of their own.
"""

from ml_collections import ConfigDict

# The paper as it is printed, where it says something: its equations, weights and stages. Sizes, steps and the rates that it
# does not give are the config's. What remains of ours: attention is biased by distance and windowed, since without any
# order of frames Eq. 5, whose query is one vector, would give every frame the same z; hinges in Eq. 11 and 12; opacity
# begins at 0.1, since a Gaussian of none gets no gradient.
PAPER = {
    # Eq. 4 and 5: attention alone, and s in the query alone; the motion encoder sees a frame at a time.
    "generator.residual": False,
    "generator.social_norm": False,
    "generator.query_time": False,
    "generator.motion_kernel": 1,
    "generator.motion_stride": 1,
    # Eq. 9: one norm over all parameters.
    "motion.loss.plain_norm": True,
    "motion.orthogonality": 0.0,  # The two vectors of a relation are orthogonal where they begin.
    # Sec. 3.6: the social module enters with stage 3.
    "motion.social_module": False,
    # Sec. 3.4: one Gaussian a face, of unit scale, without colour.
    "gaussians.num_gaussians": None,
    "gaussians.init_scale": 1.0,
    "gaussians.init_opacity": 0.1,
    "gaussians.color_frames": 0,
    # Eq. 10 to 12.
    "avatar.dssim_weight": 0.2,
    "avatar.lpips_weight": 0.0,
    "avatar.position_weight": 0.01,
    "avatar.position_threshold": 1.0,
    "avatar.scale_weight": 0.0,
    # Eq. 13: three weights and no other term; all that pixels pull at is pulled; L_mesh of the filmed conversations.
    "joint.image_weight": 0.5,
    "joint.position_weight": 0.01,
    "joint.offset_weight": 0.01,
    "joint.offset_threshold": 1.0,
    "joint.avatar_share": 1.0,
    "joint.lpips_weight": 0.0,
    "joint.tracked_weight": 0.0,
    "joint.drawn_weight": 0.0,
    "joint.motion_batch": 0,
    # Which the paper does not give: offsets at the generator's rate, Gaussians as stage 2 left them.
    "joint.offsets_learning_rate": 5e-5,
    "joint.generator_learning_rate": 5e-5,
    "joint.avatar_learning_rate": 1.0,
    "joint.final_avatar_learning_rate": 1.0,
    "joint.avatar_warmup": 10,
}

# This project's form at the paper's size: deviations that did better in the demo's world (docs/motion.md, docs/avatar.md); nobody
# has tried them on DualTalk. In brackets what the paper has.
OURS = {
    "generator.residual": True,  # [False]
    "generator.social_norm": True,  # [False]
    "generator.motion_kernel": 27,  # [1]
    "generator.motion_stride": 2,  # [1]
    "motion.orthogonality": 0.01,  # [0]
    "motion.social_module": True,  # [False: it enters with stage 3]
    "motion.loss.plain_norm": False,  # [True]; the terms of configs/common.py instead.
    "avatar.scale_weight": 1.0,  # [0; GaussianAvatars 1]
    "joint.avatar_share": 0.05,  # [1]
    "joint.lpips_weight": 0.1,  # [0]
    "joint.tracked_weight": 0.5,  # [0]
    "joint.drawn_weight": 5.0,  # [0]
    "joint.image_weight": 0.1,  # [0.5]
    "joint.motion_batch": 32,  # [0]
    "joint.offsets_learning_rate": 1e-7,  # [not given; the generator's in PAPER]
    "joint.avatar_warmup": 200,
}

# Offsets (Eq. 8) at a rate at which they learn. At the demo's they do not: see docs/ablations.md.
_OFFSETS = {"joint.offsets_learning_rate": 1e-5}
_MOTION_OFFSETS = _OFFSETS | {"social.offsets_inputs": ("relation", "time", "motion")}
_TIMELESS_OFFSETS = _OFFSETS | {"social.offsets_inputs": ("relation", "motion")}
# The film as a worse tracker has it: what tools/degrade_tracking.py writes.
_DEGRADED = {"data.captures": (), "data.capture": "capture_degraded", "data.triplets": "capture_degraded.jsonl"}

# Baselines with a loss of their own (rsatalker_jax.baselines.motion): of motion alone, and without the relation. Steps are as many
# as fit ten minutes of two cores (docs/baselines.md).
_motion_alone = {"stages": ("motion",), "social.enabled": False, "motion.learning_rate": 1e-3}
_dualtalk, _faceformer, _emotalk, _selftalk = (
    _motion_alone | {"generator.architecture": name, "motion.steps": steps}
    for name, steps in (("dualtalk", 2600), ("faceformer", 2500), ("emotalk", 4000), ("selftalk", 4000))
)
# Those that denoise motion; to generate takes them longer than others.
_facediffuser, _timar = (
    _motion_alone
    | {"generator.architecture": name, "logging.evaluate_every": 1200, "motion.batch": batch, "motion.steps": steps}
    for name, batch, steps in (("facediffuser", 8, 2400), ("timar", 4, 3600))
)
# Those that make motion of codes, which a stage before trains.
_codes = {"stages": ("codes", "motion"), "social.enabled": False, "logging.evaluate_every": 2000}
_codetalker = _codes | {
    "generator.architecture": "codetalker",
    "codes.steps": 1000,
    "motion.steps": 1400,
    "motion.learning_rate": 1e-3,
}
_l2l = _codes | {
    "generator.architecture": "l2l",
    "codes.steps": 1500,
    "motion.steps": 2000,
    "motion.learning_rate": 1e-3,
    "speech.encoder": "logmel",  # Its speech is the largest of each mel.
}
_distilled = {"baselines.facediffuser.distilled_steps": 2}
# Only log-mel hears nothing early; it takes longer to learn by.
_CAUSAL = {"generator.causal": True, "speech.encoder": "logmel", "speech.causal": True}
_ours_causal = _CAUSAL | {"motion.steps": 6000}
# Real microphones and webcams: voices at one level, trained on degraded ones too, and A as a webcam sees them (docs/speech.md).
REAL_VOICES = {"speech.level": True, "speech.augmentation.variants": 3}
REAL_SOUND = REAL_VOICES | {"motion.tracker.share": 0.5}
# An image-based baseline: no motion, and nothing that is trained with it; of one person.
_IMAGE = {
    "data.captures": (),
    "stages": ("avatar",),
    "avatar.batch": 2,
    # In as few steps as theirs.
    "density.adaptive.start": 0,
    "density.adaptive.stop": 350,
    "density.adaptive.every": 50,
}

# By name: the row's title in tables, and what is other than in the config itself.
VARIANTS = {
    "full": ("RSATalker, stage 1", {}),
    "paper": ("RSATalker, the paper's equations and weights", PAPER),
    "ours": ("RSATalker, this project's form", OURS),
    # Baselines.
    "no_relation": ("RSATalker without the social module", {"social.enabled": False}),
    "dualtalk": ("DualTalk, re-implemented, z-scored", _dualtalk),
    "dualtalk_positions": (
        "DualTalk, re-implemented, z-scored, with position codes",
        _dualtalk | {"baselines.dualtalk.positions": True},
    ),
    "speaker_only": (
        "speaker-only (FaceFormer's setting)",
        {"generator.use_partner": False, "social.enabled": False},
    ),
    "listener_only": (
        "listener-only (L2L's setting)",
        {"generator.use_own_speech": False, "social.enabled": False},
    ),
    "faceformer": ("FaceFormer, re-implemented, z-scored", _faceformer),
    "faceformer_causal": ("FaceFormer, re-implemented, z-scored, causal", _faceformer | _CAUSAL),
    "faceformer_raw": ("FaceFormer, re-implemented, raw units", _faceformer | {"baselines.faceformer.normalised": False}),
    "faceformer_forced": (
        "FaceFormer, re-implemented, z-scored, teacher forcing",
        _faceformer | {"baselines.faceformer.teacher_forcing": True},
    ),
    "codetalker": ("CodeTalker, re-implemented, z-scored", _codetalker),
    "codetalker_causal": ("CodeTalker, re-implemented, z-scored, causal", _codetalker | _CAUSAL),
    "l2l": ("L2L, re-implemented, repaired", _l2l),
    "l2l_likeliest": ("L2L, re-implemented, repaired, likeliest codes", _l2l | {"baselines.l2l.samples": False}),
    "emotalk": ("EmoTalk's decoder, re-implemented on one speech encoder, z-scored", _emotalk),
    "emotalk_causal": ("EmoTalk's decoder, re-implemented on one speech encoder, z-scored, causal", _emotalk | _CAUSAL),
    "selftalk": ("SelfTalk, re-implemented without recogniser and lip vertices, z-scored", _selftalk),
    "selftalk_unread": (
        "SelfTalk's generator, re-implemented without the reader of lips, z-scored",
        _selftalk | {"baselines.selftalk.reading": 0.0},
    ),
    "facediffuser": ("diffusion (FaceDiffuser), re-implemented, z-scored, 16 steps", _facediffuser),
    "facediffuser_causal": ("diffusion (FaceDiffuser), re-implemented, z-scored, 16 steps, causal", _facediffuser | _CAUSAL),
    "facediffuser_distilled": (
        "diffusion (FaceDiffuser), re-implemented, z-scored, distilled to 2 steps",
        _facediffuser | _distilled,
    ),
    "timar": ("TIMAR, re-implemented, z-scored", _timar),
    "timar_causal": ("TIMAR, re-implemented, z-scored, causal by seconds", _timar | _CAUSAL),
    "timar_regression": ("TIMAR, re-implemented, z-scored, regression head", _timar | {"baselines.timar.head": "regression"}),
    # Eq. 5 and what s can do.
    "plain_eq5": ("Eq. 4 and 5 without residual paths", {"generator.residual": False}),
    "query_time": ("Eq. 5, queries with an encoding of t", {"generator.query_time": True}),
    "no_social_norm": ("s in the query of Eq. 5 alone", {"generator.social_norm": False}),
    # The loss.
    "paper_loss": ("Eq. 9 as written: one norm", {"motion.loss.plain_norm": True}),
    "no_lips": ("without the lips' term", {"motion.loss.lips": 0.0}),
    # Seeing no future, to answer while a conversation goes on (docs/streaming.md).
    "causal": ("RSATalker, causal", _ours_causal),
    # Hearing its own words before they sound, as where a program speaks (all: 27 frames in the demo).
    "causal_ahead3": ("RSATalker, causal, its own voice 3 frames ahead", _ours_causal | {"generator.own_lookahead": 3}),
    "causal_ahead8": ("RSATalker, causal, its own voice 8 frames ahead", _ours_causal | {"generator.own_lookahead": 8}),
    "causal_all_own": ("RSATalker, causal, its own voice as far ahead as it reaches", _ours_causal | {"generator.own_lookahead": -1}),
    # Hearing by what a network has learnt of speech, or not.
    "log_mel": ("RSATalker, hearing by log-mel", {"speech.encoder": "logmel", "motion.steps": 6000}),
    # Hearing and seeing what real microphones and webcams give.
    "clean_voices": (
        "RSATalker, trained on clean voices alone",
        {"speech.level": False, "speech.augmentation.variants": 0},
    ),
    "real_sound": ("RSATalker, trained for real microphones and webcams", REAL_SOUND),
    # The paper's ablation (Tables 4, 5): whole stages; no_relation above is its "w/o SAM".
    "no_motion_stage": ("RSATalker without stage 1", {"stages": ("avatar", "joint")}),
    "no_avatar_stage": ("RSATalker without stage 2", {"stages": ("motion", "joint")}),
    # What offsets are worth, on films that are tracked exactly and on films that are not.
    "no_offsets": ("no offsets", {"joint.offsets_learning_rate": 0.0}),
    "offsets": ("c = GON(q, t)", _OFFSETS),
    "motion_offsets": ("c = GON(q, t, m)", _MOTION_OFFSETS),
    "timeless_offsets": ("c = GON(q, m)", _TIMELESS_OFFSETS),
    "degraded": ("no offsets, worse tracking", _DEGRADED | {"joint.offsets_learning_rate": 0.0}),
    "degraded_offsets": ("c = GON(q, t), worse tracking", _DEGRADED | _OFFSETS),
    "degraded_motion_offsets": ("c = GON(q, t, m), worse tracking", _DEGRADED | _MOTION_OFFSETS),
    "degraded_timeless_offsets": ("c = GON(q, m), worse tracking", _DEGRADED | _TIMELESS_OFFSETS),
    # How Gaussians come to where they are needed (stage 2; benchmarks/avatar_quality.py).
    "fixed": ("RSATalker, no density control", {"density.way": "none", "gaussians.capacity": None}),
    "mcmc": ("RSATalker, MCMC", {"density.way": "mcmc"}),
    # Image-based talking heads, driven by speech: baselines of frames.
    "gaussiantalker": ("GaussianTalker, re-implemented", _IMAGE | {
        "avatar.method": "gaussiantalker",
        "avatar.steps": 1400,
        "gaussians.capacity": 16_000,
    }),
    "ernerf": ("ER-NeRF, re-implemented", _IMAGE | {"avatar.method": "ernerf", "avatar.steps": 2500}),
    "synctalk": (
        "SyncTalk, re-implemented as switches of ER-NeRF",
        _IMAGE | {"avatar.method": "synctalk", "avatar.steps": 2500},
    ),
}


# What `make compare` trains, each to the end of its own stages (of RSATalker's variants the motion stage), and its seeds.
COMPARED = {
    **dict.fromkeys(("full", "no_relation", "causal", "dualtalk", "timar", "timar_causal"), (0, 1, 2)),
    **dict.fromkeys(("faceformer", "faceformer_causal", "selftalk", "emotalk", "l2l", "codetalker", "facediffuser"), (0, 1, 2)),
    **dict.fromkeys(("timar_regression", "faceformer_raw", "facediffuser_distilled"), (0,)),
    **dict.fromkeys(("causal_ahead3", "causal_ahead8", "causal_all_own"), (0,)),
    **dict.fromkeys(("gaussiantalker", "ernerf", "synctalk"), (0,)),
}

# Whole runs that `make ablations` trains, in the order of the tables: by variant, stages that it takes over from other
# variants of the same seed, since it would train the same again.
ABLATIONS = {
    "full": {},
    "no_relation": {"avatar": "full"},
    "no_motion_stage": {"avatar": "full"},
    "no_avatar_stage": {"motion": "full"},
    "paper": {},
    "no_offsets": {"motion": "full", "avatar": "full"},
    "offsets": {"motion": "full", "avatar": "full"},
    "motion_offsets": {"motion": "full", "avatar": "full"},
    "timeless_offsets": {"motion": "full", "avatar": "full"},
    "degraded": {"motion": "full"},
    "degraded_offsets": {"motion": "full", "avatar": "degraded"},
    "degraded_motion_offsets": {"motion": "full", "avatar": "degraded"},
    "degraded_timeless_offsets": {"motion": "full", "avatar": "degraded"},
}


def apply_variant(config: ConfigDict, name: str) -> ConfigDict:
  """The config as a variant has it, or as several joined by + have it, one upon the other; an empty name leaves it as it is.

  Raises:
    ValueError: there is none of that name.
  """
  names = name.split("+") if name else []
  for name in names:
    if name not in VARIANTS:
      raise ValueError(f"found {name!r} behind the colon, expected {', '.join(VARIANTS)} or nothing")
    config.update_from_flattened_dict(VARIANTS[name][1])
  if names:
    config.evaluation.title = ", ".join(VARIANTS[name][0] for name in names)
  return config
