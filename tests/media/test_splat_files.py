"""Files of Gaussians against the bytes read by hand, gsply, numpy's binding and the rasterizer's pictures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import flame_mesh
import splat_kernels
from rsatalker_jax.avatar import Gaussians, render_frames
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head, pose_for
from rsatalker_jax.media import splat_files
from tiny_world import make_motion

FIELDS = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]


def field_names(num_rest: int, *extra: str) -> list[str]:
  rest = [f"f_rest_{i}" for i in range(num_rest)]
  return [*FIELDS, *rest, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3", *extra]


def read_table(path) -> np.ndarray:
  """A PLY of floats by its header alone."""
  header, body = path.read_bytes().split(b"end_header\n", 1)
  lines = header.decode().splitlines()
  assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
  names = [line.split()[2] for line in lines if line.startswith("property float ")]
  assert len(lines) == 3 + len(names)
  table = np.frombuffer(body, [(name, "<f4") for name in names])
  assert lines[2] == f"element vertex {len(table)}"
  return table


def write_table(path, columns: dict[str, np.ndarray], kind: str = "<f4") -> None:
  names = {"<f4": "float", "<f8": "double"}
  lines = ["ply", "format binary_little_endian 1.0", "comment by hand", f"element vertex {len(columns['x'])}"]
  header = "\n".join([*lines, *(f"property {names[kind]} {name}" for name in columns), "end_header\n"])
  path.write_bytes(header.encode() + np.stack(list(columns.values()), axis=1).astype(kind).tobytes())


@pytest.fixture(scope="module")
def flame():
  return jax.tree.map(jnp.asarray, pose_for(make_motion(3)[17]))


@pytest.fixture(scope="module")
def camera():
  pose = np.eye(4, dtype=np.float32)
  pose[:3, :3] = np.diag([1.0, -1.0, -1.0])
  pose[2, 3] = 0.5
  return splat_kernels.Camera(pose, np.array([[60, 0, 16], [0, 60, 16], [0, 0, 1]], np.float32), 32, 32)


@pytest.fixture(scope="module")
def picture(head, flame, camera):
  """Picture of an avatar in the pose `flame`."""
  poses = jax.tree.map(lambda x: x[None], flame)
  render = lambda avatar: render_frames(avatar, head, poses, None, camera, implementation="reference").image[0]
  return lambda avatar: np.asarray(render(avatar))


@pytest.fixture(scope="module")
def baked(avatar, head, flame) -> Gaussians:
  return jax.device_get(splat_files.bake(avatar, head, flame))


def draw_gaussians(gaussians: Gaussians, camera) -> np.ndarray:
  """Without the package's avatar; as one frame of a batch, which is the program that `picture` has compiled."""
  output = splat_kernels.rasterize(
      gaussians.means[None],
      gaussians.quats[None],
      np.exp(gaussians.log_scales)[None],
      1 / (1 + np.exp(-gaussians.opacity_logits)),
      gaussians.sh,
      camera,
      sh_degree=2,
      implementation="reference",
  )
  return np.asarray(output.image[0])


def test_baked_bytes_are_the_triangles_frames_applied(tmp_path, avatar, head, flame, baked):
  path = tmp_path / "new folder" / "head.ply"
  splat_files.write_ply(path, baked)
  assert [p.name for p in path.parent.iterdir()] == ["head.ply"]
  table = read_table(path)
  assert list(table.dtype.names) == field_names(24)

  posed = jax.jit(head_vertices)(head, shape=avatar.shape, static_offset=avatar.static_offset, **flame)
  corners = np.asarray(posed, np.float64)[np.asarray(head.faces)[np.asarray(avatar.binding)]]
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  along = unit(corners[:, 1] - corners[:, 0])
  normal = unit(np.cross(along, corners[:, 2] - corners[:, 0]))
  third = np.cross(along, normal)
  height = np.abs(np.sum(third * (corners[:, 2] - corners[:, 0]), axis=1))
  size = (np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1) + height) / 2
  frames = np.stack([along, normal, third], axis=2)
  local = jax.device_get(avatar.gaussians)
  means = size[:, None] * np.einsum("nij,nj->ni", frames, local.means) + corners.mean(axis=1)
  # float32 through skinning and frames: some 1e-7 of a head of 0.1 m.
  np.testing.assert_allclose(np.stack([table[name] for name in "xyz"], axis=1), means, atol=1e-6)
  scales = np.stack([table[f"scale_{i}"] for i in range(3)], axis=1)
  np.testing.assert_allclose(scales, local.log_scales + np.log(size)[:, None], atol=1e-4)
  quats = np.stack([table[f"rot_{i}"] for i in range(4)], axis=1)
  np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-6)
  turns = frames @ Rotation.from_quat(local.quats, scalar_first=True).as_matrix()
  np.testing.assert_allclose(Rotation.from_quat(quats, scalar_first=True).as_matrix(), turns, atol=2e-5)
  # Colours are those of the avatar: the second band's third coefficient of green, for one, stands by channel.
  np.testing.assert_array_equal(table["opacity"], local.opacity_logits)
  np.testing.assert_array_equal(table["f_dc_1"], local.sh[:, 0, 1])
  np.testing.assert_array_equal(table["f_rest_10"], local.sh[:, 1 + 2, 1])
  assert not any(table[name].any() for name in ("nx", "ny", "nz"))


