"""What the server tells and serves of A's camera: whether it can be used, the tracker's files, and the map from its outputs to motion.

The page alone looks at pictures (webcam.js, tracker_worker.js); what it sends is motion (protocol.py).
"""

import dataclasses
import importlib.resources
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rsatalker_jax.errors import InputError
from rsatalker_jax.live.tracker import COMMAND, load_tracker
from rsatalker_jax.web.serving import CONTENT_SECURITY_POLICY, web

MAP = "webcam_map.json"  # Beside this module; tools/fit_webcam.py makes it.
_WORKER = "tracker_worker.js"
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".task": "application/octet-stream"}
# The tracker is compiled WebAssembly: its thread alone, which has this answer's policy and not the page's, may run some.
_WITH_WASM = CONTENT_SECURITY_POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'")


@dataclasses.dataclass(frozen=True)
class Camera:
  """Attributes:
    about: for the page, as JSON: "map", or "trouble", a line that says why there is none.
    files: the tracker's, by name.
  """

  about: Mapping[str, Any]
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  def add_to(self, app: web.Application) -> None:
    """Serves the files below /tracker/."""
    if not self.files:
      return
    contents = {_WORKER: importlib.resources.files(__package__).joinpath(_WORKER).read_bytes(), **self.files}

    async def get_file(request: web.Request) -> web.Response:
      name = request.match_info["name"]
      if name not in contents:
        raise web.HTTPNotFound(reason="no such file")
      headers = {"Content-Security-Policy": _WITH_WASM} if name == _WORKER else {}
      return web.Response(body=contents[name], content_type=_TYPES[pathlib.PurePath(name).suffix], headers=headers)

    app.router.add_get("/tracker/{name}", get_file)


NO_CAMERA = Camera({"trouble": "this program has no tracker"})


def load_map() -> dict[str, Any]:
  """What makes motion of the tracker's outputs, as FaceMap of webcam.js has it, with a record of how it was made."""
  return json.loads(importlib.resources.files(__package__).joinpath(MAP).read_text(encoding="utf-8"))


def prepare_camera(folder: str | os.PathLike, basis: str | None) -> Camera:
  """The camera of a run, or why it has none.

  Args:
    folder: where the tracker's files are.
    basis: of the run's motion.
  """
  face_map = load_map()
  if basis != face_map["basis"]:
    found = "a basis that its head does not tell" if basis is None else f"the basis {basis}"
    return Camera({"trouble": f"what a camera sees is mapped to the basis {face_map['basis']}, and this run is in {found}"})
  if not pathlib.Path(folder).is_dir():
    return Camera({"trouble": f"that needs `{COMMAND}`, once"})
  try:
    files = load_tracker(folder)
  except InputError as error:
    return Camera({"trouble": f"{error}: `{COMMAND}` makes it good"})
  return Camera({"map": {name: face_map[name] for name in ("names", "weights", "bias", "least", "most")}}, files)
