"""The baseline's bidirectional LSTM against PyTorch's of two layers, as DualTalk's code has it, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np

import oracles
from motion_configs import motion_config
from rsatalker_jax.baselines.motion import DualTalk

pytestmark = oracles.needs("torch")
FEATURES, FRAMES = 16, 7


def test_both_layers_in_both_directions():
  import torch

  sizes = dict(heads=2, encoder_layers=1, hidden=8, motion_hidden=8, dropout=0.0, attention_dropout=0.0, positions=False)
  model = DualTalk(motion_config(), FEATURES, **sizes, speech_layers=1, speech_kernel=1, speech_hidden=4)
  rng = np.random.default_rng(0)
  draw = lambda size: jnp.asarray(rng.normal(size=(FRAMES, size)), jnp.float32)
  inputs = draw(6), draw(56), draw(6), draw(FEATURES)[0]
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
  _, state = jax.jit(lambda p: model.apply(p, *inputs, capture_intermediates=True))(params)
  between = state["intermediates"]
  given, found = between["partner_attention"]["__call__"][0], between["lstm_1"]["__call__"][0]

  lstm = torch.nn.LSTM(FEATURES // 2, FEATURES // 4, num_layers=2, bidirectional=True, batch_first=True)
  with torch.no_grad():
    cells = sorted(name for name in params["params"] if "LSTMCell" in name)
    names = [(f"l{layer}{end}") for layer in (0, 1) for end in ("", "_reverse")]
    for cell, name in zip(cells, names, strict=True):
      weights = params["params"][cell]
      stack = lambda kind, leaf: torch.tensor(np.concatenate([np.asarray(weights[kind + g][leaf]).T for g in "ifgo"]))
      getattr(lstm, f"weight_ih_{name}").copy_(stack("i", "kernel"))
      getattr(lstm, f"weight_hh_{name}").copy_(stack("h", "kernel"))
      getattr(lstm, f"bias_hh_{name}").copy_(stack("h", "bias"))
      getattr(lstm, f"bias_ih_{name}").zero_()
    expected = lstm(torch.tensor(np.asarray(given))[None])[0][0].numpy()
  np.testing.assert_allclose(found, expected, atol=1e-6)
