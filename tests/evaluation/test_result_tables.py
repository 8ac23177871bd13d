"""Tables of scores have the columns, units and marks of the published ones."""

from rsatalker_jax.evaluation import published, result_tables


def test_spread_over_seeds_and_nothing_that_nobody_has():
  rows = {
      "two seeds": [{"sid/jaw": 1.0, "rpcc/jaw": 0.1}, {"sid/jaw": 1.5, "rpcc/jaw": 0.3}],
      "one": [{"sid/jaw": 2.0, "rpcc/jaw": 0.25}],
      "truth": [{"sid/jaw": 3.0, "rpcc/jaw": 0.0}],
      "none": [],
  }
  lines = result_tables.diversity_table(rows, ("truth",)).markdown().splitlines()
  assert lines[0] == "| | SID JAW | rPCC JAW ×10¹ ↓ |"
  assert lines[2:] == ["| two seeds | 1.25 ± 0.2 | **2 ± 1** |", "| one | 2 | 2.5 |", "| truth | 3 | 0 |", "| none | – | – |"]
  table = result_tables.clip_diversity_table({"a": [{"sid_per_clip/jaw": 1.5, "sid_per_clip_swapped/jaw": 2.5, "sid/jaw": 3.0}]})
  assert table.markdown().splitlines()[::2] == ["| | SID per clip JAW | swapped SID per clip JAW |", "| a | 1.5 | 2.5 |"]
  table = result_tables.lip_table({"a": [{"lips/correlation": 0.5}]}).markdown()
  assert table.splitlines()[0] == "| | opening while speaking, r ↑ |" and "bilabials" not in table


def test_errors_and_bilabials_apart():
  scores = {"mse_speaking/jaw": 2e-3, "mse_listening/jaw": 1e-3, "mse_listening/pose": 1e-2, "mse/jaw": 5.0}
  lines = result_tables.kind_error_table({"a": [scores], "b": [{"mse_speaking/jaw": 1e-3}]}).markdown().splitlines()
  assert lines[0] == "| | MSE speaking JAW ×10³ ↓ | MSE listening JAW ×10³ ↓ | MSE listening POSE ×10² ↓ |"
  assert lines[2:] == ["| a | 2 | 1 | 1 |", "| b | **1** | – | – |"]
  closed = {"lips/bilabials": 0.8, "lips/bilabials_P": 0.7, "lips/bilabials_B": 0.6, "lips/bilabials_M": 0.9}
  lines = result_tables.lip_table({"a": [closed]}).markdown().splitlines()
  assert lines[::2] == ["| | bilabials closed ↑ | P ↑ | B ↑ | M ↑ |", "| a | 0.8 | 0.7 | 0.6 | 0.9 |"]


def test_table_1_in_its_form():
  scores = lambda factor: {f"{name}/{group}": factor * 1e-3 for name in ("fd", "p_fd", "mse") for group in ("expression", "jaw", "pose")}
  table = result_tables.motion_table({"ours": [scores(1)], "other": [scores(2), scores(4)]}, with_published=True)
  lines = table.markdown().splitlines()
  assert lines[0] == (
      "| | FD EXP ↓ | FD JAW ×10³ ↓ | FD POSE ×10² ↓ | P-FD EXP ↓ | P-FD JAW ×10³ ↓ | P-FD POSE ×10² ↓ "
      "| MSE EXP ×10¹ ↓ | MSE JAW ×10³ ↓ | MSE POSE ×10² ↓ |"
  )
  assert lines[2] == "| ours | **0.001** | **1** | **0.1** | **0.001** | **1** | **0.1** | **0.01** | **1** | **0.1** |"
  assert "| 0.003 ± 0.001 | 3 ± 1 | 0.3 ± 0.1 |" in lines[3]
  assert lines[4].startswith("| *published, on DualTalk's test set* |")
  # As the paper prints it, and marked where no motion can do that.
  assert "| RSATalker (paper) † | 10.68 | 2.05 | 3.43 | 10.21 | 1.82 | 4.34 | 2.98 | 1.12 | 1.65 |" in lines
  assert "| FaceFormer (paper) | 34.90 | 5.40 | 8.00 | 34.90 | 5.40 | 8.00 | 6.97 | 1.80 | 2.67 |" in lines
  impossible = [line.split(" |")[0] for line in lines if "†" in line]
  assert impossible == ["| DiffusionTalker (paper) †", "| RSATalker (paper) †"]
  header = table.latex().splitlines()[2]
  assert header == (
      r" & \multicolumn{3}{c}{FD $\downarrow$} & \multicolumn{3}{c}{P-FD $\downarrow$} & \multicolumn{3}{c}{MSE $\downarrow$} \\"
  )
  assert "published" not in result_tables.motion_table({"ours": [scores(1)]}).markdown()


