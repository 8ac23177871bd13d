import json
import math
import pathlib
import pickle
import shutil
import types

import av
import grain
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from rsatalker_jax.data.captures import check_capture, composite, has_frames, load_capture
from rsatalker_jax.errors import InputError

W, H, FRAMES = 20, 16, 4
TURN = Rotation.from_euler("yx", [30, -10], degrees=True).as_matrix()
POSITION = np.array([0.5, 0.2, 1.0])


def frame_image(timestep: int) -> np.ndarray:
  return np.random.default_rng(timestep).integers(0, 256, (H, W, 3), np.uint8)


def frame_mask() -> np.ndarray:
  mask = np.zeros((H, W), np.uint8)
  mask[:, 5:] = 255
  mask[:, 4] = 51
  return mask


def write_capture(root: pathlib.Path) -> dict:
  """A small capture in VHAP's layout; returns the content of transforms_train.json."""
  for folder in ("images", "fg_masks", "flame_param"):
    (root / folder).mkdir(parents=True)
  frames = []
  for t in range(FRAMES):
    Image.fromarray(frame_image(t)).save(root / f"images/{t:05d}_03.png")
    Image.fromarray(frame_mask()).save(root / f"fg_masks/{t:05d}_03.png")
    write_flame_param(root, t)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = TURN, POSITION
    frames.append({
        "timestep_index": t,
        "camera_index": 3,
        "file_path": f"images/{t:05d}_03.png",
        "fg_mask_path": f"fg_masks/{t:05d}_03.png",
        "flame_param_path": f"flame_param/{t:05d}.npz",
        "camera_angle_x": 0.8,
        "w": W,
        "h": H,
        "cx": 11.5,
        "cy": 7.25,
        "transform_matrix": matrix.tolist(),
    })
  np.savez(root / "canonical_flame_param.npz", shape=np.arange(5.0), static_offset=np.ones((1, 7, 3), np.float32))
  content = {"frames": frames}
  write_transforms(root, content)
  return content


def write_flame_param(root, t, **changes):
  values = {
      "translation": np.full((1, 3), t),
      "rotation": np.full((1, 3), 0.1),
      "neck_pose": np.full((1, 3), 0.2),
      "jaw_pose": np.full((1, 3), 0.3),
      "eyes_pose": np.arange(6.0)[None],
      "expr": np.where(np.arange(9) < 8, 0.5, 0)[None],
      "shape": np.arange(5.0),
      "dynamic_offset": np.zeros((1, 7, 3)),
  } | changes
  np.savez(root / f"flame_param/{t:05d}.npz", **{key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    "basis, expr, expected",
    [
        ("flame2020", np.full((1, 9), 0.5), "flame2020"),
        (None, np.full((1, 9), 0.5), "arkit"),
        (None, np.full((1, 9), -0.5), "flame2023"),
        (None, np.zeros((1, 9)), "flame2023"),
    ],
)
def test_basis_of_the_expressions(root, content, basis, expr, expected):
  write_flame_param(root, 0, expr=expr)
  write_transforms(root, content | ({} if basis is None else {"basis": basis}))
  capture = load_capture(root, "train")
  assert capture.basis == expected
  check_capture(capture, types.SimpleNamespace(basis=expected))
  with pytest.raises(InputError, match=f'basis: found {expected}, expected other, .*"basis" at the top of its transforms'):
    check_capture(capture, types.SimpleNamespace(basis="other"))


def test_unknown_or_mixed_bases_are_refused(root, content):
  write_transforms(root, content | {"basis": "smplx"})
  with pytest.raises(InputError, match="basis: found 'smplx', expected flame2020"):
    load_capture(root, "train")
  half = len(content["frames"]) // 2
  write_transforms(root, content | {"basis": "arkit", "frames": content["frames"][:half]})
  write_transforms(root, content | {"basis": "flame2020", "frames": content["frames"][half:]}, "test")
  with pytest.raises(InputError, match="basis: found flame2020, expected arkit as in the first frame"):
    load_capture(root, "all")


def write_transforms(root, content, split="train"):
  (root / f"transforms_{split}.json").write_text(json.dumps(content))


def write_video(path, frames):
  """Lossless, with a key frame every third frame."""
  color = frames[0].ndim == 3
  with av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=25, options={"g": "3"})
    stream.width, stream.height, stream.pix_fmt = W, H, "bgr0" if color else "gray"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24" if color else "gray")))
    container.mux(stream.encode())


