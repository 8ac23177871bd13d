"""The labelling page over HTTP: labels reach the table, sound and scene are the files', and nothing else is served."""

import fcntl
import io
import json
import threading

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile

import tiny_world
from rsatalker_jax.data.dualtalk import find_clips
from rsatalker_jax.data.relations import RelationLabel, read_labels
from rsatalker_jax.errors import InputError
from rsatalker_jax.labelling.server import LabelServer, find_videos
from rsatalker_jax.labelling.table import LabelTable
from served import request, serving_in_thread
from study.world import write_tiny_video

HEADER = "conversation,blood,equal,annotator,confidence\n"
NAMES = ["tiny-0_sub_video_0", "tiny-1_sub_video_0", "tiny-2_sub_video_0"]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
  """For reading only: three conversations, one in each split."""
  root = tmp_path_factory.mktemp("conversations")
  tiny_world.write_conversations(root)
  return root


class Page:
  """A served application and its table."""

  def __init__(self, port, table):
    self.port, self.table, self.origin = port, table, f"http://127.0.0.1:{port}"

  def get(self, path, **headers):
    return request(self.port, "GET", path, **headers)

  def get_json(self, path):
    status, _, body = self.get(path)
    return status, json.loads(body)

  def post(self, data, **edits):
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    headers = {"Origin": self.origin, "Content_Type": "application/json"} | edits
    status, _, answer = request(self.port, "POST", "/labels", body, **headers)
    return status, json.loads(answer)


def serve(root, path, videos=None):
  clips = find_clips(root)
  table = LabelTable(path, "ann", {clip.name for clip in clips})
  return serving_in_thread(lambda origins: LabelServer(clips, table, videos or {}, origins).make_app())


@pytest.fixture
def page(conversations, tmp_path):
  with serve(conversations, tmp_path / "relations.csv") as port:
    yield Page(port, tmp_path / "relations.csv")


def label(number=0, blood="true", equal="false", confidence=None):
  return {"conversation": NAMES[number], "blood": blood, "equal": equal, "confidence": confidence}


def test_labels_reach_the_table_one_by_one_and_come_back(page, conversations):
  page.table.write_text(HEADER + f"{NAMES[0]},false,false,ben,\n")
  status, state = page.get_json("/state")
  assert status == 200 and state["annotator"] == "ann"
  assert [(c["name"], c["split"], c["label"], c["videos"]) for c in state["conversations"]] == [
      (name, split, None, 0) for name, split in zip(NAMES, ("train", "val", "test"))]  # fmt: skip
  assert page.post(label(2, "unknown", "true", 0.7)) == (200, {"stored": True})
  assert page.table.read_text() == HEADER + f"{NAMES[0]},false,false,ben,\n{NAMES[2]},unknown,true,ann,0.7\n"
  assert page.post(label(0)) == (200, {"stored": True})
  assert page.post(label(2, "false", "true", 1)) == (200, {"stored": True})  # Another opinion.
  assert page.table.read_text() == (
      HEADER + f"{NAMES[0]},false,false,ben,\n{NAMES[2]},false,true,ann,1.0\n{NAMES[0]},true,false,ann,\n")
  labels = [c["label"] for c in page.get_json("/state")[1]["conversations"]]
  assert labels == [
      {"blood": "true", "equal": "false", "confidence": None}, None, {"blood": "false", "equal": "true", "confidence": 1.0}]  # fmt: skip
  with serve(conversations, page.table) as port:  # The program is started again.
    assert [c["label"] for c in Page(port, page.table).get_json("/state")[1]["conversations"]] == labels


@pytest.mark.parametrize(
    "data, part",
    [
        (b"{", "JSON"),
        ([], "found list"),
        ({"conversation": NAMES[0]}, "found conversation, expected conversation, blood, equal, confidence"),
        (label() | {"annotator": "ben"}, "annotator"),
        (label() | {"conversation": "nobody"}, "conversation: found 'nobody'"),
        (label() | {"conversation": 3}, "conversation: found 3"),
        (label(blood="yes"), "blood: found 'yes', expected true | false | unknown"),
        (label(equal=True), "equal: found True"),
        (label(equal=["true"]), "equal"),
        (label(confidence=1.5), "confidence: found 1.5"),
        (label(confidence=-0.1), "confidence"),
        (label(confidence=True), "confidence"),
        (label(confidence="1"), "confidence"),
        (json.dumps(label(confidence=float("nan"))).encode(), "confidence: found nan"),
    ],
)
def test_what_is_no_label_is_not_stored(page, data, part):
  status, answer = page.post(data)
  assert status == 400 and part in answer["error"] and not page.table.exists()


@pytest.mark.parametrize(
    "edits, status",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Content_Type": "text/plain"}, 415),
    ],
)
def test_other_sites_are_refused(page, edits, status):
  assert page.post(label(), **edits)[0] == status and not page.table.exists()
  if "Host" in edits:
    assert page.get("/state", **edits)[0] == page.get("/sounds/0", **edits)[0] == status


