"""The server over real sockets: what it gives, to whom, and what it refuses."""

import json
import logging

import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import criteria, server
from rsatalker_jax.web import serving
from study.world import METHODS, running


def answer_to(site, number, scores, **edits):
  return {"video": site.state(number)["trial"]["id"], "client": f"client-{number}", "scores": scores, "comment": ""} | edits


def consented(site, *numbers):
  for number in numbers:
    assert site.post(number, "consent", {}) == (200, {"stored": True})


def test_from_the_link_to_the_end(site, scores, materials, answers_store):
  assert site.request("GET", f"/s/{site.tokens[0]}")[0] == 200
  state = site.state()
  assert (state["consented"], state["trial"], state["title"], state["number"], state["total"]) == (False, None, "Faces", 1, 6)
  assert "6 videos" in state["consent"][0] and "nine" in state["consent"][0]
  consented(site, 1)
  for position in range(6):
    state = site.state()
    trial = state["trial"]
    conversation, video = divmod(position, 3)
    assert (state["answered"], trial["conversation"], trial["video"]) == (position, conversation + 1, video + 1)
    assert (trial["conversations"], trial["videos"], trial["label"]) == (2, 3, f"Video {'ABC'[video]}")
    assert [c["key"] for d in state["dimensions"] for c in d["criteria"]] == list(criteria.KEYS)
    edited = scores | {"lip_sync": position}
    assert site.post(1, "answers", answer_to(site, 1, edited, comment=f"c{position}")) == (200, {"stored": True})
  state = site.state()
  assert (state["answered"], state["trial"]) == (6, None)
  stored = site.read_answers()
  orders = [(trial.conversation, trial.method) for trial in _participant(site, 1).trials]
  assert [(row["conversation"], row["method"]) for row in stored] == orders
  assert [(row["lip_sync"], row["comment"]) for row in stored] == [(i, f"c{i}") for i in range(6)]
  assert all({key: row[key] for key in criteria.KEYS[1:]} == {key: scores[key] for key in criteria.KEYS[1:]} for row in stored)


def _participant(site, number):
  from rsatalker_jax.study.store import open_store

  other = open_store(site.folder)
  try:
    return other.participant(site.tokens[number - 1])
  finally:
    other.close()


def test_the_told_relation_belongs_to_its_conversation(site, scores):
  consented(site, 1)
  told = {}
  for position in range(6):
    trial = site.state()["trial"]
    told[position // 3] = (trial["title"], trial["relation"], trial["role"])
    site.post(1, "answers", answer_to(site, 1, scores))
  names = [trial.conversation for trial in _participant(site, 1).trials[::3]]
  assert dict(zip(names, told.values())) == {
      "breakfast": ("At <b>breakfast</b>", "A is B's mother.", "B listens."), "office": ("", "", "")
  }


def test_nothing_tells_the_method(site, scores):
  """Neither addresses nor what comes back name a method; two participants' names of one video differ."""
  consented(site, 1, 2, 3)
  ids = set()
  for number in (1, 2, 3):
    for _ in range(6):
      trial = site.state(number)["trial"]
      path = f"/s/{site.tokens[number - 1]}/videos/{trial['id']}"
      status, headers, _ = site.request("GET", path)
      assert status == 200
      seen = json.dumps([site.state(number), headers, path]).lower()
      assert not any(method in seen for method in METHODS) and ".mp4" not in seen
      ids.add(trial["id"])
      site.post(number, "answers", answer_to(site, number, scores))
  assert len(ids) == 18


def test_a_videos_address_cannot_be_computed_from_the_link(site, materials, monkeypatch):
  consented(site, 1)
  before = site.state()["trial"]["id"]
  monkeypatch.setattr(site.store, "secret", b"another study's")
  assert site.state()["trial"]["id"] != before


def test_a_link_that_nobody_has_is_told_so(site):
  status, headers, body = site.request("GET", "/s/nobody")
  assert status == 404 and headers["Content-Type"].startswith("text/html") and b"This link is not known here" in body
  assert site.request("GET", "/s/nobody/state")[0] == 404
  assert b"personal link" in site.request("GET", "/")[2]


def test_each_id_is_its_video_and_ranges_are_served(site, materials, scores):
  consented(site, 1)
  for trial in _participant(site, 1).trials:
    path = f"/s/{site.tokens[0]}/videos/{site.state()['trial']['id']}"
    content = materials.conversations[trial.conversation].videos[trial.method].path.read_bytes()
    status, headers, body = site.request("GET", path)
    assert (status, body, headers["Content-Type"]) == (200, content, "video/mp4")
    status, headers, body = site.request("GET", path, Range="bytes=10-29")
    assert (status, body, headers["Content-Range"]) == (206, content[10:30], f"bytes 10-29/{len(content)}")
    assert site.request("GET", path, Range="bytes=-5")[2] == content[-5:]
    assert site.request("GET", path, Range=f"bytes={len(content)}-")[0] == 416
    site.post(1, "answers", answer_to(site, 1, scores))


def test_videos_are_for_participants_who_agreed(site):
  consented(site, 1, 2)
  mine = site.state(1)["trial"]["id"]
  for token in (site.tokens[1], site.tokens[2], "nobody"):
    assert site.request("GET", f"/s/{token}/videos/{mine}")[0] in (403, 404)
  assert site.request("GET", f"/s/{site.tokens[2]}/videos/x")[0] == 403  # Has not agreed.


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd", "/assets/../server.py", "/assets/..%2fserver.py", "/assets/%2e%2e/server.py", "/assets/server.py",
        "/assets/study.html", "/assets//etc/passwd", "/s/TOKEN/videos/..%2f..%2fstudy.json", "/s/TOKEN/videos/../../study.json",
        "/s/TOKEN/videos/breakfast%2fours.mp4", "/s/TOKEN/videos/%2fetc%2fpasswd", "/s/TOKEN/videos/ours", "/s/TOKEN/videos/",
        "/s/TOKEN/../state", "/s/TOKEN/study.sqlite", "/study.sqlite", "/s/", "/s/nobody", "/s/nobody/state", "/s/%00", "/s/TOKEN%00",
        "/s/..%2f..%2fstudy.sqlite/state", "/s/' OR 1=1 --/state".replace(" ", "%20"),
    ],
)
def test_no_path_leads_elsewhere(site, path):
  consented(site, 1)
  status, _, body = site.request("GET", path.replace("TOKEN", site.tokens[0]))
  assert status in (400, 404) and b"root:" not in body and b"import" not in body and b"SQLite" not in body