def film(root, content):
  """The same capture with videos instead of images; the film begins one frame before the capture."""
  frames = [frame_image(t) for t in (99, *range(FRAMES))]
  write_video(root / "images/03.mkv", frames)
  write_video(root / "fg_masks/03.mkv", [np.roll(frame_mask(), t, axis=1) for t in range(len(frames))])
  for entry in content["frames"]:
    del entry["fg_mask_path"]  # Found by its name, as for images.
    entry |= {"file_path": "images/03.mkv", "frame_index": entry["timestep_index"] + 1}
  write_transforms(root, content)


@pytest.fixture
def root(tmp_path):
  write_capture(tmp_path / "capture")
  return tmp_path / "capture"


@pytest.fixture
def content(root):
  return json.loads((root / "transforms_train.json").read_text())


def test_items(root):
  capture = load_capture(root, "train")
  assert len(capture) == FRAMES and (capture.width, capture.height) == (W, H)
  np.testing.assert_array_equal(capture.shape, np.arange(5))
  assert capture.static_offset.shape == (7, 3)
  item = capture[2]
  np.testing.assert_allclose(item["image"], frame_image(2) / 255, atol=1e-6)
  np.testing.assert_allclose(item["mask"], frame_mask() / 255, atol=1e-6)
  assert item["timestep"] == 2 and item["camera_index"] == 3 and capture.index(3, 2) == 2
  flame = item["flame"]
  np.testing.assert_array_equal(flame["translation"], [2, 2, 2])
  np.testing.assert_array_equal(flame["eyes"], np.arange(6))
  for name, value, size in (("rotation", 0.1, 3), ("neck", 0.2, 3), ("jaw", 0.3, 3), ("expression", [0.5] * 8 + [0], 9)):
    np.testing.assert_allclose(flame[name], np.full(size, value), rtol=1e-6)


def project_as_opengl(point, focal, cx, cy):
  """Where OpenGL draws a point (right, up, -depth), in pixels from the left and from the top, by clip coordinates.

  The matrix is the one of a camera that looks along -z with its principal point (cx, cy) counted from the lower left.
  """
  x, y, z = point
  clip = np.array([2 * focal / W * x + (W - 2 * cx) / W * z, 2 * focal / H * y + (H - 2 * cy) / H * z, -z])
  right, up = clip[:2] / clip[2]
  return [(right + 1) / 2 * W, (1 - up) / 2 * H]


def test_camera_sees_what_opengl_would(root):
  item = load_capture(root, "train")[0]
  # A point 2 m in front of the camera, 0.3 m to its right and 0.1 m above: OpenGL's -z, +x and +y.
  world = TURN @ [0.3, 0.1, -2.0] + POSITION
  np.testing.assert_allclose((item["world_to_camera"] @ [*world, 1])[:3], [0.3, -0.1, 2.0], atol=1e-6)
  pixel = item["intrinsics"] @ [0.3, -0.1, 2.0] / 2
  np.testing.assert_allclose(pixel[:2], project_as_opengl([0.3, 0.1, -2.0], W / 2 / np.tan(0.4), 11.5, 7.25), rtol=1e-5)


def write_changed(root, content, top=None, **frame):
  write_transforms(root, content | (top or {}) | {"frames": [entry | frame for entry in content["frames"]]})


def test_where_cy_counts_from(root, content):
  cy = lambda **more: (write_changed(root, content, **more), load_capture(root, "train")[1]["intrinsics"][1, 2])[1]
  assert cy() == H - 7.25 and cy(cy_from="bottom") == H - 7.25
  assert cy(cy_from="top") == 7.25 and cy(top={"cy_from": "top"}) == 7.25
  assert cy(top={"cy_from": "top"}, cy_from="bottom") == H - 7.25
  # nerfstudio's and instant-ngp's keys: whose cy it is cannot be told, unless it is the middle.
  assert cy(top={"camera_model": "PINHOLE"}, cy=H / 2) == H / 2
  assert cy(top={"aabb_scale": 4}, cy_from="top") == 7.25
  for foreign in ({"camera_model": "OPENCV"}, {"k1": 0}, {"aabb_scale": 4}, {"applied_transform": []}):
    with pytest.raises(InputError, match=r'frames\[0\]: cy: found 7.25 beside .*, expected "cy_from": "top" or "bottom"'):
      cy(top=foreign)
  with pytest.raises(InputError, match=r"cy_from: found 'left', expected \"top\" or \"bottom\""):
    cy(cy_from="left")


def test_shared_and_other_intrinsics(root, content):
  for frame in content["frames"]:
    for key in ("camera_angle_x", "cx", "cy", "w", "h"):
      del frame[key]
  write_transforms(root, content | {"fl_x": 30.0, "fl_y": 31.0, "w": W, "h": H})
  expected = [[30, 0, W / 2], [0, 31, H / 2], [0, 0, 1]]
  np.testing.assert_allclose(load_capture(root, "train")[0]["intrinsics"], expected)
  # Without a size, it is the image's.
  write_transforms(root, content | {"fl_x": 30.0, "fl_y": 31.0})
  capture = load_capture(root, "train")
  assert (capture.width, capture.height) == (W, H)
  np.testing.assert_allclose(capture[0]["intrinsics"], expected)