def test_pages_and_headers(page):
  for path in ("/", "/assets/page.js", "/assets/page.css", "/assets/label.js", "/assets/label.css", "/state", "/scenes/0", "/sounds/0"):
    status, headers, body = page.get(path)
    assert status == 200 and body and headers["Content-Security-Policy"].startswith("default-src 'none'"), path
  body = page.get("/")[2].decode()
  assert "<style" not in body and " style=" not in body and " onclick" not in body and "//" not in body.replace("<!--", "")
  assert body.count("<script") == body.count("<script src=") == 2


@pytest.mark.parametrize(
    "path",
    [
        "/scenes/3", "/scenes/-1", "/scenes/x", "/scenes/%C2%B2", "/scenes/999999999999999999", "/sounds/3", "/videos/0/0", "/videos/0/-1",
        "/assets/label.html", "/assets/../server.py", "/assets/%2e%2e/server.py", "/relations.csv", "/scenes/..%2f..%2frelations.csv",
    ],
)  # fmt: skip
def test_no_address_leads_elsewhere(page, path):
  page.table.write_text(HEADER)
  assert page.get(path)[0] == 404


def test_sound_is_both_voices_on_their_sides(page, conversations):
  name = conversations / "val" / NAMES[1]
  one, two = (soundfile.read(f"{name}_speaker{speaker}.wav")[0] for speaker in (1, 2))
  status, headers, body = page.get("/sounds/1")
  assert status == 200 and headers["Content-Type"] == "audio/wav"
  rate, samples = scipy.io.wavfile.read(io.BytesIO(body))
  assert rate == 16000 and samples.shape == (len(one), 2) and samples.dtype == np.int16
  np.testing.assert_allclose(samples / 32768, np.stack([0.9 * one + 0.35 * two, 0.35 * one + 0.9 * two], axis=1), atol=1e-4)
  for span, start, stop in (("bytes=0-", 0, len(body)), ("bytes=100-199", 100, 200), ("bytes=-7", len(body) - 7, len(body))):
    status, headers, part = page.get("/sounds/1", Range=span)
    assert (status, part) == (206, body[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(body)}"
  assert page.get("/sounds/1", Range=f"bytes={len(body)}-")[0] == page.get("/sounds/1", Range="bytes=x")[0] == 416


def test_loud_voices_are_turned_down_and_lengths_may_differ(tmp_path):
  folder = tmp_path / "flat"
  folder.mkdir()
  for speaker, frames, level in ((1, 10, 0.9), (2, 8, 0.9)):
    soundfile.write(folder / f"c_speaker{speaker}.wav", np.full(640 * frames, level, np.float32), 16000, subtype="FLOAT")
  with serve(folder, tmp_path / "relations.csv") as port:
    page = Page(port, None)
    assert page.get_json("/state")[1]["conversations"][0]["split"] == ""
    samples = scipy.io.wavfile.read(io.BytesIO(page.get("/sounds/0")[2]))[1]
    scene = page.get_json("/scenes/0")[1]
  assert samples.shape == (6400, 2) and samples[0].tolist() == [32767, 32767] and scene["frames"] == 10
  np.testing.assert_allclose(samples[-1] / 32767, [0.9 / 1.25, 0.35 / 1.25], atol=1e-3)
  assert scene["people"][1]["loudness"] == [1.0] * 8 + [0.0] * 2
  assert [person["head"] for person in scene["people"]] == [None, None]
  assert [note.split("c_speaker")[1][:5] for note in scene["notes"]] == ["1.npz", "2.npz"]


def test_scene_is_what_the_files_hold(page):
  status, scene = page.get_json("/scenes/2")
  assert status == 200 and scene["fps"] == 25 and scene["frames"] == tiny_world.FRAMES and scene["notes"] == []
  loudness = np.array([person["loudness"] for person in scene["people"]])
  assert loudness.max() == 1.0 and loudness.min() >= 0
  time = np.arange(tiny_world.FRAMES * 640) / 16000
  for person, seed in enumerate((5, 6)):
    motion = tiny_world.make_motion(seed)
    np.testing.assert_allclose(scene["people"][person]["jaw"], motion[:, 50], atol=6e-4)
    np.testing.assert_allclose(scene["people"][person]["head"], motion[:, 53:56], atol=6e-4)
    level = (0.5 + 0.5 * np.sin(2 * np.pi * 2 * time + seed)).reshape(-1, 640).mean(axis=1)
    assert np.corrcoef(loudness[person], np.sqrt(level))[0, 1] > 0.99


def test_a_damaged_voice_is_one_line_and_the_others_go_on(tmp_path):
  tiny_world.write_conversations(tmp_path)
  path = tmp_path / "train" / f"{NAMES[0]}_speaker1.wav"
  path.write_bytes(path.read_bytes()[:200])
  (tmp_path / "relations.csv").unlink()
  with serve(tmp_path, tmp_path / "relations.csv") as port:
    page = Page(port, tmp_path / "relations.csv")
    status, answer = page.get_json("/scenes/0")
    assert status == 503 and path.name in answer["error"] and "cut off" in answer["error"]
    assert page.get("/sounds/0")[0] == 503 and page.get("/sounds/1")[0] == 200
    assert page.post(label(0))[0] == 200
    page.table.write_text("conversation;blood\n")  # Somebody saves it from a spreadsheet meanwhile.
    status, answer = page.post(label(1))
    assert status == 503 and "semicolons" in answer["error"] and page.table.read_text() == "conversation;blood\n"


# --- Videos.


def test_videos_are_those_of_the_conversation(conversations, tmp_path):
  folder = tmp_path / "videos"
  for seed, part in enumerate((f"{NAMES[0]}_speaker1", f"{NAMES[0]}_speaker2", NAMES[2], f"{NAMES[2]}_speaker1")):
    write_tiny_video(folder / f"{part}.mp4", seed)
  videos = find_videos(folder, find_clips(conversations))
  assert {name: [path.name for path in paths] for name, paths in videos.items()} == {
      NAMES[0]: [f"{NAMES[0]}_speaker1.mp4", f"{NAMES[0]}_speaker2.mp4"], NAMES[2]: [f"{NAMES[2]}.mp4"]}  # fmt: skip
  with serve(conversations, tmp_path / "relations.csv", videos) as port:
    page = Page(port, None)
    assert [c["videos"] for c in page.get_json("/state")[1]["conversations"]] == [2, 0, 1]
    for path, file in (("/videos/0/1", f"{NAMES[0]}_speaker2"), ("/videos/2/0", NAMES[2])):
      content = (folder / f"{file}.mp4").read_bytes()
      status, headers, body = page.get(path)
      assert (status, headers["Content-Type"], body) == (200, "video/mp4", content)
      assert page.get(path, Range="bytes=5-9")[2] == content[5:10]
    assert page.get("/videos/0/2")[0] == page.get("/videos/1/0")[0] == page.get("/videos/0/x")[0] == 404


def test_mistakes_in_the_folder_of_videos(conversations, tmp_path):
  clips = find_clips(conversations)
  with pytest.raises(InputError, match="--videos: found .*nothing: No such file"):
    find_videos(tmp_path / "nothing", clips)
  with pytest.raises(InputError, match="no video of any conversation, expected files such as tiny-0_sub_video_0.mp4"):
    find_videos(tmp_path, clips)
  write_tiny_video(tmp_path / "secret.mp4", 0)
  (tmp_path / "videos").mkdir()
  (tmp_path / "videos" / f"{NAMES[1]}.mp4").symlink_to(tmp_path / "secret.mp4")
  with pytest.raises(InputError, match="a link to .*secret.mp4, expected a file within"):
    find_videos(tmp_path / "videos", clips)


# --- The table.


@pytest.mark.parametrize("name", ["", " ", " ann", "a\nb", "=1+1", "-ann", "@ann", "+ann", "a" * 101])
def test_names_that_are_none(tmp_path, name):
  with pytest.raises(InputError, match="--annotator"):
    LabelTable(tmp_path / "relations.csv", name, {"a"})


def test_a_damaged_table_is_found_at_once(tmp_path):
  (tmp_path / "relations.csv").write_text(HEADER + "b,true,true,,\n")
  with pytest.raises(InputError, match="relations.csv:2: conversation: found 'b'"):
    LabelTable(tmp_path / "relations.csv", "ann", {"a"})


def test_annotators_at_the_same_time_lose_nothing(tmp_path):
  path, names = tmp_path / "new" / "relations.csv", {f"c{i}" for i in range(12)}
  def work(annotator):
    table = LabelTable(path, annotator, names)
    for name in sorted(names):
      table.record(RelationLabel(name, np.array([1, 0]), annotator))

  threads = [threading.Thread(target=work, args=(annotator,)) for annotator in ("ann", "ben", "cy")]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(read_labels(path)) == 36
  assert {entry.name for entry in path.parent.iterdir()} == {"relations.csv", ".relations.csv.lock"}


def test_a_label_waits_for_who_is_writing(tmp_path):
  """What another process adds while it holds the lock is there afterwards."""
  path = tmp_path / "folder" / "relations.csv"
  table = LabelTable(path, "ann", {"a"})
  path.parent.mkdir()
  with open(path.with_name(".relations.csv.lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(target=table.record, args=(RelationLabel("a", np.array([1, 0]), "ann"),))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and not path.exists()
    path.write_text(HEADER + "a,false,false,ben,\n")
  thread.join()
  assert [label.annotator for label in read_labels(path)] == ["ben", "ann"]
