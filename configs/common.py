"""Sections that every config shares, each value with its meaning. The numbers are the demo's; configs override them."""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

# Regions of the demo head, and of FLAME if its masks are given.
_REGIONS = ("skin", "lips", "mouth_interior", "teeth", "tongue", "eye_left", "eye_right", "lashes", "scalp", "neck")
_REGIONS += ("face", "boundary", "right_eyeball", "left_eyeball", "right_ear", "left_ear", "forehead", "eye_region", "nose")
_REGIONS += ("right_eye_region", "left_eye_region")


# What radiance fields of a head share. In brackets the published values.
_NERF = dict(
    head_share=0.6,  # Of the stage's steps that train the head …
    lips_share=0.2,  # … and fine-tune its lips; the rest trains the torso.
    crop=48,  # Pixels along the squares about the lips and elsewhere; a frame has as many rays as a square, always [256² rays; 32, SyncTalk 64].
    levels=6,  # Of the planes [12] …
    coarsest=32,  # … from so many texels along a side [64] …
    finest=256,  # … to so many [512].
    features=2,  # Of a texel [1].
    hidden=32,  # Width of the networks of density and colour [64] …
    attention_hidden=32,  # … and of the region attention [64].
    step=0.02706,  # Between samples, in half sides of the head's box [2 √3 / 128].
    lattice_points=72,  # Of a ray, in whose cells is looked …
    samples=16,  # … and of which so many are kept [16].
    occupancy=64,  # Cells along the box [128] …
    occupancy_every=32,  # … and steps between their updates [16].
    torso_coarsest=16,  # Texels along the torso's picture [16] …
    torso_finest=256,  # … to so many [2048].
    learning_rate=2e-3,  # Of networks [1e-3] …
    plane_learning_rate=1e-2,  # … and planes [1e-2].
    final_share=0.2,  # Of the rates, to which they fall over the head's and over the torso's steps [0.5] …
    lips_final_share=0.05,  # … and by the end of the lips' [0.05].
)


