"""The demo captures, a person each: cameras, tracked parameters and video must tell one story.

The head is posed and projected here in plain numpy, by the conventions that assets/capture/README.md states, and compared with
the filmed coverage and colours.
"""

import json
import pathlib
import re
import sys

import av
import numpy as np
import pytest
from scipy import ndimage

_ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "tools"))
from capture_looks import LOOKS  # noqa: E402
import flame_numpy as flame  # noqa: E402

_FOLDERS = sorted(path.parent for path in (_ROOT / "assets").glob("capture*/capture.npz"))


@pytest.fixture(scope="module", params=_FOLDERS, ids=lambda folder: folder.name)
def folder(request):
  return request.param


@pytest.fixture(scope="module")
def table(folder):
  with np.load(folder / "capture.npz", allow_pickle=False) as file:
    return {k: file[k] for k in file.files}


@pytest.fixture(scope="module")
def head():
  return flame.load(_ROOT / "assets" / "head" / "demo_head.npz")


def _frames(folder, kind: str, camera: int, wanted: list[int]) -> dict[int, np.ndarray]:
  """Some frames of a video by number; masks as the luma plane."""
  found = {}
  with av.open(str(folder / f"{kind}_{camera}.mp4")) as container:
    for number, frame in enumerate(container.decode(video=0)):
      if number in wanted:
        if kind == "mask":
          plane = frame.planes[0]
          found[number] = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)[:, : frame.width] / 255
        else:
          found[number] = frame.to_ndarray(format="rgb24") / 255
      if number == max(wanted):
        break
  return found


def _project(table, camera: int, points: np.ndarray) -> np.ndarray:
  """Pixel coordinates (n, 2), x right and y down, centres at +0.5, of world points."""
  world_to_camera = np.linalg.inv(table["camera_to_world"][camera]) @ np.concatenate([points, np.ones((len(points), 1))], 1).T
  x, y, z = world_to_camera[:3]
  width, height = table["image_size"]
  focal = 0.5 * width / np.tan(0.5 * table["camera_angle_x"][camera])
  return np.stack([width / 2 + focal * x / -z, height / 2 - focal * y / -z], axis=-1)


def _posed(head, table, timestep):
  return flame.vertices(head, table["shape"].astype(float), table["expr"][timestep].astype(float),
                        neck=table["neck_pose"][timestep], jaw=table["jaw_pose"][timestep])


def test_is_small_and_long_enough(folder, table):
  assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_500_000
  assert len(table["timesteps_0"]) >= 40 * 25
  for first, count in zip(table["first_timestep"], table["num_frames"]):  # From the beginning, without a gap.
    assert np.isin(np.arange(first, first + min(count, 4 * 25)), table["timesteps_0"]).all() and count >= 4 * 25
  assert set(table["conversation_split"]) == {"train", "test"}
  cameras = len(table["camera_angle_x"])
  assert cameras >= 4
  first = list(table["conversation_split"]).index("train")
  train = range(table["first_timestep"][first], table["first_timestep"][first] + table["num_frames"][first])
  for camera in range(1, cameras):
    shown = table[f"timesteps_{camera}"]
    assert len(shown) >= 60 and shown.min() >= train[0] and shown.max() <= train[-1]  # side views show a train conversation
  assert min(table["image_size"]) >= 256


def test_all_assets_stay_small():
  assert sum(path.stat().st_size for path in (_ROOT / "assets").rglob("*") if path.is_file()) <= 25_000_000


def test_conversations_are_those_of_the_dialogues(table):
  """Split, relation and length are the dialogue's, and a person has a voice of their own sex."""
  entries = json.loads((_ROOT / "assets" / "voices" / "dialogues.json").read_text(encoding="utf-8"))["dialogues"]
  dialogues = {entry["id"]: entry for entry in entries}
  sex = {"amara": "female", "jonas": "male"}[str(table["identity"])]
  ends = np.append(table["first_timestep"][1:], len(table["expr"]))
  for k, name in enumerate(table["conversation"]):
    dialogue, speaker = dialogues[str(name).split("_")[0].removeprefix("demo-")], int(table["speaker"][k])
    assert (dialogue["split"], dialogue["relation"]) == (table["conversation_split"][k], table["relation"][k])
    assert re.findall(r"\b(?:fe)?male\b", json.dumps(dialogue["voices"][speaker - 1])) == [sex]
    assert table["first_timestep"][k] + table["num_frames"][k] == ends[k] and table["num_frames"][k] <= round(dialogue["duration"] * 25)


