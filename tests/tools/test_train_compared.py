"""Which runs are trained to be compared, and which are left alone."""

import json

from configs.ablations import COMPARED
from configs.common import base_config
from tools import train_compared


def test_stages_are_the_variants_own():
  assert train_compared.stages_of("full") == train_compared.stages_of("no_relation") == ("motion",)
  assert train_compared.stages_of("faceformer") == ("motion",) and train_compared.stages_of("gaussiantalker") == ("avatar",)
  assert "motion" in train_compared.stages_of("dualtalk") and all(map(train_compared.stages_of, COMPARED))


def test_a_run_is_trained_when_all_its_stages_have_reached_their_last_steps(tmp_path):
  folder, stages = tmp_path / "seed_0", ("codes", "motion")
  assert not train_compared.is_trained(folder, stages)
  config = base_config()
  config.codes.steps, config.motion.steps = 6, 8
  for stage, step in (("codes", 6), ("motion", 4), ("motion", 8)):
    (folder / stage / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"working_directory": "."}))
    assert train_compared.is_trained(folder, stages) == (step == 8)
  config.motion.steps = 9  # It is to go on.
  (folder / "config.json").write_text(json.dumps(config.to_dict() | {"working_directory": "."}))
  assert not train_compared.is_trained(folder, stages) and train_compared.is_trained(folder, ("codes",))
