"""The script that poses a head in a page, against `head_vertices`."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from media.browser import BROWSER, OpenPage
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, pose_for
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.media.viewer import read_scripts

FRAMES = 5


@pytest.fixture(scope="module")
def flexible(head):
  """A head of which every table has an effect: pose correctives, and vertices that follow several joints, eyes too."""
  rng = np.random.default_rng(7)
  weights = rng.dirichlet(np.ones(5), size=len(head.v_template))
  regressor = rng.dirichlet(np.ones(len(head.v_template)), size=5)
  correctives = 0.003 * rng.normal(size=head.pose_directions.shape)
  as_32 = lambda x: jnp.asarray(x, jnp.float32)
  return head.replace(weights=as_32(weights), joint_regressor=as_32(regressor), pose_directions=as_32(correctives))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")
def test_the_script_poses_as_head_vertices_does(tmp_path, flexible, avatar):
  rng = np.random.default_rng(8)
  motion = (rng.normal(size=(FRAMES, 56)) * np.repeat([0.5, 0.3, 0.4], [50, 3, 3])).astype(np.float32)
  motion[0] = 0
  motion[1, 50:] *= 1e-5  # Where Rodrigues' formula divides by nothing.
  tables = Tables("head")
  tables.add_head(avatar, flexible)
  page = tmp_path / "head.html"
  page.write_text(f"<!DOCTYPE html><meta charset=utf-8><script>{read_scripts('tables.js', 'head.js')}</script>")
  with OpenPage(page, tmp_path / "profile") as opened:
    packed = base64.b64encode(tables.pack()).decode()
    posed = opened.evaluate(f"""(async () => {{
      const packed = Uint8Array.from(atob("{packed}"), (c) => c.charCodeAt(0));
      const head = new Head(readTables({json.dumps(tables.descriptions)}, await unzip(packed)));
      return {json.dumps(motion.tolist())}.map((motion) => [...head.pose(motion)]);
    }})()""")
    assert opened.errors == []
  pose = lambda flame: head_vertices(flexible, shape=avatar.shape, static_offset=avatar.static_offset, **flame)
  expected = np.asarray(jax.vmap(pose)(pose_for(motion)))
  # 16 bits of each column leave micrometres: of the template, and of fifty expressions and eighteen correctives together.
  np.testing.assert_allclose(np.reshape(posed, expected.shape), expected, atol=5e-6)
  assert np.abs(np.diff(expected, axis=0)).max() > 0.01


def test_a_head_with_other_joints_is_refused(flexible, avatar):
  with pytest.raises(InputError, match="run: parents: found .*, expected the tree of FLAME's joints global, neck"):
    Tables("run").add_head(avatar, flexible.replace(parents=(-1, 0, 1, 2, 2)))
