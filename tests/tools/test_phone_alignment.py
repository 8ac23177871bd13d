"""What an alignment leaves out of the sound, and what misaki's symbols are in ARPAbet."""

import numpy as np
import pytest

pytest.importorskip("pocketsphinx")  # Of tools/requirements.txt.

from tools import phone_alignment

RATE = phone_alignment.SAMPLE_RATE


def test_share_of_energy_outside_the_phones():
  """A tone of one second: phones from .36 to .6 s, with 60 ms before and 100 ms after, leave .3 + .3 s of it out."""
  tone = np.sin(np.arange(RATE) * 0.3).astype(np.float32)
  share = phone_alignment._share_left_out(tone, [[("M", 0.36, 0.5)], [("AH", 0.5, 0.6)]])
  assert share == pytest.approx(0.6, abs=0.01)
  assert phone_alignment._share_left_out(tone, [[("M", 0.0, 0.4), ("AH", 0.5, 0.95)]]) == 0


def test_symbols():
  assert phone_alignment.to_arpabet("wˈɔTəɹ") == ["W", "AO", "D", "ER"]
  assert phone_alignment.to_arpabet("ˈ,") == []
  with pytest.raises(ValueError, match="no ARPAbet phone"):
    phone_alignment.to_arpabet("x7")