def angle(focal, pixels):
  return 2 * math.atan(pixels / 2 / focal)


# Of the file, of the frame, and the focal lengths that they mean.
FOCAL_LENGTHS = {
    "angle": ({}, {"camera_angle_x": angle(30, W)}, (30, 30)),
    "angles": ({}, {"camera_angle_x": angle(30, W), "camera_angle_y": angle(40, H)}, (30, 40)),
    "shared angles": ({"camera_angle_x": angle(30, W), "camera_angle_y": angle(40, H)}, {}, (30, 40)),
    "upright angle alone": ({}, {"camera_angle_y": angle(40, H)}, (40, 40)),
    "length and angle": ({}, {"fl_x": 30, "camera_angle_y": angle(40, H)}, (30, 40)),
    "length before angle": ({}, {"fl_x": 30, "camera_angle_x": angle(50, W)}, (30, 30)),
    "own angle before a shared length": ({"fl_x": 500, "fl_y": 500}, {"camera_angle_x": angle(30, W)}, (30, 30)),
    "own length before shared lengths": ({"fl_x": 500, "fl_y": 500}, {"fl_x": 30}, (30, 30)),
    "own length before shared angles": ({"camera_angle_x": 1, "camera_angle_y": 1}, {"fl_x": 30}, (30, 30)),
    "own upright length": ({"fl_x": 500}, {"fl_y": 30}, (30, 30)),
    "null": ({"fl_x": 30}, {"fl_x": None, "camera_angle_x": None}, (30, 30)),
}


@pytest.mark.parametrize("name", FOCAL_LENGTHS)
def test_focal_lengths(root, content, name):
  top, frame, expected = FOCAL_LENGTHS[name]
  for entry in content["frames"]:
    del entry["camera_angle_x"]
  write_changed(root, content, top, **frame)
  np.testing.assert_allclose(np.diag(load_capture(root, "train")[0]["intrinsics"]), [*expected, 1], rtol=1e-6)


def test_a_lens_without_distortion(root, content):
  lens = {"k1": 0.0, "k2": 0, "p1": 0.0, "p2": None, "distortion_params": [0, 0.0], "is_fisheye": False, "camera_model": "opencv"}
  write_changed(root, content, lens, cy=H / 2)
  assert len(load_capture(root, "train")) == FRAMES


def test_background_goes_behind_the_mask(root):
  plain, white = load_capture(root, "train")[1], load_capture(root, "train", background=(1, 0.5, 0))[1]
  np.testing.assert_array_equal(white["image"][:, :4], np.broadcast_to(np.float32([1, 0.5, 0]), (H, 4, 3)))
  np.testing.assert_array_equal(white["image"][:, 5:], plain["image"][:, 5:])
  np.testing.assert_allclose(white["image"][:, 4, 0], 0.2 * plain["image"][:, 4, 0] + 0.8, atol=1e-6)
  np.testing.assert_array_equal(composite(plain["image"], plain["mask"], np.float32([1, 0.5, 0])), white["image"])


def test_rendered_background_is_exchanged_exactly(root, content):
  color, old, new = np.float32([0.2, 0.4, 0.6]), np.float32([1, 1, 0.5]), np.float32([0, 1, 1])
  mask = frame_mask()[..., None] / np.float32(255)
  Image.fromarray(np.round(255 * (color * mask + old * (1 - mask))).astype(np.uint8)).save(root / "images/00001_03.png")
  write_transforms(root, content | {"background": old.tolist()})
  exchanged = load_capture(root, "train", background=tuple(new))[1]["image"]
  np.testing.assert_allclose(exchanged, color * mask + new * (1 - mask), atol=1 / 255)  # Rounding of the file.


def test_masks_may_be_found_by_name_in_alpha_or_absent(root, content):
  for frame in content["frames"]:
    del frame["fg_mask_path"]
  write_transforms(root, content)
  np.testing.assert_allclose(load_capture(root, "train")[0]["mask"], frame_mask() / 255, atol=1e-6)
  for path in (root / "fg_masks").iterdir():
    path.unlink()
  (root / "fg_masks").rmdir()
  np.testing.assert_array_equal(load_capture(root, "train")[0]["mask"], 1)
  Image.fromarray(np.dstack([frame_image(0), frame_mask()])).save(root / "images/00000_03.png")
  item = load_capture(root, "train")[0]
  np.testing.assert_allclose(item["mask"], frame_mask() / 255, atol=1e-6)
  assert item["image"].shape == (H, W, 3)


