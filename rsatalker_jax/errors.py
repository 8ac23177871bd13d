"""What a user's mistake looks like: one line that names the place, what was found and what was expected."""

_LONGEST = 400  # Of what is quoted from a file.


class InputError(ValueError):
  """Wrong input from outside. Command-line entries print it as one line and exit with status 2.

  Args:
    file: the file, folder or flag at fault.
    key: the key, frame or field inside it; empty when the whole file is at fault.
    found: what is there.
    expected: what should be there.
  """

  def __init__(self, file: object, key: str, found: object, expected: object):
    where = f"{file}: {key}" if key else f"{file}"
    found_text = str(found)
    if len(found_text) > _LONGEST:
      found_text = f"{found_text[:_LONGEST]}... ({len(found_text)} characters)"
    message = " ".join(f"{where}: found {found_text}, expected {expected}".split())  # One line, whatever the parts hold.
    # A file's words may hold what a terminal would obey, or half a character that cannot be printed.
    super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))
    self.file, self.key, self.found, self.expected = file, key, found, expected


class MissingFeatures(InputError):
  """A voice has no cached features, and encoding it was not asked for.

  Args:
    folder: the cache.
    clip: whose voice it is.
    found: what there is instead.
  """

  def __init__(self, folder: object, clip: str = "a voice", found: str = "no speech features"):
    command = "`python encode_speech.py` with the --config flags of this run"
    super().__init__(folder, clip, found, f"those that {command} makes, or speech.encode_missing=True")
