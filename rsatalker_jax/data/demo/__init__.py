"""The embedded conversations: dialogues, the simulated dyads that perform them, and their unpacking into real layouts.

Names that others use: `voices.load_dialogues`, `dyads.simulate_dyad`, `unpack.unpack_demo`. The rules of this small world
are in `rules` and, in words, in docs/demo_world.md.
"""
