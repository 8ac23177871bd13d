"""Generates the other person: two voices, one person's motion and their relation in, a video of both faces out.

    python generate.py --workdir=runs/demo --speech_a=a.wav --motion_a=a.npz --speech_b=b.wav \\
        --relation=non_blood,unequal --out=conversation.mp4

A, on the left, moves as the file says; B, on the right, is generated. --save_motion also keeps B's motion as an npz in
DualTalk's layout.
"""

from absl import flags

from rsatalker_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "The trained run.")
_SPEECH_A = flags.DEFINE_string("speech_a", None, "Partner's voice, wav.")
_MOTION_A = flags.DEFINE_string("motion_a", None, "Partner's motion, .npz, .pkl or folder: exp (T, 50), pose (T, 6).")
_SPEECH_B = flags.DEFINE_string("speech_b", None, "Voice of the person to generate, wav.")
_RELATION = flags.DEFINE_string("relation", None, "blood|non_blood|unknown,equal|unequal|unknown; or unknown, for both")
_OUT = flags.DEFINE_string("out", None, "The video, .mp4.")
_SAVE_MOTION = flags.DEFINE_string("save_motion", None, "Also write B's motion here, .npz.")
_SIZE = flags.DEFINE_integer("size", 320, "Height of each face in pixels, even.", lower_bound=32)
_SECONDS = flags.DEFINE_float("seconds", None, "Only the first seconds.", lower_bound=0.2)
_PERSON = flags.DEFINE_string("person", None, "Whose avatar, where the run has a bank of several people.")
flags.mark_flags_as_required(["workdir", "speech_a", "motion_a", "speech_b", "relation", "out"])


def main():
  from rsatalker_jax.training import checkpoints

  command_line.use_devices(checkpoints.load_config(_WORKDIR.value)["mesh"])
  # After the devices are chosen: this imports jax's backends.
  from rsatalker_jax import conversation_video

  conversation_video.generate_video(
      workdir=_WORKDIR.value,
      person=_PERSON.value,
      speech_a=_SPEECH_A.value,
      motion_a=_MOTION_A.value,
      speech_b=_SPEECH_B.value,
      relation=_RELATION.value,
      out=_OUT.value,
      save_motion=_SAVE_MOTION.value,
      size=_SIZE.value,
      seconds=_SECONDS.value,
  )


if __name__ == "__main__":
  command_line.run(main)