def test_plain_ply_draws_the_same_picture_here_and_through_gsply(tmp_path, avatar, camera, picture, baked):
  import gsply

  path = tmp_path / "head.ply"
  splat_files.write_ply(path, baked)
  gaussians, binding = splat_files.read_ply(path)
  assert binding is None
  chex.assert_trees_all_equal(gaussians, baked)
  before = picture(avatar)
  assert before.max() > 0.3
  # The same Gaussians, through logarithms and logits and back.
  np.testing.assert_allclose(draw_gaussians(gaussians, camera), before, atol=1e-5)

  other = gsply.plyread(path)
  np.testing.assert_array_equal(other.means, baked.means)
  np.testing.assert_array_equal(other.quats, baked.quats)
  np.testing.assert_array_equal(other.scales, baked.log_scales)
  np.testing.assert_array_equal(other.opacities, baked.opacity_logits)
  np.testing.assert_array_equal(other.sh0, baked.sh[:, 0])
  np.testing.assert_array_equal(np.reshape(other.shN, (-1, 8, 3)), baked.sh[:, 1:])


def test_spz_rounds_by_its_steps(tmp_path, baked):
  import gzip

  path = tmp_path / "head.spz"
  splat_files.write_spz(path, baked)
  assert [p.name for p in tmp_path.iterdir()] == ["head.spz"]
  data = gzip.decompress(path.read_bytes())
  count = len(baked.means)
  assert data[:4] == b"NGSP" and list(np.frombuffer(data[4:12], "<u4")) == [3, count] and data[12:14] == b"\x02\x14"
  sections = np.split(np.frombuffer(data[16:], np.uint8), np.cumsum(count * np.array([9, 1, 3, 3, 4])))
  fixed = np.pad(sections[0].reshape(-1, 3), ((0, 0), (1, 0))).copy().view("<i4")[:, 0] >> 8
  # Half a step of each: 2^-20 m, 1/255, 1/16, 1/128; the colour's constant term in steps of 1/(0.15 * 255).
  np.testing.assert_allclose(fixed.reshape(-1, 3) * 2.0**-20, baked.means, atol=0.501 * 2**-20)
  np.testing.assert_allclose(sections[1] / 255, 1 / (1 + np.exp(-baked.opacity_logits)), atol=0.501 / 255)
  colors = (sections[2].reshape(-1, 3) - 127.5) / (0.15 * 255)
  np.testing.assert_allclose(colors, baked.sh[:, 0], atol=0.501 / (0.15 * 255))
  np.testing.assert_allclose(sections[3].reshape(-1, 3) / 16 - 10, baked.log_scales, atol=0.501 / 16)
  rest = np.clip(baked.sh[:, 1:], -1, 127 / 128)
  clipped = (rest != baked.sh[:, 1:]).any(axis=(1, 2)).sum()
  assert clipped > 0
  (loss,) = splat_files.spz_losses(baked)
  assert loss.startswith(f"{clipped} of {count} Gaussians have spherical harmonics")
  np.testing.assert_allclose(sections[5].reshape(-1, 8, 3) / 128 - 1, rest, atol=0.501 / 128)


