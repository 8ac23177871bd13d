"""The labelling page in a browser: by keyboard, by mouse, and what it says when a label cannot be saved."""

import time

import numpy as np
import pytest

import tiny_world
from labelling.test_label_server import HEADER, NAMES, Page, serve
from media.browser import BROWSER, OpenPage
from rsatalker_jax.data.dualtalk import find_clips
from rsatalker_jax.data.relations import read_labels
from rsatalker_jax.labelling.server import find_videos
from study.world import write_tiny_video

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium-headless-shell")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  with OpenPage("about:blank", tmp_path_factory.mktemp("browser") / "profile", holds_clock=False) as opened:
    yield opened


@pytest.fixture
def site(browser, tmp_path):
  """The page, with a video of the second conversation."""
  root = tmp_path / "conversations"
  tiny_world.write_conversations(root)
  write_tiny_video(tmp_path / "videos" / f"{NAMES[1]}.mp4", 0)
  table = root / "relations.csv"
  table.unlink()
  with serve(root, table, find_videos(tmp_path / "videos", find_clips(root))) as port:
    browser.errors.clear()
    open_page(browser, port)
    yield Page(port, table)
    browser.open("about:blank")  # Nothing asks a server that has gone.


def open_page(browser, port):
  browser.open(f"http://127.0.0.1:{port}/")
  until(browser, "items.length && scene")


def until(browser, expression):
  while not browser.evaluate(expression):
    time.sleep(0.01)


def text(browser, name):
  return browser.evaluate(f"document.getElementById('{name}').innerText")


def labels(site):
  return {label.conversation: (*label.relation.tolist(), label.confidence) for label in read_labels(site.table)}


def test_all_by_keyboard(browser, site):
  assert text(browser, "name") == f"{NAMES[0]} · train" and text(browser, "count") == "0 of 3 labelled"
  browser.key("w")
  assert "other question" in text(browser, "saved") and not site.table.exists()
  browser.key("a")
  browser.evaluate("saving")
  assert text(browser, "saved") == "Saved." and text(browser, "count") == "1 of 3 labelled"
  assert labels(site) == {NAMES[0]: (0, 1, None)}
  browser.key("7")
  browser.key("d")
  browser.evaluate("saving")
  assert labels(site) == {NAMES[0]: (0, -1, 0.7)} and text(browser, "confidence-value") == "70 %"
  browser.key("k")
  until(browser, "scene && place === 1")
  browser.key("q")  # Half an answer waits while one looks elsewhere.
  browser.key("k")
  browser.key("j")
  assert browser.evaluate("document.querySelector('[name=blood]:checked').value") == "true"
  assert browser.evaluate("document.querySelector('[name=equal]:checked')") is None
  browser.key("s")
  browser.key("c")
  browser.key("n")
  until(browser, "place === 2")
  for key in ("e", "d", "0", "n"):
    browser.key(key)
  until(browser, "document.getElementById('saved').innerText === 'All conversations are labelled.'")
  assert labels(site) == {NAMES[0]: (0, -1, 0.7), NAMES[1]: (1, 0, 1.0), NAMES[2]: (-1, -1, 0.0)}
  assert browser.evaluate("[progress.value, progress.max]") == [3, 3] and browser.errors == []


def test_it_goes_on_where_one_stopped(browser, site):
  site.table.write_text(HEADER + f"{NAMES[0]},true,false,ann,0.4\n{NAMES[1]},true,false,ben,\n")
  open_page(browser, site.port)
  assert browser.evaluate("place") == 1  # The first without a label of hers.
  browser.key("j")
  until(browser, "scene && place === 0")
  assert browser.evaluate("[...document.querySelectorAll('input:checked')].map((x) => x.value)") == ["true", "false"]
  assert text(browser, "confidence-value") == "40 %" and "Labelled before" in text(browser, "saved")
  options = browser.evaluate("[...document.getElementById('jump').options].map((x) => x.textContent)")
  assert options == [f"✓ {NAMES[0]} (train)", f"· {NAMES[1]} (val)", f"· {NAMES[2]} (test)"]
  for place in (1, 2, 1):  # The next without a label, and from the end on from the beginning.
    browser.key("n")
    until(browser, f"scene && place === {place}")


