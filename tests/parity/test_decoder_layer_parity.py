"""The baselines' decoder layer against PyTorch's, with FaceFormer's bias and mask of memory given to that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from rsatalker_jax.baselines.motion.layers import DecoderLayer

pytestmark = oracles.needs("torch")
FRAMES = 11


@pytest.mark.parametrize("heads", [2, 4])
def test_layer_equals_pytorchs(heads):
  import torch

  layer = DecoderLayer(features=8, heads=heads, hidden=6, period=3, reach=FRAMES)
  rng = np.random.default_rng(0)
  x, memory = jnp.asarray(rng.normal(size=(2, FRAMES, 8)), jnp.float32)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, memory)
  params = jax.tree.map(lambda x: jnp.asarray(0.7 * rng.normal(size=x.shape), x.dtype), shapes)
  theirs = torch.nn.TransformerDecoderLayer(8, heads, dim_feedforward=6, batch_first=True).eval()
  weights, tensor = params["params"], lambda x: torch.tensor(np.array(x))

  def copy(ours, to, kernel="kernel"):
    to.weight.copy_(tensor(weights[ours][kernel].T))
    to.bias.copy_(tensor(weights[ours]["bias"]))

  with torch.no_grad():
    own, aligned = weights["self_attention"], weights["memory_attention"]
    parts = [own[name] for name in ("query", "key", "value")]
    theirs.self_attn.in_proj_weight.copy_(tensor(np.concatenate([part["kernel"].T for part in parts])))
    theirs.self_attn.in_proj_bias.copy_(tensor(np.concatenate([part["bias"] for part in parts])))
    theirs.multihead_attn.in_proj_weight[16:].copy_(tensor(aligned["value"]["kernel"].T))  # Of query and key it is any.
    theirs.multihead_attn.in_proj_bias[16:].copy_(tensor(aligned["value"]["bias"]))
    for part, to in ((own, theirs.self_attn), (aligned, theirs.multihead_attn)):
      to.out_proj.weight.copy_(tensor(part["out"]["kernel"].T))
      to.out_proj.bias.copy_(tensor(part["out"]["bias"]))
    copy("mlp_hidden", theirs.linear1)
    copy("mlp_out", theirs.linear2)
    for name, to in (("attention_norm", theirs.norm1), ("memory_norm", theirs.norm2), ("mlp_norm", theirs.norm3)):
      copy(name, to, "scale")
    back = np.arange(FRAMES)[:, None] - np.arange(FRAMES)
    slopes = 2.0 ** (-8 * (np.arange(heads) + 1) / heads)
    bias = np.where(back >= 0, -slopes[:, None, None] * (back // 3), -np.inf).astype(np.float32)
    alignment = torch.tensor(~np.eye(FRAMES, dtype=bool))
    expected = theirs(tensor(x)[None], tensor(memory)[None], tgt_mask=torch.tensor(bias), memory_mask=alignment)[0]
  np.testing.assert_allclose(layer.apply(params, x, memory), expected.numpy(), atol=2e-5)