def test_bound_ply_comes_back_as_the_same_avatar(tmp_path, avatar, head, picture):
  path = tmp_path / "bound.ply"
  beside = splat_files.write_bound_ply(path, avatar, head)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bound.ply", "flame_param.npz"]
  table = read_table(path)
  assert list(table.dtype.names) == field_names(24, "binding_0")
  np.testing.assert_array_equal(table["binding_0"], avatar.binding)
  np.testing.assert_array_equal(table["y"], avatar.gaussians.means[:, 1])  # In the triangles' frames.
  with np.load(beside) as file:
    assert {key: file[key].shape[1:] for key in file} == {
        **dict(shape=(), expr=(50,), rotation=(3,), neck_pose=(3,), jaw_pose=(3,), eyes_pose=(6,), translation=(3,)),
        **dict.fromkeys(["static_offset", "dynamic_offset"], head.v_template.shape),
    }
  again = splat_files.load_bound_ply(path, head)
  chex.assert_trees_all_equal(again, avatar)
  np.testing.assert_array_equal(picture(again), picture(avatar))

  splat_files.write_bound_ply(tmp_path / "second.ply", avatar, head)  # The same person may stand beside it.
  with pytest.raises(InputError, match="flame_param.npz: found another person's identity"):
    splat_files.write_bound_ply(tmp_path / "third.ply", avatar.replace(shape=-avatar.shape), head)
  assert not (tmp_path / "third.ply").exists()


def test_foreign_bound_ply_is_ordered_by_faces(tmp_path, avatar, head, picture):
  """As GaussianAvatars' density control leaves it: faces in any order; here one face is bare, too."""
  local = jax.device_get(avatar.gaussians)
  bare = 5
  order = np.random.default_rng(2).permutation(len(avatar.binding))
  order = order[np.asarray(avatar.binding)[order] != bare]
  rest = local.sh[order, 1:].transpose(0, 2, 1).reshape(len(order), -1)
  zeros = np.zeros((len(order), 3))
  parts = [local.means[order], zeros, local.sh[order, 0], rest, local.opacity_logits[order, None]]
  parts += [local.log_scales[order], local.quats[order], np.asarray(avatar.binding)[order, None]]
  columns = dict(zip(field_names(24, "binding_0"), np.concatenate(parts, axis=1).T))
  path = tmp_path / "point_cloud.ply"
  write_table(path, columns, "<f8")
  frames = 3
  np.savez(
      tmp_path / "flame_param.npz",
      shape=np.asarray(avatar.shape),
      static_offset=np.asarray(avatar.static_offset)[None],
      dynamic_offset=np.zeros((frames, *head.v_template.shape), np.float32),
      expr=np.ones((frames, 100), np.float32),
  )
  read = splat_files.load_bound_ply(path, head)
  num_faces = head.faces.shape[0]
  np.testing.assert_array_equal(read.binding[:num_faces], np.arange(num_faces))
  np.testing.assert_array_equal(np.sort(read.binding), np.sort([bare, *np.asarray(avatar.binding)[order]]))
  # The picture is that of the avatar whose Gaussians of the bare face are transparent.
  unseen = jnp.where(avatar.binding == bare, -30.0, avatar.gaussians.opacity_logits)
  expected = picture(avatar.replace(gaussians=avatar.gaussians.replace(opacity_logits=unseen)))
  assert np.abs(expected - picture(avatar)).max() > 0.01
  np.testing.assert_allclose(picture(read), expected, atol=1e-6)  # Other order, other sums.

  (tmp_path / "flame_param.npz").unlink()
  with pytest.raises(InputError, match="flame_param.npz"):
    splat_files.load_bound_ply(path, head)
  alone = splat_files.load_bound_ply(path, head, shape=np.zeros(2))
  assert alone.static_offset is None and not alone.shape.any()