def test_mouse_lists_and_playing(browser, site):
  browser.evaluate("document.querySelector('[name=blood][value=false]').click()")
  browser.evaluate("document.querySelector('[name=equal][value=unknown]').click()")
  browser.evaluate("(byId('confidence').value = 0.3, byId('confidence').dispatchEvent(new Event('change')), saving)")
  assert labels(site) == {NAMES[0]: (0, -1, 0.3)}
  until(browser, "sound.readyState >= 1")
  duration = tiny_world.FRAMES / 25
  np.testing.assert_allclose(browser.evaluate("sound.duration"), duration, atol=0.01)
  box = browser.evaluate("(({x, y, width, height}) => [x, y, width, height])(byId('voices').getBoundingClientRect())")
  for kind in ("mousePressed", "mouseReleased"):
    browser.mouse(kind, box[0] + 0.75 * box[2], box[1] + 0.5 * box[3], button="left", clickCount=1)
  np.testing.assert_allclose(browser.evaluate("sound.currentTime"), 0.75 * duration, atol=0.05)
  browser.key("ArrowLeft")
  assert browser.evaluate("sound.currentTime") == 0
  browser.evaluate("(sound.muted = true, window.ended = new Promise((done) => sound.addEventListener('ended', done)), 0)")
  browser.key(" ")
  browser.evaluate("window.ended")
  assert browser.evaluate("document.querySelectorAll('video').length") == 0 and not browser.evaluate("byId('faces').hidden")
  browser.evaluate("(byId('jump').value = 1, byId('jump').dispatchEvent(new Event('change')))")
  until(browser, "place === 1 && scene && document.querySelector('video').readyState >= 1")
  assert browser.evaluate("byId('faces').hidden") and browser.evaluate("document.querySelector('video').muted")
  assert browser.errors == []


def test_faces_and_voices_are_drawn_from_the_motion(browser, site):
  """Speaker 1's mouth opens with the jaw, and looking to the picture's right moves the eyes there."""
  def dark(jaw, yaw):
    browser.evaluate(f"(scene.people[0].jaw.fill({jaw}), scene.people[0].head = scene.people[0].jaw.map(() => [0, {yaw}, 0]), draw())")
    return browser.evaluate("""(() => {
        const { width, height } = byId("faces"), data = byId("faces").getContext("2d").getImageData(0, 0, width / 2, height).data;
        let mouth = 0, eyes = 0, sum = 0;
        for (let i = 0; i < data.length; i += 4) {
          if (data[i] === 0x7a && data[i + 1] === 0x1f) mouth++;
          if (data[i] === 0x1c && data[i + 1] === 0x21) { eyes++; sum += (i / 4) % (width / 2); }
        }
        return [mouth, sum / eyes];
      })()""")

  shut, straight = dark(0.0, 0.0)
  wide, right = dark(0.3, 0.3)
  _, left = dark(0.0, -0.3)
  assert wide > 3 * shut > 0 and abs(straight - 320) < 2 and right - straight > 20 and straight - left > 20
  # Where neither is heard the lanes are thin.
  ink = "byId('voices').getContext('2d').getImageData(0, 0, 1280, 140).data.filter((x, i) => i % 4 === 3 && x > 0).length"
  browser.evaluate("draw()")
  loud = browser.evaluate(ink)
  browser.evaluate("(scene.people.forEach((person) => person.loudness.fill(0)), draw())")
  assert browser.evaluate(ink) < loud / 4


def test_what_cannot_be_saved_is_said_and_stays_said(browser, site):
  site.table.write_text("conversation;blood\n")
  browser.key("q")
  browser.key("a")
  browser.evaluate("saving")
  assert f"The label of {NAMES[0]} is not saved: " in text(browser, "message") and "semicolons" in text(browser, "message")
  assert text(browser, "saved") == "" and text(browser, "count") == "0 of 3 labelled"
  browser.key("k")
  until(browser, "place === 1 && scene")
  assert "is not saved" in text(browser, "message")
  browser.key("j")
  site.table.unlink()
  browser.key("s")
  browser.evaluate("saving")
  assert text(browser, "message") == "" and labels(site) == {NAMES[0]: (1, 0, None)}


def test_what_a_screen_reader_reads_and_narrow_windows(browser, site):
  named = {}
  for node in browser._call("Accessibility.getFullAXTree")["nodes"]:
    if not node.get("ignored"):
      named.setdefault(node["role"]["value"], []).append(node["name"]["value"] if "name" in node else "")
  assert [name.split()[0] for name in named["radio"]] == ["Yes", "No", "Cannot"] * 2
  assert {"Are they relatives by blood?", "Are they equals?"} <= set(named["group"])
  assert any(name.startswith("How sure you are") for name in named["slider"]) and "Conversations labelled" in named["progressbar"]
  assert any(name.startswith("Next without") for name in named["button"])
  assert browser.evaluate("byId('confidence').ariaValueText") == "not said"
  browser.resize(320, 640)
  try:
    assert browser.evaluate("document.documentElement.scrollWidth") <= 320
  finally:
    browser._call("Emulation.clearDeviceMetricsOverride")
