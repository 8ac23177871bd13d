"""What other people, real microphones, rooms and lines make of a voice: degradations of a waveform, 16 kHz mono, and chains of them drawn by seed.

None moves a voice in time by more than a millisecond (`resize`: by 3, in the mean), or the lips that belong to it would come early or late.
"""

from rsatalker_jax.data.sound.chain import Degradation, make_degradations
from rsatalker_jax.data.sound.degradations import (
    active_power,
    add_noise,
    amplify,
    clip_peaks,
    code_mu_law,
    code_opus,
    equalise,
    limit_band,
    make_noise,
    resize,
    reverberate,
)
from rsatalker_jax.data.sound.rooms import absorption_for, eyring_time, room_impulse_response, sabine_time

__all__ = [
    "Degradation",
    "absorption_for",
    "active_power",
    "add_noise",
    "amplify",
    "clip_peaks",
    "code_mu_law",
    "code_opus",
    "equalise",
    "eyring_time",
    "limit_band",
    "make_degradations",
    "make_noise",
    "resize",
    "reverberate",
    "room_impulse_response",
    "sabine_time",
]