def test_avatar_of_gaussian_avatars_needs_flame_with_teeth(tmp_path):
  """10144 faces and vertex offsets for 5143 vertices, as GaussianAvatars leaves a person."""
  flame = flame_mesh.write_flame(tmp_path / "flame.npz")
  bare, head = load_head(flame), load_head(flame, teeth=True)
  count = head.faces.shape[0]
  order = np.random.default_rng(5).permutation(count)
  columns = {name: np.zeros(count) for name in field_names(0, "binding_0")} | dict(rot_0=np.ones(count), binding_0=order)
  columns["opacity"] = order / count
  path = tmp_path / "point_cloud.ply"
  write_table(path, columns)
  offset = np.random.default_rng(6).normal(size=(1, 5143, 3)).astype(np.float32) * 0.001
  np.savez(tmp_path / "flame_param.npz", shape=np.zeros(300, np.float32), static_offset=offset)
  with pytest.raises(InputError, match="found faces 0 to 10143, expected 0 to 9975, .*; load FLAME with its teeth"):
    splat_files.load_bound_ply(path, bare)

  avatar = splat_files.load_bound_ply(path, head)
  np.testing.assert_array_equal(avatar.binding, np.arange(10144))
  np.testing.assert_allclose(avatar.gaussians.opacity_logits, np.arange(count) / count, rtol=1e-6)
  np.testing.assert_array_equal(avatar.static_offset, offset[0])
  # At rest a Gaussian with mean 0 sits in the middle of its triangle, teeth like skin.
  gaussians = splat_files.bake(avatar, head, pose_for(np.zeros(56, np.float32)))
  corners = (np.asarray(head.v_template) + offset[0])[np.asarray(head.faces)]
  np.testing.assert_allclose(gaussians.means, corners.mean(axis=1), atol=1e-6)

  splat_files.write_bound_ply(tmp_path / "again" / "bound.ply", avatar, head)
  again = splat_files.load_bound_ply(tmp_path / "again" / "bound.ply", head)
  chex.assert_trees_all_equal(again, avatar)


def _replaced(old: bytes, new: bytes):
  return lambda content: content.replace(old, new, 1)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content: content[:-5], "bytes after the header, expected"),
        (lambda content: content + b"1234", "bytes after the header, expected"),
        (lambda content: content[:200], "end_header: found none"),
        (lambda content: b"", "expected a PLY"),
        (_replaced(b"binary_little_endian", b"ascii"), "format: found ascii, expected binary_little_endian"),
        (_replaced(b"binary_little_endian", b"binary_big_endian"), "format: found binary_big_endian"),
        (_replaced(b"opacity", b"density"), "opacity: found no such field"),
        (_replaced(b"nx", b"ao"), "ao: found a field that is not of 3D Gaussian splatting"),
        (_replaced(b"property float f_rest_23\n", b""), "f_rest: found 23 fields"),
        (_replaced(b"property float nx", b"property list uchar int nx"), "header: found 'property list"),
        (_replaced(b"element vertex", b"element face"), "element: found .* of face"),
        (_replaced(b"element vertex ", b"element vertex 9"), "bytes after the header, expected"),
        (_replaced(b"element vertex ", b"element vertex " + b"9" * 5000), "header: found 'element vertex 9999"),
        (_replaced(b"format binary_little_endian 1.0\n", b""), "format: found none"),
        (_replaced(b"element vertex", b"element face 3\nelement vertex"), "element: found 3 of face, .* of vertex"),
        (_replaced(b"end_header", b"property float filter_3D\nend_header"), "filter_3D: found a field that is not"),
        (_replaced(b"property float x", b"property uint packed_position"), "packed_position: found SuperSplat's compressed"),
        (_replaced(b"property float rot_0", b"property float x"), "header: found 'property float x'"),
        (lambda content: content[:-8] + np.float32([np.nan, 0]).tobytes(), "rot_3, Gaussian .*: found nan"),
        (lambda content: content[:-20] + np.zeros(5, "<f4").tobytes(), "found a quaternion of zeros"),
        (lambda content: content[:-20] + np.float32([1e-30, 0, 0, 0, 0]).tobytes(), "rot_.*, Gaussian .*: found the quaternion"),
        (lambda content: content[:-20] + np.float32([1e30, 0, 0, 0, 0]).tobytes(), "rot_.*, Gaussian .*: found the quaternion"),
        (lambda content: content[:-24] + np.float32(np.inf).tobytes() + content[-20:], "scale_2, Gaussian .*: found inf"),
        (lambda content: content[:-24] + np.float32(89).tobytes() + content[-20:], "scale_2, .*: found 89.0, .* below 89"),
        (lambda content: content[:-4] + np.float32(1e10).tobytes(), "binding_0, Gaussian .*: found 1e.10"),
        (lambda content: content[:-4] + np.float32(0.5).tobytes(), "binding_0, Gaussian .*: found 0.5"),
        (lambda content: content[:-4] + np.float32(1e6).tobytes(), "binding_0: found faces 0 to 1000000, expected"),
        (lambda content: content[:-4] + np.float32(-1).tobytes(), "binding_0: found faces -1 to"),
    ],
)
def test_damaged_plys_are_named(tmp_path, avatar, head, damage, message):
  path = tmp_path / "bound.ply"
  splat_files.write_bound_ply(path, avatar, head)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(InputError, match=message) as caught:
    splat_files.load_bound_ply(path, head)
  assert str(caught.value).startswith(str(path))