def test_every_answer_carries_the_headers(site):
  consented(site, 1)
  own = f"/s/{site.tokens[0]}"
  paths = ["/", "/nothing", "/assets/study.js", "/assets/study.css", "/assets/page.css", "/s/nobody", own, f"{own}/state"]
  paths.append(f"{own}/videos/{site.state()['trial']['id']}")
  for path in paths:
    _, headers, _ = site.request("GET", path)
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["media-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer", path
    assert headers["Server"] == "study"
  for path in paths[5:8]:
    assert site.request("GET", path)[1]["Cache-Control"] == "no-store"


def test_the_page_has_no_script_or_style_of_its_own(site):
  body = site.request("GET", f"/s/{site.tokens[0]}")[2].decode()
  assert body.count("<script") == body.count("<script src=") == 2 and "<style" not in body and " style=" not in body and " onclick" not in body
  assert "http:" not in body and "https:" not in body and "//" not in body


def headers_of(site, **edits):
  given = {"Origin": site.origin, "Content_Type": "application/json"} | edits
  return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize(
    "edits, status",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),  # Another port is another site.
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": None}, 415),
    ],
)
def test_what_another_site_could_send_is_refused(site, scores, edits, status):
  consented(site, 1)
  body = json.dumps(answer_to(site, 1, scores)).encode()
  for path in ("answers", "consent"):
    given, _, answer = site.request("POST", f"/s/{site.tokens[0]}/{path}", body, **headers_of(site, **edits))
    assert given == status and list(json.loads(answer)) == ["error"]
  assert site.read_answers() == []


def test_a_foreign_name_of_this_machine_gets_nothing(site):
  for path in ("/", f"/s/{site.tokens[0]}", f"/s/{site.tokens[0]}/state"):
    status, _, body = site.request("GET", path, Host=f"evil.example:{site.port}")
    assert status == 421 and b"Faces" not in body


def test_large_bodies_are_refused(site, scores):
  consented(site, 1)
  body = json.dumps(answer_to(site, 1, scores, comment="x" * 17_000)).encode()
  assert site.post(1, "answers", body)[0] == 413
  chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
  headers = headers_of(site, Transfer_Encoding="chunked")
  assert site.request("POST", f"/s/{site.tokens[0]}/answers", chunked, **headers)[0] == 413
  assert site.read_answers() == []


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "JSON"), (b"{", "JSON"), (b"\xff", "JSON"), (b"[" * 10_000, "JSON"), (b"[]", "the video"), (b"{}", "the video"), (b"7", "the video"),
    ],
)
def test_bodies_that_are_no_answer(site, body, message):
  consented(site, 1)
  status, answer = site.post(1, "answers", body)
  assert status == 400 and message in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize("score", ["101", "-1", "1e2", "NaN", "Infinity", "true", "null", '"50"'])
def test_a_value_out_of_range_is_refused_and_nothing_stored(site, scores, score):
  consented(site, 1)
  text = json.dumps(answer_to(site, 1, scores | {"visual_realism": "HERE"})).replace('"HERE"', score)
  status, answer = site.post(1, "answers", text.encode())
  assert status == 400 and "scores.visual_realism" in answer["error"] and "a whole number from 0 to 100" in answer["error"]
  assert site.read_answers() == [] and site.state()["answered"] == 0


