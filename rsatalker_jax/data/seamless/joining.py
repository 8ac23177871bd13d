"""UniLS-Talk's pairs joined with the official tables, by vendor and session."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.audio import SILENCE_PEAK
from rsatalker_jax.data.dualtalk import SPLITS, fit_voice, held_out_names
from rsatalker_jax.data.relations import describe_disagreements, merge_labels, read_labels
from rsatalker_jax.data.seamless.names import Session, Skip, describe_skips, parse_group
from rsatalker_jax.data.seamless.recordings import Recordings
from rsatalker_jax.data.seamless.tables import Tables, read_mapping, read_tables
from rsatalker_jax.data.seamless.talk import Pair, Recording, Talk, check_lengths, find_talk, read_pairs
from rsatalker_jax.errors import InputError
from rsatalker_jax.social.relation import UNKNOWN, format_relation, parse_relation
from rsatalker_jax.types import SAMPLES_PER_FRAME

# What conversations are, for reports.
POSE_NOTE = "the head's pose has zero mean over each clip, as UniLS-Talk has it: where a face points on average is not known"
DROPPED_NOTE = "of UniLS-Talk's 100 expression coefficients the first 50 are kept; eyes are not; the jaw turns about one axis"


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which conversations; by default all.

  Attributes:
    groups: vendors ("V00") and sessions ("V00_S0809"); none: all.
    count: of each split the first so many by name; 0: all.
  """

  groups: Sequence[str] = ()
  count: int = 0

  def chooses(self, session: Session) -> bool:
    """Whether a session is of one of the groups.

    Raises:
      InputError: a group is neither a vendor nor a session.
    """
    return not self.groups or session in self._parsed or session.vendor in self._parsed

  @property
  def _parsed(self) -> list[Session | int]:
    groups = []
    for text in self.groups:
      if (group := parse_group(text)) is None:
        raise InputError("subset", "", repr(text), "a vendor, V00, or a session, V00_S0809")
      groups.append(group)
    return groups


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
  """A conversation, and what is known of it.

  Attributes:
    pair: names, split and keys; its name is the conversation's.
    split: train, val, test or ood; val may be held out of the pair's train.
    frames: what both voices and motions cover, by their headers.
    lost: frames that the longest of them has beyond those.
    relation: [blood, equal]; -1 for unknown.
    detail: relationships.csv's word; empty where the session is not there.
    label: improvised or naturalistic; empty where filelist.csv does not say.
    official_split: filelist.csv's, as one of ours; empty as well.
    prompt: ipc_a, ipc_b and interaction_type of interactions.csv.
  """

  pair: Pair
  split: str
  frames: int
  lost: int
  relation: Int[np.ndarray, "2"]
  detail: str = ""
  label: str = ""
  official_split: str = ""
  prompt: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    return self.pair.name


@dataclasses.dataclass
class Join:
  """All conversations that can be served.

  Attributes:
    talk: where voices and motions are.
    recordings: the official files; None without their folder.
    conversations: by name.
    skipped: what is passed over, with reasons.
    notes: lines of what is missing or other than expected, and stops nothing.
    not_chosen: how many conversations the selection leaves out.
  """

  talk: Talk
  recordings: Recordings | None
  conversations: list[Joined]
  skipped: list[Skip]
  notes: list[str]
  not_chosen: int

  def read(self, joined: Joined) -> tuple[Recording, Recording]:
    """Both recordings, cut to the frames that both have, with voices.

    Raises:
      InputError: one is damaged, or neither person makes a sound.
    """
    recordings, peak = [], 0.0
    for key, file_id in zip(joined.pair.keys, joined.pair.ids):
      recording = self.talk.read(key)
      voice = recording.voice
      if voice is None and self.recordings is not None:  # As it was when lengths were compared.
        voice = self.recordings.read_voice(file_id)
      if voice is None:
        raise InputError(file_id.name, "audio", "no such key, and no official wav any more", "a voice")
      frames = joined.frames
      voice = fit_voice(voice, frames * SAMPLES_PER_FRAME)
      peak = max(peak, float(np.abs(voice).max()))
      recordings.append(Recording(recording.motion[:frames], recording.expression[:frames], recording.eyes[:frames], voice))
    if peak < SILENCE_PEAK:
      raise InputError(joined.name, "peak", "silence in both voices", "at least one person who speaks")
    return recordings[0], recordings[1]