def base_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  # How many steps in a row whose loss or gradient is not finite are skipped; one more ends the run. 0: the first ends it.
  config.most_skipped = 0
  # The paper's stages; "codes", before them, is of baselines that make motion of codes. A later one starts from what those
  # before it have trained, or from nothing where one is left out.
  config.stages = ("motion", "avatar", "joint")

  config.mesh = ConfigDict(dict(
      # Devices along the mesh's axes; -1, for one of the two: all that the other leaves. Both split batches.
      data=-1,
      fsdp=1,
      # Without an accelerator the CPU is shown to JAX as so many devices, so that both cores of a laptop work; 0 keeps
      # JAX's own choice.
      cpu_devices=2,
      # How arrays lie on the mesh (rsatalker_jax.sharding.Rules): a pattern of paths, and the axes that split the first
      # dimensions, or "longest", the longest that fsdp divides, of arrays that are large.
      rules=(("/bank/", ("fsdp",)), ("", "longest")),  # Several people's Gaussians by people.
  ))

  config.data = ConfigDict(dict(
      # Where the embedded conversations are unpacked to. Empty: nothing to unpack, the paths below are the user's.
      embedded_root="runs/demo_data",
      performances=3,  # Performances of each embedded dialogue.
      # Paths; relative ones under embedded_root if that is set.
      conversations="conversations",  # DualTalk's layout, or UniLS-Talk's folder, as `layout` says.
      layout="dualtalk",  # Or "seamless": UniLS-Talk joined with Seamless Interaction, read in place.
      # For that: the folder of Seamless Interaction with its tables, and files where there are any. Empty: relations are unknown.
      seamless="",
      subset=(),  # For that: vendors and sessions, ("V00", "V01_S0223"); (): all.
      count=0,  # For that: so many conversations of each split at most; 0: all.
      relations="conversations/relations.csv",
      # Of conversations that the table does not name, or of all if there is no table: "unknown" trains on DualTalk as it
      # is. None makes them an error.
      default_relation=placeholder(str),
      capture="capture",  # VHAP / GaussianAvatars layout.
      # Captures of several people, a folder for each, instead of `capture`: the run then has an avatar of each.
      captures=(),
      # Whose they are: a table capture,person (docs/captures.md), optional. Who is not in it is called by the capture's folder.
      people="captures.csv",
      triplets="triplets.jsonl",
      features="features",  # Speech feature cache.
      reader_threads=2,  # That read and decode ahead of training, in each process.
  ))

  # Arguments of rsatalker_jax.head.load_head.
  config.head = ConfigDict(dict(
      path="assets/head/demo_head.npz",
      teeth=False,  # For FLAME: the teeth of VHAP's and GaussianAvatars' captures and avatars.
      masks=placeholder(str),  # For FLAME: FLAME_masks.pkl, its regions.
      # What its expressions are: flame2020, flame2023 or arkit. None: what the file says, by its content or the year in its name.
      basis=placeholder(str),
  ))

  # Frozen speech encoder.
  config.speech = ConfigDict(dict(
      encoder="logmel",  # Or "wav2vec2", "whisper".
      num_mels=64,
      hop=160,  # Samples between the windows of log-mel …
      context=4,  # … and how many are stacked into one feature.
      causal=False,  # Whether log-mel windows end with their frame, for `generator.causal`.
      level=False,  # Whether each voice is first brought to the level of speech, as far as it is known at each moment (speech/level.py).
      checkpoint="",  # Of the other two: a folder, or an id on the Hugging Face hub.
      resample_first=True,  # To 25 fps before Wav2Vec 2.0's Transformer, as DualTalk has it.
      # Whether training encodes voices that encode_speech.py has not; False ends with one line at the first of them.
      # Configs of the paper's size set it to False: Wav2Vec 2.0's weights are then never loaded in training.
      encode_missing=True,
      # Variants of each training voice, degraded as real microphones, rooms and lines do (rsatalker_jax.data.sound), of which
      # training hears one or the clean voice, drawn for each window. Features of all are kept.
      augmentation=ConfigDict(dict(
          variants=0,
          seed=0,  # Of the variants.
          # Own recordings, wav at 16 kHz, instead of made noise and of made rooms; (): none.
          noises=(),
          impulse_responses=(),
      )),
  ))

  # Fields of rsatalker_jax.motion.MotionConfig.
  config.generator = ConfigDict(dict(
      architecture="rsatalker",
      features=128,
      heads=4,
      reach=25,
      encoder_layers=1,
      decoder_layers=1,
      mlp_ratio=2,
      speech_hidden=256,
      speech_layers=2,
      speech_kernel=3,
      motion_kernel=27,  # A second to each side …
      motion_stride=2,  # … every other frame of it.
      dropout=0.0,
      use_partner=True,
      use_own_speech=True,
      residual=True,
      query_time=False,
      social_norm=True,
      causal=False,
      # Frames of B's own voice that a causal generator hears before they sound, as text to speech knows them. -1: all that it
      # can reach, generator.reach and half of what the speech adapter sees.
      own_lookahead=0,
      remat="none",  # Of each Transformer layer's results gradients find "dots", matrix products, or none ("full"): less memory.
      dtype="float32",
  ))

  # Baselines' own sizes and switches, by `generator.architecture`: fields of the modules of rsatalker_jax.baselines; those of
  # images, below them, by `avatar.method`. In brackets what is published, where it is another.
  config.baselines = ConfigDict(dict(
      dualtalk=ConfigDict(dict(
          features=128,  # [512]
          heads=4,
          encoder_layers=3,
          hidden=512,  # [2048]
          motion_hidden=128,
          dropout=0.1,
          attention_dropout=0.5,
          positions=False,
          speech_layers=2,  # As FaceFormer's [one linear layer].
          speech_kernel=9,
          speech_hidden=256,
      )),
      faceformer=ConfigDict(dict(
          features=128,  # [64 for VOCASET, 128 for BIWI]
          heads=4,
          period=25,
          reach=100,  # [All since the sentence began.]
          dropout=0.1,
          # Log-mel sees a frame, so the adapter has to see the surroundings [one linear layer behind Wav2Vec 2.0].
          speech_layers=2,
          speech_kernel=9,
          speech_hidden=256,
          normalised=True,  # [False: offsets in metres.]
          teacher_forcing=False,
      )),
      emotalk=ConfigDict(dict(
          content_features=128,  # [512]
          emotion_features=64,  # [256]
          style_features=16,  # [64, of intensity and person]
          heads=4,
          period=25,  # [30 at 30 fps]
          reach=100,  # [All since the clip began.]
          dropout=0.1,
          speech_layers=2,  # As FaceFormer's.
          speech_kernel=9,
          speech_hidden=256,
          emotion_kernel=25,  # Two seconds to each side, every fourth frame [one linear layer behind an encoder of emotions].
          emotion_stride=4,
          emotion_hidden=64,
          velocity=0.5,  # [Not known; 0.5 in a re-implementation.]
      )),
      selftalk=ConfigDict(dict(
          features=128,  # [512 for VOCASET, 1024 for BIWI]
          heads=4,
          dropout=0.1,
          speech_layers=2,  # As FaceFormer's.
          speech_kernel=9,
          speech_hidden=256,
          reader_features=64,  # [1024]
          reader_heads=4,  # [8]
          reader_hidden=128,  # [2048]
          reader_layers=1,  # [6]
          velocity=1.0,
          reading=0.1,  # [0.001 / 1000, in other units]
      )),
      codetalker=ConfigDict(dict(
          features=256,  # [1024]
          tokens=4,  # [16 for VOCASET, 8 for BIWI]
          codebook=256,
          code_layers=3,  # [6]
          code_heads=8,
          code_hidden=384,  # [1536]
          code_reach=12,  # [All of the clip.] 25 frames, whose places in the period are all different.
          layers=2,  # [6 for VOCASET, 12 for BIWI]
          heads=4,
          hidden=512,  # [2048]
          reach=100,  # [All since the sentence began.]
          period=25,
          dropout=0.1,
          speech_layers=2,  # As FaceFormer's.
          speech_kernel=9,
          speech_hidden=256,
          own_share=1.0,  # [0]
      )),
      l2l=ConfigDict(dict(
          mels_per_frame=4,  # speech.context.
          features=256,
          codebook=200,
          code_layers=4,  # [12]
          code_heads=8,
          code_hidden=384,
          speaker_features=400,
          layers=5,
          past_layers=2,
          speaker_layers=2,
          heads=10,
          hidden=128,
          samples=True,
          temperature=0.7,
          top_p=0.9,
      )),
      facediffuser=ConfigDict(dict(
          features=256,
          dropout=0.3,
          speech_features=256,  # [1536, HuBERT's]
          speech_layers=2,  # As FaceFormer's.
          speech_kernel=9,
          speech_hidden=256,
          sampling_steps=16,  # [1000]
          distilled_steps=0,
          average=0.999,  # [0]
      )),
      timar=ConfigDict(dict(
          features=128,  # [1024]
          layers=4,  # [32]
          heads=4,  # [16]
          mlp_ratio=4,
          context=4,  # Turns [8].
          joined=True,  # [False]
          dropout=0.0,  # [0.1]
          speech_layers=1,  # [One linear layer behind Wav2Vec 2.0 of each second.]
          speech_kernel=9,
          speech_hidden=128,
          mask_low=0.7,
          user_dropout=0.1,
          head="diffusion",
          head_features=128,  # [1024]
          head_layers=3,
          draws=4,
          learned_variance=False,  # [True]
          sampling_steps=5,
          temperature=1.0,
          feedback=False,
          average=0.999,  # [0.9999]
      )),
      # GaussianTalker (rsatalker_jax.baselines.image.gaussiantalker); spherical harmonics, first size and room of its Gaussians
      # are those of `gaussians`, and `density` controls them.
      gaussiantalker=ConfigDict(dict(
          coarse_steps=150,  # Steps before anything moves [7,999].
          torso="body",  # What the shoulders' Gaussians are fixed to: "body", or "head" [head, in the torso branch].
          planes=(32, 64),  # Texels along the planes' sides [64, 128] …
          channels=16,  # … and channels of each: attention is as wide as all [32].
          hidden=64,  # Of heads and decoders [128].
          heads=2,  # Of the attention [2].
          layers=1,  # [1 or 2]
          learning_rates=ConfigDict(dict(
              means=4e-5,  # Metres [1.6e-4 of the scene's extent].
              quats=1e-2,  # [1e-3]
              log_scales=5e-3,  # [5e-3]
              opacity_logits=5e-2,  # [5e-2]
              sh=2e-2,  # [2.5e-3]
              planes=1e-2,  # [1.6e-3]
              network=1e-3,  # [1e-4]
          )),
          warmup=50,  # Steps over which the rates rise when things begin to move [0].
          final_share=0.1,  # Of the rates, to which they fall in each phase [0.01 of positions', 0.1 of the networks'; others stay].
          max_size=0.015,  # Metres: standard deviations above it are penalised [pruned above 0.1 of the scene's extent].
          loss=ConfigDict(dict(l1=0.8, dssim=0.2, lips=0.4, mask=0.4, size=1.0, lpips=0.01)),  # [no size; lpips: VGG16's features]
      )),
      # ER-NeRF and SyncTalk (rsatalker_jax.baselines.image.ernerf). Of the steps ER-NeRF spends 31 % on the head, 8 % on its
      # lips and the rest on the torso, SyncTalk 24, 16 and 60 %.
      ernerf=ConfigDict(_NERF),
      synctalk=ConfigDict(_NERF | dict(head_share=0.5, lips_share=0.3)),
  ))

  # The socially-aware module (Sec. 3.5).
  config.social = ConfigDict(dict(
      enabled=True,  # False is the paper's "w/o SAM": no relation is told, and no Gaussian is corrected.
      relation_features=32,  # Length of one relation embedding; the query q has twice as many.
      hidden=128,  # Of the motion socialnet.
      offsets_hidden=64,  # Of the Gaussian offsetnet.
      # What the offsetnet sees: Eq. 8 has the relation and the time; "motion", the frame's, is ours.
      offsets_inputs=("relation", "time"),
  ))

  # Arguments of rsatalker_jax.avatar.init_avatar. In brackets the paper's or GaussianAvatars' value, where another
  # reaches more in minutes.
  config.gaussians = ConfigDict(dict(
      sh_degree=0,  # [3; 0 is advised for one camera]
      init_scale=0.6,  # [1] in units of the triangle
      init_opacity=0.5,  # [0.1]
      num_gaussians=placeholder(int),  # None: one per face.
      capacity=FieldReference(20_000, field_type=int),  # Room for those that density control adds; None: none.
      # Factors on a region's share of the Gaussians beyond one per face; 1: as much as its area says.
      region_density=ConfigDict(dict.fromkeys(_REGIONS, 1.0)),
      color_frames=12,  # Frames that the first colours are read from [0: mid-grey].
  ))

  config.render = ConfigDict(dict(
      implementation=placeholder(str),  # None picks.
      tile_size=16,
      # Gaussian-tile pairs a frame that there is room for at first, None guesses; training and rendering make more room when a
      # frame needs it.
      max_intersections=placeholder(int),
      # Frames that a device draws at once in training, and again for their gradients: less memory. 0: all, and once.
      frames_at_once=0,
      background=(1.0, 1.0, 1.0),
  ))

  # --- Before stage 1, codes: of baselines that make motion of codes.
  config.codes = ConfigDict(dict(
      steps=1500,
      batch=8,
      window=100,
      learning_rate=1e-3,
      warmup=100,
      weight_decay=0.01,
      gradient_clip=1.0,
  ))

  # --- Stage 1, motion (Eq. 9). loss: fields of training.losses.MotionLossWeights.
  config.motion = ConfigDict(dict(
      steps=4000,
      batch=4,
      accumulate=1,  # Parts of a batch that a step takes one after another: less memory.
      window=100,
      learning_rate=2e-3,
      warmup=100,
      weight_decay=0.01,
      gradient_clip=1.0,
      orthogonality=0.01,  # Weight of the relation embeddings' orthogonality penalty, in stage 3 too.
      # Whether relations are told and the social module is trained in this stage already [False: it enters with stage 3].
      social_module=True,
      # A's motion as a webcam's tracker has it (rsatalker_jax.data.webcam), in stage 3 too.
      tracker=ConfigDict(dict(
          share=0.0,  # Of the windows that are seen so; 0: none.
          severity=1.0,  # Of errors, where 1 is what was measured.
          lag=3,  # Frames by which all is late at most.
      )),
      loss=ConfigDict(dict(
          expression=1.0, jaw=1.0, pose=1.0, velocity=0.5, relative=True, lips=0.5, closure=12.0, plain_norm=False
      )),
  ))

  # --- Stage 2, avatar (Eq. 10-12). In brackets GaussianAvatars' values, made for 600,000 steps.
  config.avatar = ConfigDict(dict(
      # What learns the person's looks: our Gaussians on the head's triangles, or an image-based baseline, which is driven by
      # speech: "gaussiantalker", "ernerf", "synctalk". Of this section those take steps and batch; the rest is in their own of `baselines`.
      method="gaussians",
      steps=600,  # [600k]
      batch=2,  # [1]
      scene_extent=1.0,  # Explicit: the extent of one camera is 0 and would stop the positions.
      learning_rates=ConfigDict(dict(
          means=2e-2,  # [5e-3 -> 5e-5 times the extent]
          quats=1e-2,  # [1e-3]
          log_scales=3e-2,  # [1.7e-2]
          opacity_logits=5e-2,  # [5e-2]
          sh=3e-2,  # [2.5e-3]
      )),
      sh_rest_share=0.05,  # Rate of the degrees above 0, as a share of theirs [1/20].
      steps_per_sh_degree=0,  # Degrees join one by one; 0: all at once [1k].
      # Corrections of the tracked parameters of each timestep, trained with the Gaussians, by name of the parameter; 0: none
      # [expression=1e-3, rotation, neck, jaw, eyes=1e-5, translation=1e-6].
      flame_learning_rates=ConfigDict(dict(expression=0.0, rotation=0.0, neck=0.0, jaw=0.0, eyes=0.0, translation=0.0)),
      # Shares of themselves to which the rates decay [positions to 0.01, the others stay: 1].
      final_learning_rates=ConfigDict(dict(means=0.1, quats=0.1, log_scales=0.1, opacity_logits=0.1, sh=0.1)),
      dssim_weight=0.2,  # lambda of Eq. 10 [0.2]
      lpips_weight=0.0,  # [0]; not in the paper
      position_weight=0.01,  # lambda_2 of Eq. 13 [0.01]
      position_threshold=1.0,  # eps_pos of Eq. 11 [1]
      scale_weight=1.0,  # [1]; not in the paper
      scale_threshold=0.6,  # [0.6]
  ))

  # Density control in stage 2: none, adaptive (fields of avatar.density.DensityConfig) or mcmc (of avatar.mcmc.McmcConfig).
  # It acts every so many steps, later than `start` and before `stop`, which must leave `every` steps before the stage ends.
  # In brackets GaussianAvatars' values, and those of the paper of MCMC.
  config.density = ConfigDict(dict(
      way="adaptive",
      adaptive=ConfigDict(dict(
          start=0,  # [10k]
          stop=350,  # [600k, which is their last step]
          every=50,  # [2k]
          gradient_threshold=4e-4,  # [2e-4; AbsGS 4e-4 for absolute gradients]
          absolute=True,  # [False; AbsGS True]
          dense_size=0.002,  # [0.01 of the scene's extent]
          split_shrink=1.6,  # [1.6]
          min_opacity=0.005,  # [0.005]
          max_size=0.0,  # [0.1 of the scene's extent, from the first reset on]
          max_radius=0.0,  # [20, from the first reset on; without effect, as their maxima are emptied before they are read]
          reset_every=0,  # [60k; on white also at `start`]
          reset_opacity=0.01,  # [0.01]
      )),
      mcmc=ConfigDict(dict(
          start=0,  # [500]
          stop=550,  # [25k]
          every=50,  # [100]
          growth=1.05,  # [1.05]
          min_opacity=0.005,  # [0.005]
          noise=5.0,  # [5e5, where lengths are the scene's and not the triangle's]
          opacity_weight=0.01,  # [0.01]
          scale_weight=0.01,  # [0.01]
      )),
  ))

  # --- Stage 3, joint (Eq. 13).
  config.joint = ConfigDict(dict(
      steps=120,
      batch=2,  # Windows of filmed conversations …
      frames=2,  # … and how many frames of each are rendered.
      # Windows of all conversations, for L_mesh; the first `batch` of them are drawn. 0: L_mesh of the filmed windows [0].
      motion_batch=8,
      window=100,
      generator_learning_rate=5e-5,
      # Of the rates with which stage 2 ended, and to which share of that they decay; steps over which they rise first.
      avatar_learning_rate=3.0,  # [1]
      final_avatar_learning_rate=0.1,
      avatar_warmup=0,
      # Higher, the offsets learn the times of the training film's poses, which other conversations do not have.
      offsets_learning_rate=1e-7,
      image_weight=0.1,  # lambda_1 of Eq. 13
      lpips_weight=0.0,  # Of LPIPS beside L1 and SSIM, of images that are compared with the film's [0].
      # Generated motion never meets the video exactly (when a head turns or an eye blinks is partly chance), so its pixels
      # pull the Gaussians towards a blur, and the offsets towards the poses of the training film.
      avatar_share=0.0,  # Share of that pull that reaches Gaussians and offsets [1].
      tracked_weight=0.5,  # Of L_image of the same frames with tracked motion [0].
      drawn_weight=5.0,  # Of L_image of unfilmed conversations, generated against true motion [0].
      position_weight=0.01,  # lambda_2
      offset_weight=0.01,  # lambda_3
      offset_threshold=1.0,  # eps_offset of Eq. 12
  ))

  # --- How the run is watched and scored; changes nothing that is computed in training.
  config.logging = ConfigDict(dict(
      log_every=20,
      pictures_every=500,
      checkpoint_every=250,
      evaluate_every=500,
      # Without a step after which all threads' stacks are printed (0: never), and whether the process then ends.
      hang_seconds=900.0,
      hang_ends=False,
      slow_factor=3.0,  # Of the median's time after which a step is named as slow; 0: none is.
      # A folder on each host's own disk for emergency checkpoints; empty: none. Steps between them.
      local_checkpoints="",
      local_every=50,
      profile=(),  # First and last step of which each stage's folder gets a trace by jax.profiler; (): none.
  ))
  config.evaluation = ConfigDict(dict(
      frames=60,  # That are rendered, as many of each film, at least one.
      lpips_nets=("alex",),  # "alex", "vgg"; VGG takes most of the scoring time on a CPU.
      samples=3,  # Of each clip, that are scored of a baseline that samples.
      title="RSATalker",  # Of the run's row in tables.
      compare="compare",  # Folder in the workdir with runs that stand in the same tables.
  ))
  return config
