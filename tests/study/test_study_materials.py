"""The folder of videos: what is read of it, and what is wrong with it in one line."""

import json
import os
import shutil

import av
import numpy as np
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.study.materials import read_materials
from study.world import CONVERSATIONS, METHODS, write_tiny_video


@pytest.fixture
def copy(videos, tmp_path):
  return shutil.copytree(videos, tmp_path / "videos")


def test_what_is_read(videos, materials):
  assert materials.methods == METHODS and tuple(materials.conversations) == CONVERSATIONS
  breakfast, office = materials.conversations.values()
  assert (breakfast.relation, breakfast.role, office.relation) == ("A is B's mother.", "B listens.", "")
  assert (materials.title, materials.contact, materials.consent) == ("Faces", "Ann", ())
  video = office.videos["ours"]
  assert video.path == videos / "office" / "ours.mp4" and video.size == video.path.stat().st_size
  assert video.seconds == pytest.approx(0.2) and video.has_sound


def test_without_texts_there_is_a_title(copy):
  (copy / "study.json").unlink()
  (copy / ".DS_Store").write_text("x")
  assert read_materials(copy).title


def spoil(folder, what):
  """Makes one mistake."""
  video = folder / "office" / "ours.mp4"
  if what == "missing":
    video.unlink()
  elif what == "cut":
    video.write_bytes(video.read_bytes()[:-200])
  elif what == "text":
    video.write_text("no video")
  elif what == "empty":
    video.write_bytes(b"")
  elif what == "pipe":
    video.unlink()
    os.mkfifo(video)
  elif what == "sound alone":
    with av.open(str(video), "w") as container:
      stream = container.add_stream("aac", rate=48000, layout="mono")
      frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
      frame.sample_rate = 48000
      container.mux([*stream.encode(frame), *stream.encode()])
  elif what == "mpeg4":
    with av.open(str(video), "w") as container:
      stream = container.add_stream("mpeg4", rate=25)
      stream.width = stream.height = 16
      container.mux([*stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))), *stream.encode()])
  elif what == "silent":
    write_tiny_video(video, seed=9, sound=False)
  elif what == "link out":
    outside = folder.parent / "outside.mp4"
    video.rename(outside)
    video.symlink_to(outside)
  elif what == "folder out":
    (folder / "office").rename(folder.parent / "office")
    (folder / "office").symlink_to(folder.parent / "office")
  elif what == "link to nothing":
    video.unlink()
    video.symlink_to("nothing.mp4")
  elif what == "circle":
    video.unlink()
    video.symlink_to("ours.mp4")
  elif what == "note":
    (folder / "office" / "note.txt").write_text("x")
  elif what == "stray file":
    (folder / "note.txt").write_text("x")
  elif what == "empty folder":
    (folder / "third").mkdir()
  elif what == "unprintable":
    (folder / "office" / "a\nb.mp4").write_text("x")
  elif what == "one method":
    for conversation in CONVERSATIONS:
      for method in METHODS[1:]:
        (folder / conversation / f"{method}.mp4").unlink()


@pytest.mark.parametrize(
    "what, message",
    [
        ("missing", "office: ours.mp4: found no such file, expected a video of each method, as in breakfast"),
        ("cut", "office/ours.mp4"),
        ("text", "office/ours.mp4"),
        ("empty", "office/ours.mp4"),
        ("pipe", "office/ours.mp4: found a pipe or a device"),
        ("sound alone", "office/ours.mp4: found no video stream"),
        ("mpeg4", "office/ours.mp4: found mpeg4 in yuv420p, which not every browser plays"),
        ("silent", "office/ours.mp4: found no sound, expected sound, as"),
        ("link out", "office/ours.mp4: found a link to"),
        ("folder out", "office/dualtalk.mp4: found a link to"),
        ("link to nothing", "office/ours.mp4: found No such file"),
        ("circle", "office/ours.mp4"),
        ("note", "office: note.txt: found another file"),
        ("stray file", "note.txt: found Not a directory"),
        ("empty folder", "third: found no video"),
        ("unprintable", "found a file named 'a"),
        ("one method", "found one method, dualtalk, expected two at least"),
    ],
)
def test_mistakes_are_one_line(copy, what, message):
  spoil(copy, what)
  with pytest.raises(InputError) as caught:
    read_materials(copy)
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder_and_none_in_it(tmp_path):
  with pytest.raises(InputError, match="nothing: found No such file"):
    read_materials(tmp_path / "nothing")
  with pytest.raises(InputError, match="found no conversation"):
    read_materials(tmp_path)


def test_a_link_within_the_folder_is_followed(copy):
  (copy / "office" / "ours.mp4").unlink()
  (copy / "office" / "ours.mp4").symlink_to("truth.mp4")
  assert read_materials(copy).conversations["office"].videos["ours"].path == copy / "office" / "truth.mp4"


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "study.json: found .* expected JSON"),
        ("[" * 100_000, "study.json: found .*recursion.* expected JSON"),
        ("[]", "study.json: found list, expected an object"),
        ('{"titel": "x"}', "found the key titel, expected none but title"),
        ('{"title": 3}', "title: found int, expected text"),
        ('{"title": "\\ud800"}', "title: found half a character"),
        ('{"consent": "x"}', "consent: found str, expected a list"),
        ('{"consent": ["x", 1]}', r"consent\[1\]: found int"),
        ('{"contact": "' + "x" * 10_001 + '"}', "contact: found 10001 characters"),
        ('{"conversations": []}', "conversations: found list"),
        ('{"conversations": {"kitchen": {}}}', "conversations: found kitchen, expected one of breakfast, office"),
        ('{"conversations": {"office": {"rol": "x"}}}', "conversations.office: found the key rol"),
        ('{"conversations": {"office": {"role": null}}}', "conversations.office.role: found NoneType"),
    ],
)
def test_texts_that_are_wrong_are_one_line(copy, content, message):
  (copy / "study.json").write_text(content)
  with pytest.raises(InputError, match=message):
    read_materials(copy)


def test_what_makes_another_study(videos, materials, copy):
  same = read_materials(videos).identity()
  assert same == materials.identity() == json.loads(json.dumps(same))
  assert read_materials(copy).identity() == same  # Wherever it lies.
  (copy / "study.json").write_text("{}")
  assert read_materials(copy).identity() != same  # What is said of the people is part of what is rated.
  shutil.copy(videos / "study.json", copy)
  shutil.copy(videos / "office" / "ours.mp4", copy / "office" / "truth.mp4")
  assert read_materials(copy).identity() != same


def test_a_video_that_changes_is_noticed(copy):
  video = read_materials(copy).conversations["office"].videos["ours"]
  assert video.is_unchanged()
  state = video.path.stat()
  os.utime(video.path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
  assert not video.is_unchanged()
  os.utime(video.path, ns=(state.st_atime_ns, state.st_mtime_ns))
  assert video.is_unchanged()
  (copy / "office").rename(copy / "elsewhere")
  assert not video.is_unchanged()
  (copy / "office").symlink_to("elsewhere")  # The same file, but by a link that was not there.
  assert not video.is_unchanged()