def test_valid_extremes_are_read(tmp_path, baked):
  """Opacities of 0 and 1, flat Gaussians, fields that nobody reads, elements of which there are none, a last line end."""
  path = tmp_path / "a.ply"
  splat_files.write_ply(path, baked)
  plain, _ = splat_files.read_ply(path)
  header, body = path.read_bytes().split(b"end_header\n")
  table = np.frombuffer(body, [(name, "<f4") for name in field_names(24)]).copy()
  table["opacity"][:2], table["scale_1"][2], table["nx"][3] = (np.inf, -np.inf), -np.inf, np.nan
  face = b"element face 0\nproperty list uchar int vertex_indices\n"
  for content in (
      header + face + b"end_header\n" + table.tobytes() + b"\n",
      header.replace(b"element vertex", face + b"element vertex") + b"end_header\n" + table.tobytes() + b"\r\n",
      header.replace(b"\n", b"\r\n") + b"end_header\r\n" + table.tobytes(),
  ):
    path.write_bytes(content)
    gaussians, _ = splat_files.read_ply(path)
    np.testing.assert_allclose(1 / (1 + np.exp(-gaussians.opacity_logits[:2])), [1, 0], rtol=0, atol=1e-8)
    assert np.exp(gaussians.log_scales[2, 1]) < 1e-37
    np.testing.assert_array_equal(gaussians.opacity_logits[2:], plain.opacity_logits[2:])
    np.testing.assert_array_equal(np.delete(gaussians.log_scales, 2, 0), np.delete(plain.log_scales, 2, 0))
    np.testing.assert_array_equal(gaussians.means, plain.means)
  colors = [(name, "u1") for name in ("red", "green", "blue")]
  colored = np.zeros(len(table), table.dtype.descr + colors)
  for name in table.dtype.names:
    colored[name] = table[name]
  path.write_bytes(header + b"".join(b"property uchar %s\n" % name.encode() for name, _ in colors) + b"end_header\n" + colored.tobytes())
  jax.tree.map(np.testing.assert_array_equal, splat_files.read_ply(path)[0], gaussians)


def test_numbers_of_64_bits_have_to_fit_into_float32(tmp_path):
  columns = {name: np.ones(3) for name in field_names(0)}
  write_table(tmp_path / "a.ply", columns, "<f8")
  assert splat_files.read_ply(tmp_path / "a.ply")[0].means.dtype == np.float32
  columns["f_dc_1"] = np.array([0, 0, 1e300])
  write_table(tmp_path / "a.ply", columns, "<f8")
  with pytest.raises(InputError, match="f_dc_1, Gaussian 2: found 1e.300, expected a finite number"):
    splat_files.read_ply(tmp_path / "a.ply")


def test_what_does_not_fit_is_refused(tmp_path, avatar, head, baked):
  path = tmp_path / "bound.ply"
  splat_files.write_ply(path, baked)
  with pytest.raises(InputError, match="binding_0: found no such field"):
    splat_files.load_bound_ply(path, head)
  broken = baked.replace(means=np.where(baked.means > 0.05, np.inf, baked.means))
  for write, name in ((splat_files.write_ply, "a.ply"), (splat_files.write_spz, "a.spz")):
    with pytest.raises(InputError, match=f"{name}: ., Gaussian .*: found inf"):
      write(tmp_path / name, broken)
  splat_files.write_bound_ply(path, avatar, head)
  good = dict(np.load(tmp_path / "flame_param.npz"))
  for key, value, message in (
      ("shape", np.ones(3), "shape: found 3 coefficients, expected 2"),
      ("static_offset", np.zeros((1, 9, 3)), "static_offset: found 9 vertices"),
      ("static_offset", good["static_offset"] * np.nan, "static_offset: found nan"),
      ("dynamic_offset", good["dynamic_offset"] + 1, "dynamic_offset: found offsets that change"),
      ("dynamic_offset", np.array(["a"]), "dynamic_offset: found <U1"),
      ("shape", np.float32(0), r"shape: found float32 of shape \(\)"),
  ):
    np.savez(tmp_path / "flame_param.npz", **good | {key: value})
    with pytest.raises(InputError, match=message):
      splat_files.load_bound_ply(path, head)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bound.ply", "flame_param.npz"]
