"""File ids of Seamless Interaction, V<vendor>_S<session>_I<interaction>_P<person>, and what a run passes over."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_ID = re.compile(r"V(?P<vendor>\d{1,9})_S(?P<session>\d{1,9})_I(?P<interaction>\d{1,15})_P(?P<person>\d{1,9})(?P<rest>[\w.-]{0,80})", re.ASCII)
_SUFFIXES = (".npz", ".npy", ".pkl", ".wav", ".mp4", ".jsonl", ".json")
# What a subset is chosen by: a vendor, or one of its sessions.
_GROUP = re.compile(r"V(?P<vendor>\d{1,9})(?:_S(?P<session>\d{1,9}))?", re.ASCII)


class Session(NamedTuple):
  """A vendor's session: what relationships.csv knows people by. Numbers, since tables write them with and without zeros."""

  vendor: int
  number: int


@dataclasses.dataclass(frozen=True)
class FileId:
  """One person's recording of one interaction.

  Attributes:
    interaction: "V00_S0809_I00000582", as it is written in names.
    person: "P0947".
    rest: what follows in the name of a piece of a recording; "" for a whole one.
  """

  interaction: str
  person: str
  rest: str = ""

  @property
  def name(self) -> str:
    """Without what follows in the name of a piece."""
    return f"{self.interaction}_{self.person}"

  @property
  def session(self) -> Session:
    vendor, session, _ = self.interaction.split("_")
    return Session(int(vendor[1:]), int(session[1:]))

  @property
  def prompt(self) -> int:
    """The interaction's number: interactions.csv's prompt_hash. Several sessions have the same."""
    return int(self.interaction.rpartition("I")[2])

  @property
  def speaker(self) -> str:
    """The person in all sessions: people's numbers are a vendor's."""
    return f"{self.interaction.partition('_')[0]}_{self.person}"


def parse_file_id(path: str) -> FileId | None:
  """The id in a file's name, whatever folders stand before it; None where there is none."""
  name = pathlib.PurePosixPath(path).name
  suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
  match = _ID.fullmatch(name.removesuffix(suffix))
  if match is None or match["rest"][:1].isalnum():
    return None
  interaction, _, person = match[0].removesuffix(match["rest"]).rpartition("_")
  return FileId(interaction, person, match["rest"])


def parse_group(text: str) -> Session | int | None:
  """A session ("V00_S0809") or a vendor ("V00"); None where the text is neither."""
  match = _GROUP.fullmatch(text.strip())
  if match is None:
    return None
  return int(match["vendor"]) if match["session"] is None else Session(int(match["vendor"]), int(match["session"]))


class Skip(NamedTuple):
  """Attributes:
    name: what is passed over.
    kind: why, in the words of a group.
    detail: why, exactly; may be empty.
  """

  name: str
  kind: str
  detail: str = ""


def describe_skips(skips: Iterable[Skip], examples: int = 3) -> Iterator[str]:
  """A line for each kind: how many, and some of them."""
  kinds: dict[str, list[Skip]] = collections.defaultdict(list)
  for skip in skips:
    kinds[skip.kind].append(skip)
  for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1])):
    some = "; ".join(f"{skip.name}: {skip.detail}" if skip.detail else skip.name for skip in members[:examples])
    yield f"{len(members)} × {kind}: {some}{'; ...' if len(members) > examples else ''}"