def test_twice_is_once_and_another_is_refused(site, scores):
  consented(site, 1, 2)
  answer = answer_to(site, 1, scores)
  assert site.post(1, "answers", answer)[0] == 200
  stored = site.read_answers()
  assert site.post(1, "answers", answer) == (200, {"stored": True})
  status, refusal = site.post(1, "answers", answer | {"scores": scores | {"lip_sync": 50}})
  assert status == 409 and "found an answer already" in refusal["error"]
  assert site.post(1, "answers", answer | {"client": "client-9"})[0] == 409
  assert site.read_answers() == stored
  # Another participant's video, or one that nobody has.
  assert site.post(2, "answers", answer)[0] == 404
  assert site.post(1, "answers", answer | {"video": "0" * 32})[0] == 404
  assert site.post(1, "answers", answer | {"video": None})[0] == 404


def test_no_answer_before_consent(site, scores):
  consented(site, 1)
  answer = answer_to(site, 1, scores)
  ids = server.StudyServer(None, site.store, [])._video_id(_participant(site, 2), 0)
  assert site.post(2, "answers", answer | {"video": ids})[0] == 409
  assert site.read_answers() == []


def test_what_cannot_be_stored_is_not_acknowledged(site, scores, monkeypatch):
  consented(site, 1)
  answer = answer_to(site, 1, scores)

  def full(*_):
    raise InputError("study.sqlite", "", "database or disk is full", "a database that can be written")

  with monkeypatch.context() as patch:
    patch.setattr(site.store, "record_answer", full)
    status, refusal = site.post(1, "answers", answer)
  assert status == 503 and "disk is full" in refusal["error"]
  assert site.post(1, "answers", answer)[0] == 200 and len(site.read_answers()) == 1


def test_a_video_that_has_changed_is_not_shown(site, materials, monkeypatch):
  consented(site, 1)
  path = f"/s/{site.tokens[0]}/videos/{site.state()['trial']['id']}"
  monkeypatch.setattr("rsatalker_jax.study.materials.Video.is_unchanged", lambda self: False)
  status, _, body = site.request("GET", path)
  assert status == 503 and "not the one this study began with" in json.loads(body)["error"]


def test_nobodys_address_is_stored(site, scores, capfd, caplog):
  caplog.set_level(logging.INFO)  # At which aiohttp's own log of requests begins.
  consented(site, 1)
  site.post(1, "answers", answer_to(site, 1, scores))
  for path in site.folder.iterdir():
    assert b"127.0.0.1" not in path.read_bytes()
  assert capfd.readouterr() == ("", "") and "aiohttp.access" not in {record.name for record in caplog.records}


def test_a_server_that_ends_and_begins_again_goes_on(materials, answers_store, tmp_path, scores):
  with running(materials, answers_store, tmp_path / "study") as site:
    consented(site, 1)
    site.post(1, "answers", answer_to(site, 1, scores))
    before = site.state()
  with running(materials, answers_store, tmp_path / "study") as site:
    assert site.state() == before and before["answered"] == 1


@pytest.mark.parametrize(
    "host, port, url, base, origins",
    [
        ("127.0.0.1", 81, None, "http://127.0.0.1:81", {"http://127.0.0.1:81", "http://localhost:81", "http://[::1]:81"}),
        ("::1", 80, None, "http://[::1]:80", {"http://127.0.0.1", "http://localhost", "http://[::1]"}),
        ("0.0.0.0", 80, "http://Lab:8700/", "http://Lab:8700", {"http://lab:8700"}),
        ("0.0.0.0", 80, "https://lab.example:443/faces/", "https://lab.example:443/faces", {"https://lab.example"}),
        ("localhost", 81, "https://a.example", "https://a.example",
         {"https://a.example", "http://127.0.0.1:81", "http://localhost:81", "http://[::1]:81"}),
    ],
)
def test_under_which_addresses_it_is_reached(host, port, url, base, origins):
  found = serving.find_origins(host, port, url)
  assert found[0] == base and set(found[1]) == origins


@pytest.mark.parametrize(
    "host, url, message",
    [
        ("0.0.0.0", None, "--url: found none, expected with --host=0.0.0.0, the address"),
        ("192.168.1.7", None, "--url: found none"),
        ("myhost", None, "--url: found none"),
        ("127.0.0.1", "study.example.org", "--url: found study.example.org, expected an address such as"),
        ("127.0.0.1", "ftp://x", "--url: found ftp://x"),
        ("127.0.0.1", "http://a@b", "--url"),
        ("127.0.0.1", "http://[::1", "--url"),
        ("127.0.0.1", "http://b:99999", "--url"),
        ("127.0.0.1", "http://b?x=1", "--url"),
    ],
)
def test_addresses_that_are_none(host, url, message):
  with pytest.raises(InputError, match=message):
    serving.find_origins(host, 8700, url)


def test_a_port_that_is_taken_is_one_line(site):
  with pytest.raises(InputError, match=f"--port: found 127.0.0.1, port {site.port}: Address already in use"):
    serving.open_listener("127.0.0.1", site.port)


def test_letters():
  assert [server._letters(i) for i in (0, 1, 25, 26, 27, 701, 702)] == ["A", "B", "Z", "AA", "AB", "ZZ", "AAA"]