def as_jpeg(root, entry):
  mask = root / entry.pop("fg_mask_path")
  Image.open(mask).save(mask.with_suffix(".jpg"), quality=100)
  mask.unlink()


def farther(root, entry):
  """`images` stands earlier in the path, too, and what lies there is another mask."""
  decoy = root.parents[1] / "my_fg_masks/capture" / entry["file_path"]
  decoy.parent.mkdir(parents=True, exist_ok=True)
  Image.new("L", (W, H)).save(decoy)
  del entry["fg_mask_path"]
  entry["file_path"] = f"../../my_images/capture/{entry['file_path']}"


def in_folders(root, entry):
  """A folder for each camera, and another format for images."""
  mask, image = root / entry.pop("fg_mask_path"), root / entry["file_path"]
  (root / "images/cam03").mkdir(exist_ok=True)
  (root / "fg_masks/cam03").mkdir(exist_ok=True)
  Image.open(image).save(root / f"images/cam03/{image.stem}.bmp")
  mask.rename(root / f"fg_masks/cam03/{mask.name}")
  entry["file_path"] = f"images/cam03/{image.stem}.bmp"


def with_points(root, entry):
  """Names with points in them and no suffix."""
  mask, image = root / entry.pop("fg_mask_path"), root / entry["file_path"]
  image.rename(root / f"images/cam.{image.stem}")
  mask.rename(root / f"fg_masks/cam.{image.stem}.png")
  entry["file_path"] = f"images/cam.{image.stem}"


def absolute(root, entry):
  del entry["fg_mask_path"]
  entry["file_path"] = str(root / entry["file_path"])


def with_back_slashes(root, entry):
  for key in ("file_path", "fg_mask_path", "flame_param_path"):
    entry[key] = entry[key].replace("/", "\\")


def without_suffixes(root, entry):
  for key in ("file_path", "fg_mask_path", "flame_param_path"):
    entry[key] = "./" + entry[key].rsplit(".", 1)[0]


PATHS = (as_jpeg, farther, in_folders, with_points, absolute, with_back_slashes, without_suffixes)


@pytest.mark.parametrize("write", PATHS)
def test_paths_as_others_write_them(tmp_path, write):
  root = tmp_path / "my_images" / "capture"
  content = write_capture(root)
  for entry in content["frames"]:
    write(root, entry)
  write_transforms(root, content)
  item = load_capture(root, "train")[2]
  np.testing.assert_allclose(item["image"], frame_image(2) / 255, atol=1e-6)
  np.testing.assert_allclose(item["mask"], frame_mask() / 255, atol=0.1 if write is as_jpeg else 1e-6)
  np.testing.assert_array_equal(item["flame"]["translation"], [2, 2, 2])


def test_no_mask_is_lost_in_silence(root, content):
  for entry in content["frames"]:
    del entry["fg_mask_path"]
  write_transforms(root, content)
  (root / "fg_masks/00002_03.png").rename(root / "fg_masks/2.png")
  message = r"frames\[2\]: fg_mask_path: found no such key, and no mask of 00002_03.png in .*fg_masks, expected a mask of"
  with pytest.raises(InputError, match=message):
    load_capture(root, "train")
  # Alpha is a mask, too, unless it hides nothing.
  Image.fromarray(np.dstack([frame_image(2), frame_mask()])).save(root / "images/00002_03.png")
  np.testing.assert_allclose(load_capture(root, "train")[2]["mask"], frame_mask() / 255, atol=1e-6)
  Image.fromarray(np.dstack([frame_image(2), np.full((H, W), 255, np.uint8)])).save(root / "images/00002_03.png")
  capture = load_capture(root, "train")
  with pytest.raises(InputError, match=message):
    capture[2]


def test_masks_beside_images_that_lie_elsewhere(root, content, tmp_path):
  for entry in content["frames"]:
    del entry["fg_mask_path"]
    entry["file_path"] = f"../other/{entry['file_path']}"
  write_transforms(root, content)
  (tmp_path / "other").mkdir()
  (root / "images").rename(tmp_path / "other/images")
  with pytest.raises(InputError, match="no mask of 00000_03.png in .*capture/fg_masks"):
    load_capture(root, "train")
  (root / "fg_masks").rename(tmp_path / "other/fg_masks")
  np.testing.assert_allclose(load_capture(root, "train")[2]["mask"], frame_mask() / 255, atol=1e-6)
  (tmp_path / "other/fg_masks/00000_03.png").unlink()
  with pytest.raises(InputError, match="no mask of 00000_03.png in .*other/fg_masks"):
    load_capture(root, "train")