def test_a_conversation_of_two_captures_has_one_motion():
  found: dict[str, np.ndarray] = {}
  for path in sorted((_ROOT / "assets").glob("capture*/*_speaker?.npz")):
    with np.load(path, allow_pickle=False) as file:
      motion = np.concatenate([file["exp"], file["pose"]], axis=1)
    np.testing.assert_array_equal(found.setdefault(path.name, motion), motion)


def test_several_people_in_several_relations():
  tables = [dict(np.load(folder / "capture.npz", allow_pickle=False)) for folder in _FOLDERS]
  assert len({str(table["identity"]) for table in tables}) == len(tables) == 2
  filmed = [(str(n), int(s)) for table in tables for n, s in zip(table["conversation"], table["speaker"])]
  assert len(set(filmed)) == len(filmed)  # Nobody is two people.
  for table in tables:
    for split in ("train", "test"):
      relations = [r for r, s in zip(table["relation"], table["conversation_split"]) if s == split]
      assert len(set(relations)) >= 2
    assert set(table["speaker"]) == {1, 2}


def test_tracked_parameters_are_the_motion_of_the_stored_conversations(table):
  for k, name in enumerate(table["conversation"]):
    with np.load(_FOLDERS[0] / f"{name}_speaker{table['speaker'][k]}.npz", allow_pickle=False) as motion:
      span = slice(table["first_timestep"][k], table["first_timestep"][k] + table["num_frames"][k])
      count = table["num_frames"][k]
      np.testing.assert_array_equal(motion["exp"][:count], table["expr"][span])
      np.testing.assert_array_equal(motion["pose"][:count, :3], table["neck_pose"][span])
      np.testing.assert_array_equal(motion["pose"][:count, 3:], table["jaw_pose"][span])


@pytest.mark.parametrize("camera", range(4))
def test_filmed_coverage_is_the_projected_head(folder, table, head, camera):
  """Every projected vertex lies on the person, and the person reaches no further than hair stands off the head."""
  shown = table[f"timesteps_{camera}"]
  numbers = [3, len(shown) // 2]
  masks = _frames(folder, "mask", camera, numbers)
  for number in numbers:
    pixel = _project(table, camera, _posed(head, table, shown[number]))
    height, width = masks[number].shape
    inside = (pixel > 0).all(1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    x, y = np.floor(pixel[inside]).astype(int).T
    covered = ndimage.maximum_filter(masks[number], 3)[y, x]  # a vertex on the outline may lie a pixel out
    assert (covered > 0.5).mean() > 0.995
    near = np.zeros((height, width), bool)
    near[y, x] = True
    reach = ndimage.distance_transform_edt(~near)
    short = LOOKS[str(table["identity"])].hair == "short"
    # Hair stands up to about 2.5 cm off; long hair hangs beside the neck, below the widest part of the skull.
    assert reach[masks[number] > 0.5].max() < (0.09 if short else 0.16) * height
    if short:
      below = np.arange(height)[:, None] > np.median(y)  # no hair there: the outline is the head's own
      assert (masks[number] > 0.5)[below & (reach > 12)].mean() < 0.02


def test_white_of_the_eye_and_lips_are_where_the_head_says(folder, table, head):
  """The sclera is brighter than the iris and the lips redder than the cheeks, at their projected places."""
  names = [str(n) for n in head["region_names"]]
  region = lambda name: np.unique(head["f"][head["face_region"] == names.index(name)])
  blink = [str(n) for n in head["expression_names"]].index("eyeBlinkLeft")
  shown = table["timesteps_0"]
  number = int(np.flatnonzero((table["expr"][shown][:, blink] < 0.02) & (np.arange(len(shown)) < 200))[5])
  image = _frames(folder, "camera", 0, [number])[number]
  vertices = _posed(head, table, shown[number])
  at = lambda v: image[tuple(np.floor(_project(table, 0, vertices[v])).astype(int).T[::-1])]
  lips, skin = region("lips"), region("skin")
  lips = lips[flame.normals(vertices, head["f"])[lips, 2] > 0.6]
  eye = vertices[region("eye_left")].mean(0)
  cheek = skin[np.linalg.norm(vertices[skin] - (eye + [0.012, -0.035, 0.01]), axis=1) < 0.012]
  redness = lambda c: (c[:, 0] / c[:, 1:].mean(1)).mean()
  assert redness(at(lips)) > 1.05 * redness(at(cheek))
  ball = region("eye_left")
  front = ball[np.argmax(vertices[ball, 2])]
  iris = at(np.array([front])).mean()
  assert at(cheek).mean() > iris + 0.1
  background = image[:20, :20]
  np.testing.assert_allclose(background, 1.0, atol=0.04)  # The denoiser leaves the picture's corners a little grey.
