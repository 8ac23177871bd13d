"""Exports a trained avatar for other programs.

    python export_avatar.py --workdir=runs/demo --out=head.ply                    # 3D Gaussians at rest
    python export_avatar.py --workdir=runs/demo --out=head.spz --motion=b.npz --frame=40
    python export_avatar.py --workdir=runs/demo --out=person/bound.ply --format=bound   # as GaussianAvatars keeps it

docs/exchange.md tells what each format holds and what it loses.
"""

from absl import flags

from rsatalker_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "The trained run.")
_OUT = flags.DEFINE_string("out", None, "The file, .ply or .spz.")
_FORMAT = flags.DEFINE_enum("format", None, ["ply", "bound", "spz"], "By the name of --out if not given.")
_MOTION = flags.DEFINE_string("motion", None, "Pose, .npz, .pkl or folder: exp (T, 50), pose (T, 6); none: at rest.")
_FRAME = flags.DEFINE_integer("frame", 0, "Which frame of --motion; with --relation also the time.", lower_bound=0)
_RELATION = flags.DEFINE_string("relation", None, "With the joint stage's offset corrections for this relation.")
_PERSON = flags.DEFINE_string("person", None, "Whose avatar, where the run has a bank of several people.")
flags.mark_flags_as_required(["workdir", "out"])


def main():
  from rsatalker_jax.training import checkpoints

  command_line.use_devices(checkpoints.load_config(_WORKDIR.value)["mesh"])
  # After the devices are chosen: this imports jax's backends.
  from rsatalker_jax import avatar_export

  avatar_export.export_avatar(
      workdir=_WORKDIR.value,
      person=_PERSON.value,
      out=_OUT.value,
      format=_FORMAT.value,
      motion=_MOTION.value,
      frame=_FRAME.value,
      relation=_RELATION.value,
  )


if __name__ == "__main__":
  command_line.run(main)
