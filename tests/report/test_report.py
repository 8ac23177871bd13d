"""The report of a tiny run: what is in it, what a browser makes of it, what is drawn anew and what is not."""

import html.parser
import json
import pathlib
import re
import shutil

import av
import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

import tiny_world
from media.browser import BROWSER, OpenPage
from rsatalker_jax.commands import report
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.tables import METRICS_VERSION
from rsatalker_jax.head import pose_for
from rsatalker_jax.report import scenes
from rsatalker_jax.runs import load_run, views

TITLE = "Ours <script>alert('x')</script> & more"
NAMES = ["conversation", "blood_unequal_speaker", "blood_unequal_listener"]
HALF = tiny_world.FRAMES // 2
CLIP, EXCHANGE = 40, 50  # Frames of the videos.
# A voice is heard a frame before it begins and after it ends. The exchange is in the middle, where both speak as long; the
# speaker's moment begins where 40 frames are left; B listens from the start.
STARTS = dict(zip(NAMES, (5, 20, 0)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """The tiny world; in its test conversation person 1 speaks first, and then person 2, who is filmed."""
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  time = np.arange(tiny_world.FRAMES * 640) / 16000
  tone = 0.3 * np.sin(2 * np.pi * 200 * time).astype(np.float32)
  first = np.arange(len(tone)) < HALF * 640
  for speaker, sounds in ((1, first), (2, ~first)):
    path = root / "conversations" / "test" / f"tiny-2_sub_video_0_speaker{speaker}.wav"
    soundfile.write(path, tone * sounds, 16000, subtype="FLOAT")
  return root


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
  """A finished run, with results, and three ablations: of all stages, of the motion alone, and one that has not begun."""
  workdir = tmp_path_factory.mktemp("run") / "run"
  tiny_world.train_quickly(tiny_world.tiny_config(world), str(workdir))
  for variant, seed, stages in (("paper", 0, ("motion", "avatar", "joint")), ("deaf", 0, ("motion",)), ("deaf", 1, ("motion",))):
    folder = workdir / "ablations" / variant / f"seed_{seed}"
    for stage in stages:
      shutil.copytree(workdir / stage, folder / stage)
    change_config(workdir, folder, title=f"The {variant} one", enabled=variant != "deaf")
  (workdir / "ablations" / "late" / "seed_0").mkdir(parents=True)
  write_results(workdir, checks=["FD > P-FD in <JAW>"])
  write_results(workdir / "ablations" / "paper" / "seed_0")
  change_config(workdir, workdir, title=TITLE)
  return workdir


def change_config(source, folder, *, title, enabled=True):
  config = json.loads((source / "config.json").read_text())
  config["evaluation"]["title"], config["social"]["enabled"] = title, enabled
  (folder / "config.json").write_text(json.dumps(config))


def write_results(folder, version=METRICS_VERSION, checks=()):
  results = {
      "metrics_version": version, "stages": "motion:4 avatar:4 joint:3", "checks": list(checks), "title": "Ours",
      "frames": {"generated motion": {"psnr": 23.456}}, "usage": {"motion": {"seconds": 90, "steps": 4}},
  }
  (folder / "evaluation").mkdir(exist_ok=True)
  (folder / "evaluation" / "results.json").write_text(json.dumps(results))
  (folder / "evaluation" / "results.md").write_text("Table of **all**:\n\n| | a |\n|---|---:|\n| x | 1.25 |\n")


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
  path = tmp_path_factory.mktemp("page") / "deep" / "page.html"
  with pytest.MonkeyPatch.context() as monkeypatch:
    shorten(monkeypatch)
    assert report.write_report(str(trained), str(path)) == path
  return path


def shorten(monkeypatch):
  """Videos that fit into the tiny conversation."""
  monkeypatch.setattr(report, "_CLIP", CLIP)
  monkeypatch.setattr(report, "_EXCHANGE", EXCHANGE)


@pytest.fixture
def copied(page, trained, tmp_path, monkeypatch):
  """A run of its own to change, with what is drawn already; what is drawn anew is grey."""
  shorten(monkeypatch)
  monkeypatch.setattr(scenes.Column, "_render", draw_grey)
  return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def draw_grey(self, found):
  for scene in found:
    assert len(self.pose(scene)["jaw"]) == len(scene.frames) == len(scene.camera.intrinsics)
    yield from np.full((len(scene.frames), scene.camera.height, scene.camera.width, 3), 128, np.uint8)


@pytest.fixture
def no_drawing(copied, monkeypatch):
  """Whoever draws fails."""

  def draw(*_):
    raise AssertionError("drawn again")
    yield

  monkeypatch.setattr(scenes.Column, "_render", draw)


def kept(workdir):
  return sorted(path.name for path in (workdir / "report").iterdir())


def read_video(path):
  with av.open(str(path)) as container:
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
  with av.open(str(path)) as container:
    sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
  return frames, sound


# --- The page


def test_page_has_all_parts_in_order(page, trained):
  text = page.read_text()
  order = ["<header>", "A and B in turns", 'id="results"', 'role="alert"', "Table of", 'id="losses"', 'id="motion"',
           'id="videos"', 'id="sheets"', 'id="missing"']
  places = [text.index(part) for part in order]
  assert places == sorted(places)
  assert re.findall(r'<li><a href="#(\w+)">', text) == ["results", "losses", "motion", "videos", "sheets", "missing"]
  assert "1 check violated" in text and "FD &gt; P-FD in &lt;JAW&gt;" in text
  assert "23.46 dB" in text and ">1.25<" in text and "4 steps, 1.5 min" in text
  assert text.count("stage</h3>") == 3
  assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_page_says_what_is_missing(page, trained):
  missing = page.read_text().split('id="missing"')[1]
  for line in (
      "late/seed_0 has no checkpoint yet", "no tables of", "deaf/seed_0", "deaf/seed_1", "Tables 4 and 5: there is no",
  ):
    assert line in missing
  assert "paper/seed_0" not in missing


def test_page_is_one_file_that_obeys_nobody(page, trained):
  text = page.read_text()
  assert "@@" not in text and "alert('x')" not in re.sub(r"&lt;script&gt;alert\(&#x27;x&#x27;\)", "", text)
  assert "<title>Ours &lt;script&gt;" in text
  assert "default-src 'none'" in text and not re.search(r"https?:|//\w+\.\w+|@import|fetch\(|XMLHttp", text)
  assert text.count("<script") == 1 and not re.search(r"\son\w+=", text)
  held = sum(path.stat().st_size for path in (trained / "report").iterdir())
  assert len(text) < 1.4 * held + 200_000


def test_page_nests_and_names_nothing_twice(page):
  open_tags, names = [], []

  class Reader(html.parser.HTMLParser):

    def handle_starttag(self, tag, attributes):
      names.extend(value for name, value in attributes if name == "id")
      if tag not in ("meta", "link", "img", "input", "br", "hr"):
        open_tags.append(tag)

    def handle_endtag(self, tag):
      assert open_tags.pop() == tag

    def handle_startendtag(self, tag, attributes):
      pass

  Reader().feed(page.read_text())
  assert open_tags == [] and len(names) == len(set(names))


def test_motion_chart_has_truth_ours_and_the_one_without_the_social_module(page, trained):
  section = page.read_text().split('id="motion"')[1].split("</section>")[0]
  legend = re.search('<ul class="legend">(.*?)</ul>', section)[1]
  assert [x for x in ("truth", "Ours", "The deaf one", "A speaks", "B speaks") if x in legend] and "The paper" not in legend
  assert re.findall(r'class="y-label"[^>]*>([^<]*)<', section) == [
      "jaw open (degrees)", "head down (degrees)", "head to its left (degrees)"]
  # Person 1 speaks first; the speaker's moment is in the conversation in which B is person 2, whom the film shows.
  assert "tiny-2_sub_video_0_speaker2" in section
  lane = lambda style: [float(x) for x in re.search(f'class="lane-{style}" x="([^"]*)"[^>]*width="([^"]*)"', section).groups()]
  (a_start, a_width), (b_start, b_width) = lane("a"), lane("b")
  frame = (1000 - 52 - 12) / tiny_world.FRAMES
  # A window of three frames hears a tone a frame before it begins and after it ends.
  np.testing.assert_allclose([a_start, a_width], [52, (HALF + 1) * frame], atol=0.11)
  np.testing.assert_allclose([b_start, b_width], [52 + (HALF - 1) * frame, (HALF + 1) * frame], atol=0.11)
  # The truth of the first panel, by the numbers that the file was written with.
  path = re.search(r'class="line-truth" d="([^"]*)"', section)[1]
  drawn = np.array([[float(x) for x in point.split()] for point in re.split("[ML]", path)[1:]])
  jaw = np.degrees(tiny_world.make_motion(6)[:, 50])
  np.testing.assert_allclose(drawn[:, 0], 52 + frame * np.arange(tiny_world.FRAMES), atol=0.06)
  slope, origin = np.polyfit(drawn[:, 1], jaw, 1)
  assert slope < 0  # Up is more.
  np.testing.assert_allclose(slope * drawn[:, 1] + origin, jaw, atol=0.06 * abs(slope))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")
def test_browser_plays_every_video_by_the_keyboard_and_asks_nothing_of_the_network(page, tmp_path):
  with OpenPage(page, tmp_path / "profile") as opened:
    videos = "[...document.querySelectorAll('video')]"
    assert opened.evaluate(f"{videos}.map((v) => [v.readyState, v.networkState === v.NETWORK_LOADING])") == [[0, False]] * 3
    for number in range(3):
      video = f"{videos}[{number}]"
      figure = f"{video}.closest('figure')"
      opened.evaluate(f"{figure}.querySelector('button').focus()")
      opened.key("Enter")
      opened.evaluate(f"""new Promise((resolve) => {{
        const look = () => {video}.currentTime > 0.2 ? resolve() : setTimeout(look, 10);
        look();
      }})""")
      width, height = opened.evaluate(f"[{video}.videoWidth, {video}.videoHeight]")
      columns = opened.evaluate(f"{figure}.querySelectorAll('.heads span').length")
      assert (width, height) == (columns * tiny_world.SIZE, tiny_world.SIZE) and columns == (3 if number == 0 else 4)
      assert opened.evaluate(f"[{video}.error, {video}.src.slice(0, 5), {video}.controls]") == [None, "blob:", False]
      seconds = opened.evaluate(f"[{video}.duration, Number({video}.dataset.seconds)]")
      assert seconds == [pytest.approx((CLIP if number else EXCHANGE) / 25, abs=0.05)] * 2
      assert opened.evaluate(f"{videos}.filter((v) => !v.paused && !v.ended).length") <= 1
    # The slider seeks, and the line of the chart goes along.
    figure = "document.querySelector('figure')"
    opened.evaluate(f"{figure}.querySelector('input').focus()")
    opened.key("Home")
    opened.evaluate(f"""new Promise((resolve) => {{
      const video = {videos}[0], slider = {figure}.querySelector("input");
      video.addEventListener("seeked", resolve, {{ once: true }});
      slider.value = 500;
      slider.dispatchEvent(new Event("input"));
    }})""")
    time, place = opened.evaluate(f"[{videos}[0].currentTime, Number({figure}.querySelector('.now').getAttribute('x1'))]")
    assert time == pytest.approx(EXCHANGE / 50, abs=0.05)
    assert place == pytest.approx(52 + time * (760 - 52 - 12) / (EXCHANGE / 25), abs=0.1)
    # Nothing is wider than a phone.
    opened.resize(360, 700)
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    images = opened.evaluate("[...document.images].map((image) => (image.loading = 'eager', image.decode().then(() => image.naturalWidth)))"
                             ".reduce(async (all, one) => [...await all, await one], [])")
    assert len(images) == 9 and set(images) == {6 * tiny_world.SIZE}
  assert opened.errors == [] and opened.requests == [page.as_uri()]


# --- Pictures


def test_videos_show_the_film_and_both_voices(page, trained):
  names = kept(trained)
  assert sorted(name.rpartition("-")[0] for name in names) == sorted([*NAMES, "sheet_0"])
  run = load_run(str(trained))
  capture = run.talker.open_capture(run.data_path("capture"), "test")
  filmed = np.stack([capture[capture.index(0, tiny_world.FRAMES + t)]["image"] for t in range(tiny_world.FRAMES)])
  size = tiny_world.SIZE
  for name, start in STARTS.items():
    frames, sound = read_video(next((trained / "report").glob(f"{name}-*")))
    columns, column, count = (3, 1, EXCHANGE) if name == "conversation" else (4, 0, CLIP)
    assert frames.shape == (count, size, columns * size, 3)
    shown = frames[:, :, column * size : (column + 1) * size] / 255
    differ = [np.abs(shown - filmed[first : first + count]).mean() for first in range(tiny_world.FRAMES - count + 1)]
    assert np.argmin(differ) == start and min(differ) < 0.02
    # A, on the left, speaks for the first half of the conversation, B for the second; a tenth of a second is left out.
    change, gap = round((HALF - start) / 25 * 48000), 4800
    loud = lambda part: np.sqrt((part**2).mean(axis=1))
    left, right = loud(sound[:, gap : change - gap])
    np.testing.assert_allclose([left / right, right], [4, 0.3 * 0.2 / np.sqrt(2)], rtol=0.1)
    left, right = loud(sound[:, change + gap : round(count / 25 * 48000) - gap])
    np.testing.assert_allclose([right / left, left], [4, 0.3 * 0.2 / np.sqrt(2)], rtol=0.1)


def test_sheets_are_the_film_and_its_differences(page, trained):
  with Image.open(next((trained / "report").glob("sheet_0-*.png"))) as image:
    sheet = np.asarray(image)
  size = tiny_world.SIZE
  assert sheet.shape == (5 * size, 6 * size, 3)  # Film, tracked, ours, deaf, paper; six moments.
  run = load_run(str(trained))
  capture = load_capture(run.data_path("capture"), "test", background=(1, 1, 1))
  moments = np.round(np.linspace(0, tiny_world.FRAMES - 1, 6)).astype(int)
  for column, moment in enumerate(moments):
    image = capture[capture.index(0, tiny_world.FRAMES + moment)]["image"]
    shown = sheet[:size, column * size : (column + 1) * size]
    np.testing.assert_allclose(shown, 255 * image, atol=0.51)
  # The last moment by each column, drawn by itself.
  (clip,) = (clip for clip in load_clips(load_conversations(run.config.data, "test"), run.encode) if clip.name.endswith("2"))
  item = capture[capture.index(0, 2 * tiny_world.FRAMES - 1)]
  deaf = load_run(str(trained / "ablations" / "deaf" / "seed_0"))
  motions = np.stack([clip.motion_b[-1], *(x.generate(clip)[-1] for x in (run, deaf))])
  generated = [pose_for(motion, item["flame"], run.alignment) for motion in motions[1:]]
  poses = jax.tree.map(lambda *x: np.stack(x), item["flame"], *generated)
  thrice = lambda x: np.stack([x] * 3)
  camera = scenes.splat_kernels.Camera(thrice(item["world_to_camera"]), thrice(item["intrinsics"]), size, size)
  offsets = run.gaussian_offsets(clip.relation, np.full(3, tiny_world.FRAMES - 1), motions)(np.arange(3))
  alone = jax.jit(run.talker.render)(run.avatar, poses, camera, offsets).image
  drawn = sheet.reshape(5, size, 6, size, 3)[1:, :, -1]
  for picture, expected in zip(drawn, [*alone, alone[1]]):  # The paper's one is a copy of ours.
    np.testing.assert_allclose(picture, 255 * np.clip(expected, 0, 1), atol=0.6)
  assert np.abs(alone[0] - alone[1]).max() > 0.02  # Ten times what rounding may change.
  rows, errors = scenes.error_rows(sheet, 5)
  assert len(rows) == 5 and len(errors) == 4
  expected = np.minimum(4 * np.abs(sheet[size : 2 * size].astype(int) - sheet[:size].astype(int)), 255)
  np.testing.assert_array_equal(errors[0], expected)
  text = page.read_text().split('id="sheets"')[1]
  assert re.findall(r'<div class="row"><b>([^<]*)</b>', text)[:3] == ["the film", "tracked motion", "tracked motion: error × 4"]
  assert re.findall(r"<span>([\d.]+ s)</span>", text) == [f"{moment / 25:.1f} s" for moment in moments]


def test_second_report_draws_nothing_again(page, copied, tmp_path, no_drawing):
  before = kept(copied)
  again = report.write_report(str(copied))
  assert again == copied / "report.html" and kept(copied) == before
  assert re.findall("base64,[^\"]*", again.read_text()) == re.findall("base64,[^\"]*", page.read_text())


def test_what_has_changed_is_drawn_again_and_the_old_goes(page, copied, monkeypatch):
  (copied / "report" / "my notes-1.png").write_bytes(b"")
  shutil.rmtree(copied / "ablations" / "deaf")
  drawn = {}
  note = lambda self, found: drawn.update({self.title: len(found)}) or draw_grey(self, found)
  monkeypatch.setattr(scenes.Column, "_render", note)
  before = kept(copied)
  report.write_report(str(copied))
  after = kept(copied)
  assert len(after) == len(before) and "my notes-1.png" in after
  assert {name for name in before if name in after} == {
      "my notes-1.png", *(name for name in before if name.startswith("conversation-"))}
  # The conversation shows no ablation, and of the truth there are films.
  assert drawn == {"truth": 0, "tracked motion": 1, TITLE: 3, "The paper one": 3}


def test_stopped_drawing_goes_on(page, copied, monkeypatch):
  for path in (copied / "report").glob("*.mp4"):
    path.unlink()
  shutil.rmtree(copied / "ablations")
  write = scenes.video.write_video
  done = []

  def stop(path, frames, **options):
    if done:
      raise KeyboardInterrupt
    done.append(path)
    return write(path, frames, **options)

  monkeypatch.setattr(scenes.video, "write_video", stop)
  with pytest.raises(KeyboardInterrupt):
    report.write_report(str(copied))
  assert not (copied / "report.html").exists()
  assert [path.name for path in (copied / "report").glob("*.mp4")] == [done[0].name]
  stamp = done[0].stat().st_mtime_ns
  monkeypatch.setattr(scenes.video, "write_video", write)
  report.write_report(str(copied))
  assert done[0].stat().st_mtime_ns == stamp and len(kept(copied)) == 4


def test_identity_follows_all_that_is_seen():
  tree = {"a": np.arange(3.0), "b": None}
  same = scenes.digest({"a": np.arange(3.0), "b": None})
  assert scenes.digest(tree) == same
  for other in ({"a": np.arange(3), "b": None}, {"a": np.arange(3.0)}, {"c": np.arange(3.0), "b": None},
                {"a": np.arange(3.0)[:, None], "b": None}, {"a": np.array([0, 1, 2.5]), "b": None}):
    assert scenes.digest(other) != same
  assert scenes.digest(("ab", "c")) != scenes.digest(("a", "bc"))


def test_pictures_are_as_high_as_the_capture_up_to_a_limit():
  assert [scenes.picture_height(x) for x in (48, 49, 320, 802)] == [48, 48, 320, 320]
  camera = scenes.splat_kernels.Camera(np.eye(4), np.array([[500.0, 0, 275], [0, 500, 401], [0, 0, 1]]), 550, 802)
  view = views.zoom(camera, 320)
  assert (view.width, view.height) == (220, 320)
  np.testing.assert_allclose(view.intrinsics, [[500 * 320 / 802, 0, 275 * 320 / 802], [0, 500 * 320 / 802, 160], [0, 0, 1]])


# --- What a run may lack


def only(copied, *stages):
  for stage in {"motion", "avatar", "joint"} - set(stages):
    shutil.rmtree(copied / stage)
  for folder in ("ablations", "evaluation", "report"):
    shutil.rmtree(copied / folder)
  return report.write_report(str(copied)).read_text()


def test_run_without_avatar_shows_motion(copied):
  text = only(copied, "motion")
  assert 'id="motion"' in text and 'id="videos"' not in text and "<video controls" not in text
  for line in ("no videos: the run has no avatar stage", "no tables of ", "no ablations", "no loss curves of the avatar"):
    assert line in text


def test_run_without_generator_shows_its_capture(copied):
  text = only(copied, "avatar")
  assert 'id="motion"' not in text and "<video controls" not in text and 'id="sheets"' in text
  assert [name.rpartition("-")[0] for name in kept(copied)] == ["sheet_0"]
  assert "no motion: the run has no motion stage" in text
  assert re.findall(r'<div class="row"><b>([^<]*)</b>', text) == ["the film", "tracked motion", "tracked motion: error × 4"]


def test_conversations_that_nobody_filmed_are_drawn(world, copied):
  config = json.loads((copied / "config.json").read_text())
  config["data"]["triplets"] = str(world / "none.jsonl")
  shutil.rmtree(copied / "ablations")
  (copied / "config.json").write_text(json.dumps(config))
  text = report.write_report(str(copied)).read_text()
  assert "none.jsonl" in text.split('id="missing"')[1] and 'id="sheets"' not in text
  assert "true motion, drawn" in text and "truth: the film" not in text and "Nobody filmed this" in text
  frames, _ = read_video(next((copied / "report").glob("blood_unequal_listener-*")))
  assert frames.shape[2] == 2 * tiny_world.SIZE and np.ptp(frames) < 10  # No column is the film.


def test_run_whose_data_is_gone_shows_what_it_wrote(copied, no_drawing):
  config = json.loads((copied / "config.json").read_text())
  config["data"]["conversations"] = str(copied / "gone")
  shutil.rmtree(copied / "ablations")
  (copied / "config.json").write_text(json.dumps(config))
  text = report.write_report(str(copied)).read_text()
  assert 'id="results"' in text and 'id="losses"' in text and "<video controls" not in text
  assert "there are no test conversations in" in text


def test_mistakes_are_one_line_and_leave_nothing(copied, tmp_path):
  with pytest.raises(InputError, match="--out: found .*page.pdf, expected a name that ends in .html"):
    report.write_report(str(copied), str(tmp_path / "page.pdf"))
  with pytest.raises(InputError, match="no-run"):
    report.write_report(str(tmp_path / "no-run"))
  write_results(copied / "ablations" / "paper" / "seed_0", version=METRICS_VERSION - 1)
  with pytest.raises(InputError, match="paper/seed_0/evaluation/results.json: metrics_version: found 1, expected 2"):
    report.write_report(str(copied))
  assert not (copied / "report.html").exists() and not list(tmp_path.glob("*.html"))