def test_text_as_windows_writes_it(root, content):
  text = json.dumps(content).encode()
  (root / "transforms_train.json").write_bytes(b"\xef\xbb\xbf" + text)
  assert len(load_capture(root, "train")) == FRAMES


def test_a_validation_set_without_frames(root, content):
  """VHAP writes one where there is but one camera."""
  write_transforms(root, {"frames": []}, "val")
  write_transforms(root, {"frames": content["frames"][3:]}, "test")
  write_transforms(root, {"frames": content["frames"][:3]}, "train")
  assert len(load_capture(root, "all")) == FRAMES
  assert [has_frames(root, split) for split in ("train", "val", "test")] == [True, False, True]
  (root / "transforms_test.json").unlink()
  assert not has_frames(root, "test")
  write_transforms(root, {"frames": []}, "train")
  for split in ("val", "all"):
    with pytest.raises(InputError, match=r"transforms_(val|train).json: frames: found 0 entries"):
      load_capture(root, split)
  write_transforms(root, {"frames": content["frames"][:2]}, "train")
  write_transforms(root, {"frames": content["frames"][1:]}, "val")
  with pytest.raises(InputError, match=r"transforms_val.json: frames\[0\]: .* timestep 1 as in .*_train.json: frames\[1\]"):
    load_capture(root, "all")


def test_splits(root, content):
  write_transforms(root, {"frames": content["frames"][:1]}, "train")
  write_transforms(root, {"frames": content["frames"][1:]}, "test")
  assert [len(load_capture(root, split)) for split in ("train", "test", "all")] == [1, 3, 4]
  with pytest.raises(InputError, match="transforms_val.json: found No such file"):
    load_capture(root, "val")
  with pytest.raises(InputError, match="found 'dev', expected train, val, test or all"):
    load_capture(root, "dev")


def test_frames_are_decoded_only_when_asked_for(root):
  (root / "images/00003_03.png").write_bytes(b"no image")
  capture = load_capture(root, "train")
  capture[0]
  with pytest.raises(InputError, match="00003_03.png"):
    capture[3]


def test_videos_instead_of_images(root, content):
  film(root, content)
  capture = load_capture(root, "train")
  for t in (2, 0, 3, 1):
    np.testing.assert_array_equal(capture[t]["image"], frame_image(t).astype(np.float32) / 255)
    np.testing.assert_array_equal(capture[t]["mask"], np.roll(frame_mask(), t + 1, axis=1).astype(np.float32) / 255)
  # One mask for all moments, as an image.
  for entry in content["frames"]:
    entry["fg_mask_path"] = "fg_masks/00000_03.png"
  write_transforms(root, content)
  np.testing.assert_array_equal(load_capture(root, "train")[3]["mask"], frame_mask().astype(np.float32) / 255)


def test_alpha_of_films(root, content):
  film(root, content)
  frames = np.stack([np.dstack([frame_image(t), np.roll(frame_mask(), t, axis=1)]) for t in (99, *range(FRAMES))])
  with av.open(str(root / "images/a.mov"), "w") as container:
    stream = container.add_stream("qtrle", rate=25)
    stream.width, stream.height, stream.pix_fmt = W, H, "argb"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format="argb")))
    container.mux(stream.encode())
  alpha = frames[:, ..., 3].astype(np.float32) / 255
  # As the mask of other images.
  write_changed(root, content, fg_mask_path="images/a.mov")
  np.testing.assert_array_equal(load_capture(root, "train")[1]["mask"], alpha[2])
  # As the images' own.
  shutil.rmtree(root / "fg_masks")
  write_changed(root, content, file_path="images/a.mov")
  item = load_capture(root, "train")[1]
  np.testing.assert_array_equal(item["mask"], alpha[2])
  np.testing.assert_array_equal(item["image"], frames[2, ..., :3].astype(np.float32) / 255)


def test_grain_threads_and_copies_read_videos(root, content):
  film(root, content)
  capture = pickle.loads(pickle.dumps(load_capture(root, "train")))  # As Grain's worker processes get it.
  dataset = grain.MapDataset.source(capture).seed(0).shuffle().repeat(8).batch(2)
  batches = list(dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)))
  assert len(batches) == 4 * FRAMES
  for batch in batches:
    for image, timestep in zip(batch["image"], batch["timestep"]):
      np.testing.assert_array_equal(image, frame_image(timestep).astype(np.float32) / 255)


