"""What a user's mistake looks like: one line that names the place, what was found and what was expected."""


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
    message = f"{where}: found {found}, expected {expected}"
    super().__init__(" ".join(message.split()))  # One line, whatever the parts hold.
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