def test_possible_rows_keep_both_inequalities():
  row = {f"{name}/{group}": 1.0 for name in ("fd", "p_fd") for group in ("expression", "jaw", "pose")}
  # In table units FD = D·MSE is 1 = 50 · 0.2/10, 3 · 1/3 and 3 · 1/3.
  row |= {"mse/expression": 0.2, "mse/jaw": 1 / 3, "mse/pose": 1 / 3}
  assert published.is_possible(row)
  for name, value in (("p_fd/expression", 0.98), ("mse/expression", 0.196), ("mse/jaw", 0.325), ("fd/pose", 1.02)):
    assert not published.is_possible(row | {name: value})


def test_table_2_ranks_generators_alone():
  rows = {"tracked": {"l1": 0.01, "psnr": 30.0}, "a": {"l1": 0.02, "psnr": 24.0}, "b": {"l1": 0.03, "psnr": 25.0}}
  lines = result_tables.image_table(rows, unranked=("tracked",), with_published=True).markdown().splitlines()
  assert lines[0] == "| | L1 ↓ | PSNR (dB) ↑ |"
  assert lines[2:6] == ["| tracked | 0.01 | 30 |", "| a | **0.02** | 24 |", "| b | 0.03 | **25** |", "| *published, on the paper's own films* | | |"]
  assert lines[6] == "| ER-NeRF (paper) | 0.0468 | 19.8098 |"


def test_relation_test_in_table_units():
  values = {"true": 1e-3, "none": 2e-3, "random": 4e-3, "none - true": (1e-3, 5e-4, 1.5e-3), "random - none": (2e-3, -1e-3, 4e-3)}
  misfit = {name: 1e3 * np_value if isinstance(np_value, float) else tuple(1e3 * x for x in np_value) for name, np_value in values.items()}
  lines = result_tables.relation_test_table({"mse/pose": values, "relation/misfit": misfit}).markdown().splitlines()
  assert lines[0] == "| | told true | told none | told random | none − true | random − none |"
  assert lines[2] == "| MSE POSE ×10² | 0.1 | 0.2 | 0.4 | +0.1 [+0.05, +0.15] | +0.2 [-0.1, +0.4] |"
  assert lines[3] == "| misfit of the true relation | 1 | 2 | 4 | +1 [+0.5, +1.5] | +2 [-1, +4] |"


def test_minutes_and_usage():
  minute = lambda factor: {f"{prefix}mse/{group}": factor * 1e-3 for prefix in ("", "pieces/") for group in ("expression", "jaw", "pose")}
  lines = result_tables.minute_table([minute(1), minute(2) | {"pieces/mse/jaw": 9e-3}]).markdown().splitlines()
  assert lines[0].startswith("| | in one go MSE EXP ×10¹ | in one go MSE JAW ×10³ |")
  assert lines[2:] == ["| minute 1 | 0.01 | 1 | 0.1 | 0.01 | 1 | 0.1 |", "| minute 2 | 0.02 | 2 | 0.2 | 0.02 | 9 | 0.2 |"]
  usage = {
      "motion": {"steps": 4000, "seconds": 90.0, "peak_memory_bytes": 2_500_000_000, "parameters": {"social": 10, "generator": 1234}},
      "avatar": {"steps": 600, "parameters": {"avatar": 5}},
  }
  lines = result_tables.usage_table(usage).markdown().splitlines()
  assert lines[2:] == ["| motion | 4,000 | 1.5 | 2.50 | social 10, generator 1,234 |", "| avatar | 600 | – | – | avatar 5 |"]


def test_every_table_has_its_columns():
  kinds = ("speaking", "listening")
  deviations = {f"{name}/{kind}": 1.0 for name in ("lve", "fdd", "jdd", "pdd") for kind in kinds}
  columns = result_tables.deviation_table({"a": [deviations]}).columns
  assert [(column.group, column.title) for column in columns[:3]] == [("LVE (mm)", "speaking"), ("LVE (mm)", "listening"), ("FDD (mm)", "speaking")]
  timing = {"backchannel/nod_answered": 0.5, "backchannel/nod_delay": 0.2, "backchannel/ends": 7}
  assert [column.title for column in result_tables.backchannel_table({"a": [timing]}).columns] == ["after", "delay (s)"]
  lively = {"variation/jaw": 1.0, "head/yaw": 3.0, "blinks/rate": 15.0}
  assert [column.group for column in result_tables.liveliness_table({"a": [lively]}).columns] == ["variation", "head", "blinks"]
