"""Finished runs, read back."""

from rsatalker_jax.runs.trained import TrainedRun, load_run
from rsatalker_jax.runs.workdir import load_config, load_parameters, load_stage_state

__all__ = ["TrainedRun", "load_config", "load_parameters", "load_run", "load_stage_state"]