def join_conversations(
    talk: str | os.PathLike,
    seamless: str | os.PathLike | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    selection: Selection = Selection(),
    mapping: str | os.PathLike | None = None,
    relations: str | os.PathLike | None = None,
    default_relation: str | None = None,
    find_recordings: bool = False,
    progress: Callable[[Sequence[Pair]], Iterable[Pair]] = lambda pairs: pairs,
) -> Join:
  """Joins pairs with relations, by vendor and session.

  Everything that cannot be served is passed over and named; only what leaves nothing to serve, or is a mistake of the caller's,
  ends in an error. A pair's two recordings are looked at by their headers: they are there, plain arrays of the right shapes,
  and of one length.

  Args:
    talk: UniLS-Talk's folder.
    seamless: the folder of the official data set, its tables and, where there are any, files and shards; None: relations are
      unknown.
    splits: which of train, val, test and ood. Where UniLS-Talk has no val, sessions are held out of train for it.
    selection: which of their conversations.
    mapping: a csv with the user's own reading of relationship_detail; see `tables.read_mapping`.
    relations: a relations table whose conversations have its relation instead.
    default_relation: of conversations whose session is in no table; unknown if None.
    find_recordings: whether the official files are looked for now, and not only when a voice is missing; and recordings that
      are in no pair are counted.
    progress: wraps the sequence of pairs that are looked at.

  Raises:
    InputError: no UniLS-Talk, other tables, a wrong selection, or no conversation is left.
  """
  database, pairs_file = find_talk(talk)
  source = Talk(database)
  pairs, skipped = read_pairs(pairs_file)
  tables = Tables()
  if seamless is not None:
    tables = read_tables(seamless, None if mapping is None else read_mapping(mapping))
  notes, default = list(tables.notes), None
  skipped += tables.skipped
  if default_relation is not None:
    default = parse_relation(default_relation, source="data.default_relation")
  labels = {}
  if relations is not None:
    labels, disagreements = merge_labels(read_labels(relations, {pair.name for pair in pairs}))
    notes += [describe_disagreements(disagreements)] if disagreements else []

  pairs = hold_out(pairs)
  chosen, taken = [], collections.Counter()
  for pair in pairs:
    if pair.split in splits and selection.chooses(pair.ids[0].session) and (not selection.count or taken[pair.split] < selection.count):
      chosen.append(pair)
      taken[pair.split] += 1
  wanted = {file_id.name for pair in chosen for file_id in pair.ids}
  if find_recordings:
    named = {key for pair in pairs for key in pair.keys}
    if single := sum(key not in named for key in source.keys()):
      notes.append(f"{single} recordings of the LMDB are in no pair")
  recordings = None
  if seamless is not None and find_recordings:
    recordings = Recordings(seamless, wanted)

  conversations: list[Joined] = []
  for pair in progress(chosen):
    try:
      measured = [source.measure(key) for key in pair.keys]
      if seamless is not None and recordings is None and any(samples is None for _, samples in measured):
        recordings = Recordings(seamless, wanted)
      frames, lost = _common_frames(pair, measured, recordings)
    except InputError as error:
      skipped.append(Skip(pair.name, kind_of(error), str(error)))
      continue
    related = tables.related.get(pair.ids[0].session)
    relation = labels.get(pair.name)
    if relation is None:
      relation = related.relation if related is not None else default
    label, official = tables.files.get(pair.ids[0].name, ("", ""))
    conversations.append(
        Joined(
            pair,
            pair.split,
            frames,
            lost,
            np.full(2, UNKNOWN, np.int32) if relation is None else relation,
            "" if related is None else related.detail,
            label,
            {"dev": "val"}.get(official, official),
            tables.prompts.get(pair.ids[0].prompt, {}),
        )
    )
  if recordings is not None:
    skipped += recordings.skipped
  if not conversations:
    why = "; ".join(describe_skips(skipped, 1)) or f"{len(pairs)} pairs, none of which is chosen"
    raise InputError(talk, "", f"no conversation that can be served ({why})", "pairs of recordings in data_lmdb")
  notes += _compare(conversations, tables, seamless is not None)
  return Join(source, recordings, conversations, skipped, notes, len(pairs) - len(chosen))


def hold_out(pairs: Sequence[Pair]) -> list[Pair]:
  """The pairs with a part of the training sessions as val, if none is."""
  if any(pair.split == "val" for pair in pairs):
    return list(pairs)
  held = held_out_names([pair.name for pair in pairs if pair.split == "train"])
  return [dataclasses.replace(pair, split="val") if pair.name in held else pair for pair in pairs]


def _common_frames(
    pair: Pair, measured: Sequence[tuple[int, int | None]], recordings: Recordings | None
) -> tuple[int, int]:
  counts: dict[str, float] = {}
  for file_id, (frames, samples) in zip(pair.ids, measured):
    if samples is None:
      voice = recordings.read_voice(file_id) if recordings is not None and pair.whole else None
      if voice is None:
        raise InputError(file_id.name, "audio", "no such key, and no official wav of the whole recording", "a voice")
      samples = len(voice)
    counts |= {f"motion of {file_id.name}": frames, f"voice of {file_id.name}": samples / SAMPLES_PER_FRAME}
  return check_lengths(pair.frames, counts)


def kind_of(error: InputError) -> str:
  if str(error.found) == "no such key":
    return "a recording that is not in the LMDB"
  if error.key == "frames":
    return "recordings of other lengths"
  return "a recording without a voice" if error.expected == "a voice" else "a recording that cannot be read"


def _compare(conversations: Sequence[Joined], tables: Tables, with_tables: bool) -> Iterator[str]:
  """What fits together badly, and stops nothing."""
  missing = {joined.pair.ids[0].session for joined in conversations} - set(tables.related)
  if with_tables and tables.related and missing:
    yield f"{len(missing)} sessions are not in relationships.csv: their conversations' relations are unknown or the default"
  other = [joined.name for joined in conversations if joined.official_split and joined.official_split != joined.split]
  if other:
    yield f"{len(other)} conversations are of another split in filelist.csv, as {other[0]}; UniLS-Talk's is kept"
  if tables.people is not None:
    strangers = {i.speaker for joined in conversations for i in joined.pair.ids
                 if (i.session.vendor, int(i.person[1:])) not in tables.people}  # fmt: skip
    if strangers:
      yield f"{len(strangers)} people are not in participants.csv, as {min(strangers)}"
  splits = split_people(conversations)
  if several := sorted(person for person, of in splits.items() if len(of) > 1):
    yield f"{len(several)} of {len(splits)} people are in several splits, as {several[0]} in {', '.join(sorted(splits[several[0]]))}"


def split_people(conversations: Sequence[Joined]) -> dict[str, set[str]]:
  """The splits of each person."""
  splits = collections.defaultdict(set)
  for joined in conversations:
    for file_id in joined.pair.ids:
      splits[file_id.speaker].add(joined.split)
  return splits


def count_relations(conversations: Sequence[Joined]) -> dict[str, int]:
  """Conversations by relation, in the words of `format_relation`."""
  return dict(collections.Counter(format_relation(joined.relation) for joined in conversations).most_common())
