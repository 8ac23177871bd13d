"""What each command does, one module each; `verbs` has their flags. `python -m rsatalker_jax VERB` runs one."""