def test_grain_batches_and_passes_errors_on(root):
  open_batches = lambda: grain.MapDataset.source(load_capture(root, "train")).seed(0).shuffle().batch(2)
  batch = next(iter(open_batches().to_iter_dataset()))
  assert batch["image"].shape == (2, H, W, 3) and batch["flame"]["expression"].shape == (2, 9)
  for t in range(1, FRAMES):  # The first frame's are read when the capture is opened.
    write_flame_param(root, t, expr=None)
  with pytest.raises(InputError, match="expr: found no such key"):
    list(open_batches().to_iter_dataset())


def break_json(root, content):
  text = (root / "transforms_train.json").read_text()
  (root / "transforms_train.json").write_text(text[: len(text) // 2])


def rewrite(text):
  return lambda root, _: (root / "transforms_train.json").write_bytes(text)


def change_frame(**changes):
  def change(root, content):
    content["frames"][1].update(changes)
    content["frames"][1] = {key: value for key, value in content["frames"][1].items() if value != "gone"}
    write_transforms(root, content)

  return change


def resized(content):
  return {"frames": [entry | {"w": 2 * W} for entry in content["frames"]]}


MISTAKES = {
    "cut off": (break_json, "transforms_train.json: found damaged JSON"),
    "no frames": (lambda root, _: write_transforms(root, {"frames": []}), "frames: found 0 entries, expected a list"),
    "no list": (lambda root, _: write_transforms(root, {}), "frames: found no such key, expected a list of frames"),
    "missing image": (
        lambda root, _: (root / "images/00001_03.png").unlink(),
        r"frames\[1\]: file_path: found images/00001_03.png, which does not exist",
    ),
    "missing mask": (lambda root, _: (root / "fg_masks/00001_03.png").unlink(), r"frames\[1\]: fg_mask_path: found fg_masks"),
    "missing parameters": (lambda root, _: (root / "flame_param/00001.npz").unlink(), r"frames\[1\]: flame_param_path"),
    "no time": (change_frame(timestep_index="gone"), r"frames\[1\]: timestep_index: found no such key, expected a number"),
    "UTF-16": (
        rewrite('{"frames": []}'.encode("utf-16")),
        "transforms_train.json: found text in UTF-16, expected .* in UTF-8",
    ),
    "other letters": (rewrite(b'{"frames": "\xe4"}'), "transforms_train.json: found damaged JSON"),
    "nested": (rewrite(b"[" * 100_000), "transforms_train.json: found damaged JSON"),
    "no frame": (rewrite(b'{"frames": [3]}'), r"frames\[0\]: found int, expected an object"),
    "frames of a dict": (rewrite(b'{"frames": {"0": {}}}'), "frames: found dict, expected a list of frames"),
    "NUL": (change_frame(file_path="a\0.png"), r"frames\[1\]: file_path: found a.x00.png, which does not exist"),
    "long path": (change_frame(file_path="a" * 5000), r"frames\[1\]: file_path: found aaa.*, which does not|characters\)"),
    "half a character": (change_frame(file_path="\ud800.png"), r"frames\[1\]: file_path: found .*ud800.png"),
    "path of numbers": (change_frame(file_path=3), r"frames\[1\]: file_path: found 3, expected a path"),
    "half a pixel": (change_frame(w=20.6), r"frames\[1\]: w: found 20.6, expected a whole number from 1 to 2147483647"),
    "no pixels": (change_frame(h=0), r"frames\[1\]: h: found 0, expected a whole number from 1"),
    "width alone": (change_frame(h="gone"), r"frames\[1\]: h: found no such key"),
    "half a timestep": (change_frame(timestep_index=1.5), r"frames\[1\]: timestep_index: found 1.5, expected a whole number"),
    "clock": (change_frame(timestep_index=1.7e12), r"frames\[1\]: timestep_index: found 1700000000000.0, expected a whole"),
    "31 bits": (
        change_frame(timestep_index=2**31),
        r"frames\[1\]: timestep_index: found 2147483648, expected a whole number from",
    ),
    "serial number": (
        change_frame(camera_index=4012345678),
        r"frames\[1\]: camera_index: found 4012345678, expected a whole number",
    ),
    "text as number": (change_frame(timestep_index="1"), r"frames\[1\]: timestep_index: found '1', expected a finite number"),
    "truth": (change_frame(camera_index=True), r"frames\[1\]: camera_index: found True, expected a finite number"),
    "infinity": (change_frame(cx=math.inf), r"frames\[1\]: cx: found inf, expected a finite number"),
    "beyond floats": (change_frame(cx=10**400), r"frames\[1\]: cx: found 1000.*, expected a number up to 1e\+09"),
    "far": (change_frame(cy=-1e308), r"frames\[1\]: cy: found -1e\+308, expected a number up to 1e\+09"),
    "twice": (
        change_frame(timestep_index=0),
        r"frames\[1\]: camera_index, timestep_index: found camera 3, timestep 0 as in .*frames\[0\], expected each moment",
    ),
    "no focal length": (change_frame(camera_angle_x="gone"), r"frames\[1\]: fl_x: found no such key, nor camera_angle_x"),
    "negative focal length": (change_frame(fl_x=-3), r"frames\[1\]: fl_x: found -3, expected a focal length above 0"),
    "long focal length": (change_frame(fl_x=1e39), r"frames\[1\]: fl_x: found 1e\+39, expected a focal length above 0"),
    "short focal length": (change_frame(fl_y=1e-40), r"frames\[1\]: fl_y: found 1e-40, expected a focal length above 0"),
    "upright angle": (change_frame(camera_angle_y=0), r"frames\[1\]: camera_angle_y: found 0, expected 0 to pi"),
    "distortion": (change_frame(k1=-0.28), r"frames\[1\]: k1: found -0.28, expected 0: images without distortion"),
    "tangential": (change_frame(p2=0.01), r"frames\[1\]: p2: found 0.01, expected 0"),
    "list of distortion": (
        change_frame(distortion_params=[0, 0.1]),
        r"frames\[1\]: distortion_params: found \[0, 0.1\], expected zeros",
    ),
    "fisheye": (
        change_frame(camera_model="OPENCV_FISHEYE"),
        r"frames\[1\]: camera_model: found 'OPENCV_FISHEYE', expected a pinhole",
    ),
    "panorama": (change_frame(camera_model="EQUIRECTANGULAR"), r"frames\[1\]: camera_model: found 'EQUIRECTANGULAR'"),
    "fisheye of instant-ngp": (change_frame(is_fisheye=True), r"frames\[1\]: is_fisheye: found True, expected false"),
    "matrix of text": (
        change_frame(transform_matrix=[["1"] * 4] * 4),
        r"transform_matrix: found no numbers, or not finite ones",
    ),
    "matrix beyond floats": (change_frame(transform_matrix=[[10**400] * 4] * 4), r"transform_matrix: found no numbers"),
    "matrix far away": (
        change_frame(transform_matrix=[[1, 0, 0, 1e39], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        r"transform_matrix: found no numbers, or not finite ones",
    ),
    "NaN in the matrix": (
        change_frame(transform_matrix=[[math.nan] * 4] * 4),
        r"transform_matrix: found no numbers, or not finite",
    ),
    "rows of matrix": (change_frame(transform_matrix=[[1], [1, 2]]), r"transform_matrix: found shape \(0,\), expected 4 x 4"),
    "3 x 4": (
        change_frame(transform_matrix=np.eye(4)[:3].tolist()),
        r"transform_matrix: found shape \(3, 4\), expected 4 x 4",
    ),
    "scaled camera": (change_frame(transform_matrix=np.diag([2, 2, 2, 1]).tolist()), "transform_matrix: found determinant 8"),
    "mirrored camera": (
        change_frame(transform_matrix=np.diag([-1, 1, 1, 1]).tolist()),
        "transform_matrix: found determinant -1",
    ),
    "black and white background": (
        lambda root, content: write_transforms(root, content | {"background": [True, True, True]}),
        r"background: found \[True, True, True\], expected three numbers",
    ),
    "labels": (
        lambda root, _: Image.fromarray(frame_image(1)).save(root / "fg_masks/00001_03.png"),
        "fg_masks/00001_03.png: found colours, expected a grey mask",
    ),
    "beyond float32": (
        lambda root, _: write_flame_param(root, 1, expr=np.full((1, 9), 1e300)),
        "expr: found 1e.300, expected finite",
    ),
    "offsets of every frame": (
        lambda root, _: write_flame_param(root, 1, dynamic_offset=np.full((1, 7, 3), 1e-3)),
        "00001.npz: dynamic_offset: found offsets that change from frame to frame, expected zeros",
    ),
    "a single number": (
        lambda root, _: write_flame_param(root, 0, expr=np.float64(3)),
        r"expr: found float64 of shape \(\), expected one",
    ),
    "text in parameters": (
        lambda root, _: write_flame_param(root, 1, expr=np.array([["1"] * 9])),
        "expr: found <U1 of shape",
    ),
    "offset of two columns": (
        lambda root, _: np.savez(root / "canonical_flame_param.npz", shape=np.ones(5), static_offset=np.ones((1, 7, 2))),
        r"static_offset: found shape \(1, 7, 2\), expected \(1, V, 3\)",
    ),
    "infinite offset": (
        lambda root, _: np.savez(root / "canonical_flame_param.npz", shape=np.ones(5), static_offset=np.full((1, 7, 3), 1e300)),
        "static_offset: found 1e.300, expected finite numbers",
    ),
    "part of a frame's number": (
        lambda root, content: (film(root, content), change_frame(frame_index=-1)(root, content)),
        r"frames\[1\]: frame_index: found -1, expected a whole number from 0",
    ),
    "text": (change_frame(w="wide"), r"frames\[1\]: w: found 'wide', expected a finite number"),
    "other size": (change_frame(w=W + 1), r"frames\[1\]: w, h: found \(21, 16\), expected \(20, 16\)"),
    "angle": (change_frame(camera_angle_x=4.0), r"frames\[1\]: camera_angle_x: found 4.0"),
    "background": (
        lambda root, content: write_transforms(root, content | {"background": [1, 2, 1]}),
        r"background: found \[1, 2, 1\], expected three numbers in \[0, 1\]",
    ),
    "no camera": (change_frame(transform_matrix="gone"), r"frames\[1\]: transform_matrix: found no such key"),
    "flat camera": (
        change_frame(transform_matrix=np.diag([1, 1, 0, 1]).tolist()),
        r"frames\[1\]: transform_matrix: found determinant 0, .* can be inverted",
    ),
    "cut camera": (change_frame(transform_matrix=np.eye(3).tolist()), r"transform_matrix: found shape \(3, 3\)"),
    "no shape": (lambda root, _: np.savez(root / "canonical_flame_param.npz", a=0), "shape: found no such key"),
    "offset": (
        lambda root, _: np.savez(root / "canonical_flame_param.npz", shape=np.ones(5), static_offset=np.ones((1, 9, 3))),
        "static_offset: found 9 vertices, expected 7, as the head model has",
    ),
    "wrong image size": (
        lambda root, _: Image.new("RGB", (W, H + 2)).save(root / "images/00001_03.png"),
        r"00001_03.png: found 20x18 pixels, expected 20x16 as .*frames\[1\] says",
    ),
    "wrong mask size": (
        lambda root, _: Image.new("L", (W * 2, H)).save(root / "fg_masks/00001_03.png"),
        "fg_masks/00001_03.png: found 40x16 pixels",
    ),
    "cut image": (
        lambda root, _: (root / "images/00001_03.png").write_bytes((root / "images/00001_03.png").read_bytes()[:200]),
        "00001_03.png: found .*, expected a whole image file",
    ),
    "lacks a key": (lambda root, _: write_flame_param(root, 1, jaw_pose=None), "00001.npz: jaw_pose: found no such key"),
    "wrong width": (
        lambda root, _: write_flame_param(root, 1, eyes_pose=np.zeros((1, 3))),
        r"00001.npz: eyes_pose: found float64 of shape \(1, 3\), expected \(1, 6\)",
    ),
    "NaN": (
        lambda root, _: write_flame_param(root, 1, expr=np.full((1, 9), np.nan)),
        "expr: found nan, expected finite numbers",
    ),
    "another width": (lambda root, _: write_flame_param(root, 1, expr=np.ones((1, 10))), r"expr: .* expected \(1, 9\)"),
    "beyond the head": (
        lambda root, _: write_flame_param(root, 1, expr=np.eye(9)[8:]),
        "00001.npz: expr: found 1 values that are not 0 behind the first 8, expected 8 values, as the head model has",
    ),
    "which frame": (
        lambda root, content: (film(root, content), change_frame(frame_index="gone")(root, content)),
        r"frames\[1\]: frame_index: found no such key, expected a number",
    ),
    "part of a frame": (
        lambda root, content: (film(root, content), change_frame(frame_index=1.5)(root, content)),
        r"frames\[1\]: frame_index: found 1.5, expected a whole number from 0",
    ),
    "frame beyond": (
        lambda root, content: (film(root, content), change_frame(frame_index=5)(root, content)),
        "images/03.mkv: frame 5: found 5 frames, expected a frame that the video has",
    ),
    "missing video": (
        lambda root, content: (film(root, content), (root / "images/03.mkv").unlink()),
        r"frames\[0\]: file_path: found images/03.mkv, which does not exist",
    ),
    "wrong video size": (
        lambda root, content: (film(root, content), write_transforms(root, content | resized(content))),
        r"images/03.mkv: found 20x16 pixels, expected 40x16 as .*frames\[1\] says",
    ),
    "no npz": (lambda root, _: (root / "flame_param/00001.npz").write_bytes(b"PK"), "00001.npz: found"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_for_each_mistake(root, content, mistake):
  change, message = MISTAKES[mistake]
  change(root, content)
  with pytest.raises(InputError, match=message) as error:
    load_capture(root, "train", num_vertices=7, num_expression=8)[1]
  assert "\n" not in str(error.value)
