"""The pages in a browser: several participants at once, with mouse and keyboard, from the link to the table."""

import concurrent.futures
import time

import pytest

from media.browser import BROWSER, OpenPage
from rsatalker_jax.errors import InputError
from rsatalker_jax.study import analysis, criteria
from study.world import CONVERSATIONS

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium-headless-shell")

IS_SHOWN = "!document.getElementById('{}').hidden"

def until(page: OpenPage, expression: str) -> None:
  while not page.evaluate(expression):
    time.sleep(0.01)


def text(page: OpenPage, name: str) -> str:
  return page.evaluate(f"document.getElementById('{name}').innerText")


def click(page: OpenPage, selector: str) -> None:
  page.evaluate(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
  box = page.evaluate(f"""(() => {{
      const {{ x, y, width, height }} = document.querySelector("{selector}").getBoundingClientRect();
      return [x + width / 2, y + height / 2];
    }})()""")
  for kind in ("mousePressed", "mouseReleased"):
    page.mouse(kind, *box, button="left", clickCount=1)


def agree(page: OpenPage) -> None:
  until(page, IS_SHOWN.format("consent"))
  click(page, "#agree")
  click(page, "#consent button")
  until(page, IS_SHOWN.format("rating"))


def watch(page: OpenPage) -> None:
  """To the end."""
  page.evaluate("(document.getElementById('video').muted = true, document.getElementById('video').play())")
  until(page, "draft.watched")


def rate(page: OpenPage, values: list[int], comment: str = "") -> None:
  """Moves all sliders, and writes."""
  page.evaluate(f"""{values}.forEach((value, place) => {{
      const slider = document.querySelectorAll("#dimensions input")[place];
      slider.value = value;
      slider.dispatchEvent(new Event("input", {{ bubbles: true }}));
    }})""")
  page.evaluate(f"(byId('comment').value = {comment!r}, byId('comment').dispatchEvent(new Event('input')))")


def save(page: OpenPage) -> None:
  """And waits for what is next."""
  page.evaluate("window.before = state")
  click(page, "#answers button")
  until(page, "state !== window.before")


def link(site, number: int) -> str:
  return f"{site.origin}/s/{site.tokens[number - 1]}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  with OpenPage("about:blank", tmp_path_factory.mktemp("browser") / "profile", holds_clock=False) as opened:
    yield opened


@pytest.fixture
def page(site, browser):
  """Of participant 1."""
  browser.errors.clear()
  browser.open(link(site, 1))
  yield browser
  browser.open("about:blank")  # Nothing asks a server that has gone.


def test_several_participants_at_once_from_the_link_to_the_table(site, materials, tmp_path):
  """Each in a browser of their own; what they give is what the table has."""
  values = lambda number, place: [(17 * number + 5 * place + 11 * i) % 101 for i in range(9)]

  def participate(number: int) -> list[str]:
    with OpenPage(link(site, number), tmp_path / f"profile{number}", holds_clock=False) as page:
      agree(page)
      for place in range(6):
        assert f"{place} of 6 rated" in text(page, "count")
        watch(page)
        rate(page, values(number, place), f"{number}/{place}")
        save(page)
      until(page, IS_SHOWN.format("done"))
      assert f"Your participant number was {number}." in text(page, "done")
      return page.errors

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    assert list(pool.map(participate, (1, 2, 3))) == [[], [], []]
  answers = site.read_answers()
  assert len(answers) == 18
  for row in answers:
    number, place = row["participant"], row["position"]
    assert [row[key] for key in criteria.KEYS] == values(number, place) and row["comment"] == f"{number}/{place}"
  markdown = analysis.write_analysis(tmp_path, answers, materials.identity(), "Faces")
  assert f"3 participants, {len(CONVERSATIONS)} conversations each" in markdown and "left out" not in markdown


def test_all_by_keyboard(page, site):
  """Tab leads through everything in order; what has the focus is outlined; arrows, Home, End and Enter move sliders."""
  until(page, IS_SHOWN.format("consent"))
  focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.type || document.activeElement.tagName")
  assert focused() == "H1"  # Where a screen reader begins.
  page.key("Tab")
  assert focused() == "agree"
  page.key("Tab")
  page.key("Enter")
  until(page, "document.getElementById('consent-message').innerText")
  assert "tick the box" in text(page, "consent-message") and focused() == "agree"
  assert site.state()["consented"] is False
  page.key(" ")
  page.key("Tab")
  page.key("Enter")
  until(page, IS_SHOWN.format("rating"))
  assert focused() == "label"
  page.key("Tab")
  assert focused() == "video"
  page.key(" ")  # Plays.
  until(page, "draft.watched")
  expected = []
  for place, key in enumerate(criteria.KEYS):
    while focused() != key:
      page.key("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    moves, value = [(["ArrowRight"], 51), (["Enter"], 50), (["End", "ArrowLeft"], 99), (["Home"], 0), ([" "], 50)][place % 5]
    for move in moves:
      page.key(move)
    expected.append(value)
  while focused() != "submit":
    page.key("Tab")
  page.key("Enter")
  until(page, "state.answered === 1")
  assert [site.read_answers()[0][key] for key in criteria.KEYS] == expected
  assert focused() == "label" and page.errors == []


def test_what_a_screen_reader_reads(page):
  agree(page)
  tree = page._call("Accessibility.getFullAXTree")["nodes"]
  named = {}
  for node in tree:
    if not node.get("ignored"):
      named.setdefault(node["role"]["value"], []).append(node["name"]["value"] if "name" in node else "")
  questions = [criterion.question for criterion in criteria.CRITERIA]
  # The video's own controls join the tree when it has loaded, before or after: ours are looked for by their names.
  assert [name for name in named["slider"] if name in questions] == questions
  dimensions = [dimension.name.upper() for dimension in criteria.DIMENSIONS]
  assert [name for name in named["group"] if name in dimensions] == dimensions
  assert "Save and go on" in named["button"] and "Videos rated" in named["progressbar"], named.keys()
  assert any(name.startswith("Anything else") for name in named["textbox"]) and "Video A" in named["heading"]
  values = page.evaluate("[...document.querySelectorAll('#dimensions input')].map((x) => x.ariaValueText)")
  assert values == ["not rated yet"] * 9
  rate(page, [50] * 9)
  assert page.evaluate("[...document.querySelectorAll('#dimensions input')].map((x) => x.ariaValueText)") == [None] * 9


def test_every_slider_must_be_moved_and_the_video_watched(page, site):
  agree(page)
  rate(page, [10] * 7)
  click(page, "#answers button")
  assert "watch the video to its end" in text(page, "message")
  watch(page)
  assert text(page, "message") == ""
  click(page, "#answers button")
  assert text(page, "message").startswith("2 statements have no rating yet")
  assert page.evaluate("document.activeElement.id") == criteria.KEYS[7]
  assert page.evaluate("document.querySelectorAll('.missing').length") == 2
  click(page, f"#{criteria.KEYS[7]}")  # In the very middle, where the thumb already is.
  click(page, "#answers button")
  assert text(page, "message").startswith("One statement has no rating yet")
  assert site.read_answers() == []
  click(page, f"#{criteria.KEYS[8]}")
  save(page)
  assert [site.read_answers()[0][key] for key in criteria.KEYS] == [10] * 7 + [50] * 2


def test_the_link_leads_back_to_where_one_was(page, site):
  agree(page)
  watch(page)
  rate(page, [20] * 9)
  save(page)
  rate(page, [30] * 4, "half done")
  page.open(link(site, 1))
  until(page, IS_SHOWN.format("rating"))
  assert "1 of 6 rated" in text(page, "count") and "Video 2 of 3" in text(page, "place")
  values = page.evaluate("[...document.querySelectorAll('.scale output')].map((x) => x.innerText)")
  assert values == ["30"] * 4 + ["–"] * 5
  assert page.evaluate("document.getElementById('comment').value") == "half done"
  assert site.state()["answered"] == 1


def test_text_is_text(site, materials, page, tmp_path):
  """Neither what participants write nor what the study says becomes markup or script."""
  attack = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>"
  agree(page)
  if "breakfast" not in text(page, "told"):
    for _ in range(3):
      watch(page)
      rate(page, [1] * 9)
      save(page)
  assert "At <b>breakfast</b>" in text(page, "told") and page.evaluate("document.querySelectorAll('#told b').length") == 0
  watch(page)
  rate(page, [1] * 9, attack)
  page.open(link(site, 1))  # The draft comes back.
  until(page, IS_SHOWN.format("rating"))
  assert page.evaluate("document.getElementById('comment').value") == attack
  save(page)
  assert site.read_answers()[-1]["comment"] == attack
  # What an error says of what was sent, too.
  page.evaluate(f"(byId('message').textContent = {attack!r}, 0)")
  assert page.evaluate("[window.pwned ?? 0, document.images.length]") == [0, 0]


def test_script_in_the_page_would_not_run(page):
  """The policy holds even where markup got in."""
  until(page, IS_SHOWN.format("consent"))
  markup = '<img src=x onerror="window.pwned = 1"><b onclick="window.pwned = 1">x</b>'
  page.evaluate(f"(document.body.insertAdjacentHTML('beforeend', {markup!r}), 0)")
  page.evaluate("document.querySelector('body > b').click()")
  page.evaluate("(document.body.append(make('script', 'window.pwned = 1')), new Promise((done) => setTimeout(done, 50)))")
  assert page.evaluate("window.pwned ?? 0") == 0
  assert any("Content Security Policy" in error for error in page.errors)


def test_while_the_server_cannot_store_the_page_keeps_the_answer(page, site, monkeypatch):
  calls, record = [], site.store.record_answer

  def fail_twice(number, position, answer):
    calls.append((position, answer))
    if len(calls) < 3:
      raise InputError("study.sqlite", "", "database or disk is full", "a database that can be written")
    record(number, position, answer)

  monkeypatch.setattr(site.store, "record_answer", fail_twice)
  agree(page)
  watch(page)
  rate(page, [70] * 9, "keep me")
  # The page is held between two tries.
  page.evaluate("(window.waiting = [], window.setTimeout = (act) => waiting.push(act), window.before = state)")
  click(page, "#answers button")
  until(page, "waiting.length")
  assert "Not saved yet" in text(page, "message") and site.read_answers() == []
  assert page.evaluate("[...document.querySelectorAll('#answers input, #answers textarea')].every((x) => x.disabled)")
  page.evaluate("(waiting.shift()(), 0)")
  until(page, "waiting.length")
  page.open(link(site, 1))  # Even closed and opened again it goes on sending, the same.
  until(page, "state !== null && state.answered === 1")
  assert len(calls) == 3 and calls[0] == calls[1] == calls[2]
  assert [row["comment"] for row in site.read_answers()] == ["keep me"]


def test_a_video_rated_in_another_tab_is_said(page, site, scores):
  agree(page)
  watch(page)
  rate(page, [70] * 9)
  other = {"video": site.state()["trial"]["id"], "client": "other-tab", "scores": scores, "comment": ""}
  assert site.post(1, "answers", other)[0] == 200
  save(page)
  until(page, "document.getElementById('message').innerText")
  assert "rated elsewhere" in text(page, "message") and "1 of 6 rated" in text(page, "count")
  assert [site.read_answers()[0][key] for key in criteria.KEYS] == list(scores.values())


def test_a_video_that_cannot_be_played_is_said(page, monkeypatch):
  monkeypatch.setattr("rsatalker_jax.study.materials.Video.is_unchanged", lambda self: False)
  agree(page)
  until(page, "document.getElementById('video-message').innerText")
  assert text(page, "video-message").startswith("This video does not play.")
  assert text(page, "video-message").endswith("please tell Ann.")


@pytest.mark.parametrize("width, height", [(1280, 800), (800, 600), (390, 844), (320, 568)])
def test_pages_fit_the_screen(page, request, width, height):
  """Nothing is cut off or scrolls sideways, and what is pressed is large enough for a finger."""
  request.addfinalizer(lambda: page._call("Emulation.clearDeviceMetricsOverride"))
  page._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
  overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
  until(page, IS_SHOWN.format("consent"))
  assert page.evaluate(overflow) == 0
  agree(page)
  assert page.evaluate(overflow) == 0
  pressed = "[...document.querySelectorAll('#answers input, #answers button')]"
  heights = page.evaluate(f"{pressed}.map((x) => x.getBoundingClientRect().height)")
  assert len(heights) == 10 and min(heights) >= 24
  uncovered = page.evaluate("""[...document.querySelectorAll("#answers input, #answers button")].map((element) => {
      element.scrollIntoView({ block: "center" });
      const { x, y, width, height } = element.getBoundingClientRect();
      return document.elementFromPoint(x + width / 2, y + height / 2) === element;
    })""")
  assert all(uncovered)
  slider, video = page.evaluate("['interaction_dynamics', 'video'].map((x) => byId(x).getBoundingClientRect().width)")
  assert slider > 200 and video > 250


def test_without_motion_nothing_moves(page):
  until(page, IS_SHOWN.format("consent"))
  duration = "getComputedStyle(document.querySelector('#consent button')).transitionDuration"
  page._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
  assert page.evaluate(duration) == "0s"
  page._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "no-preference"}])
  assert page.evaluate(duration) != "0s"
