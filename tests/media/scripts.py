"""The pages' scripts outside of any page: run by Node, or else within an empty page of Chromium."""

import base64
import html
import json
import pathlib
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

import rsatalker_jax.media
from media.browser import BROWSER, OpenPage

NODE = shutil.which("node")
FOLDER = pathlib.Path(rsatalker_jax.media.__file__).parent

_READ = """
function readInputs(text) {
  return JSON.parse(text, (key, x) => {
    if (!x || typeof x.base64 !== "string") return x;
    const bytes = Uint8Array.from(atob(x.base64), (c) => c.charCodeAt(0));
    return x.type === "bytes" ? bytes : new Float32Array(bytes.buffer);
  });
}
function write(out) {
  const bytes = new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}
"""


def run_scripts(names: list[str], main: str, folder: pathlib.Path, **inputs: Any) -> np.ndarray:
  """What a function of JavaScript returns, a Float32Array, of inputs: arrays (float32), bytes and what JSON has.

  Args:
    names: the scripts, in the order in which they are loaded.
    main: the function, of one object that holds the inputs by name; it may be async.
    folder: an empty one.
  """
  if NODE is None and BROWSER is None:
    pytest.skip("needs Node or Chromium: apt-get install nodejs, or chromium-headless-shell")
  text = json.dumps(inputs, default=_encode)
  script = "\n".join([*((FOLDER / name).read_text() for name in names), _READ])
  folder.mkdir(parents=True, exist_ok=True)
  if NODE:
    (folder / "inputs.json").write_text(text)
    read = 'readInputs(require("fs").readFileSync("inputs.json", "utf8"))'
    tail = f'(async () => console.log(write(await ({main})({read}))))();'
    (folder / "run.js").write_text(f"{script}\n{tail}")
    done = subprocess.run([NODE, "run.js"], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    out = done.stdout
  else:
    page = f'<script id="inputs" type="application/json">{html.escape(text, quote=False)}</script><script>{script}</script>'
    (folder / "page.html").write_text(f'<!DOCTYPE html><meta charset="utf-8">{page}')
    read = 'readInputs(document.getElementById("inputs").textContent)'
    with OpenPage(folder / "page.html", folder / "profile", holds_clock=False) as opened:
      out = opened.evaluate(f"(async () => write(await ({main})({read})))()")
      assert not opened.errors
  return np.frombuffer(base64.b64decode(out), np.float32)


def _encode(x: Any) -> Any:
  if isinstance(x, bytes):
    return {"type": "bytes", "base64": base64.b64encode(x).decode()}
  if isinstance(x, np.ndarray):
    return {"base64": base64.b64encode(np.ascontiguousarray(x, np.float32).tobytes()).decode()}
  return x.item()
