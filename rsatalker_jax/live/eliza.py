"""ELIZA (Weizenbaum 1966): a toy that turns one's own words round. It understands nothing, needs nothing and is the same each time.

It stands where a language model could, and is the partner in tests.
"""

import itertools
import re
from collections.abc import AsyncIterator, Sequence

# The first that fits answers; {} is what follows the keyword, seen from the other side. The answers of each are taken in turn.
_RULES = (
    (r"(?:hello|hi|good morning|good evening)\b", ("Hello. How are you today?", "Hello again. What would you like to talk about?")),
    (r"(?:bye|goodbye|see you)\b", ("Goodbye. It was nice to talk to you.",)),
    (r"i need (.+)", ("Why do you need {}?", "Would it really help you to get {}?")),
    (r"i(?: am|'m) (.+)", ("How long have you been {}?", "Do you like being {}?")),
    (r"i feel (.+)", ("Do you often feel {}?", "When do you usually feel {}?")),
    (r"i (?:want|would like) (.+)", ("What would it mean to you if you got {}?", "Why do you want {}?")),
    (r"i (?:can't|cannot|can not) (.+)", ("What keeps you from it? Perhaps you could {} if you tried.", "Have you ever tried to {}?")),
    (r"(?:are you|you are|you're) (.+)", ("Why do you think of me as {}?", "Would you like it if I were {}?")),
    (r"because (.+)", ("Is that the real reason?", "Does any other reason come to mind?")),
    (r"(?:why|what|how|who|where|when)\b", ("Why do you ask?", "What do you think yourself?", "What would please you most to hear?")),
    (r"my (mother|father|brother|sister|son|daughter|wife|husband|boss|family)\b", ("Tell me more about your {}.", "How is your {}?")),
    (r"my (.+)", ("Your {}. Tell me more.", "Why do you say that about your {}?")),
    (r"(?:yes|sure|of course)\b", ("You seem quite certain.", "I see. And then?")),
    (r"no\b", ("Why not?", "Are you saying no just to be negative?")),
    (r"", ("Please go on.", "What does that suggest to you?", "I see. Can you say more about that?", "How do you feel about that?")),
)  # fmt: skip
_TURNED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "am": "are", "i'm": "you are", "i've": "you have", "i'll": "you will",
    "myself": "yourself", "you": "me", "your": "my", "yours": "mine", "yourself": "myself", "you're": "I am",
}  # fmt: skip


def turn_round(words: str) -> str:
  """The words as the other would say them: "my dog bites me" is "your dog bites you"."""
  return " ".join(_TURNED.get(word, word) for word in words.lower().split())


class Eliza:
  """A `dialogue.Answerer`. What it says depends on what has been said in the conversation, and on nothing else."""

  about = {"name": "eliza", "where": "", "local": True}

  async def open(self) -> None:
    pass

  async def close(self) -> None:
    pass

  async def answer(self, messages: Sequence[dict[str, str]]) -> AsyncIterator[str]:
    said = [message["content"] for message in messages if message["role"] == "user"]
    counts = [itertools.count() for _ in _RULES]
    reply = ""
    for text in said:  # From the first on, as which answer a rule gives is how often it has answered.
      reply = self._reply(text, counts)
    for word in reply.split(" "):
      yield f"{word} "

  @staticmethod
  def _reply(text: str, counts: list) -> str:
    words = re.sub(r"\s+", " ", text.replace("’", "'")).strip().lower()
    for (pattern, answers), count in zip(_RULES, counts, strict=True):
      found = re.search(rf"\b{pattern}" if pattern else "", words)
      if found:
        rest = re.split(r"[.,;:!?]", found[1])[0].strip() if found.groups() else ""
        return answers[next(count) % len(answers)].format(turn_round(rest) or "that")
    raise AssertionError("the last rule fits everything")
