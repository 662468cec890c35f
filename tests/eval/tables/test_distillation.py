"""The table of images to distil on."""

import json

from llava_stf_eval.tables.distillation import read_runs, table


def test_a_row_for_each_source_with_the_mean_of_its_seeds(tmp_path):
    untrained = [{"model": "tiny-full", "accuracy": 0.91}, {"model": "pool", "accuracy": 0.4}]
    (tmp_path / "untrained.json").write_text(json.dumps(untrained))
    for run, share, distance in (("noise-0", 0.5, 0.25), ("noise-1", 0.54, 0.35), ("drawn-0", 0.8, 0.1)):
        (tmp_path / run).mkdir()
        rows = [{"step": step, "vision_tokens": 16, "accuracy": share - 0.1 * (step == 1)} for step in (1, 2)]
        (tmp_path / run / "accuracy.json").write_text(json.dumps(rows))
        (tmp_path / run / "divergence.json").write_text(json.dumps({"divergence": distance, "images": 9}))
    (tmp_path / "noise-2").mkdir()  # not done yet
    runs = read_runs(tmp_path)
    assert [(run["source"], run.get("seed")) for run in runs[2:]] == [("drawn", 0), ("noise", 0), ("noise", 1)]
    _, _, *rows = table(json.loads(json.dumps(runs))).splitlines()
    assert rows == [
        "| all tokens (the teacher) | 91.0 | | |",
        "| mean pooling, no training | 40.0 | | |",
        "| drawn images, as those that are asked about | 80.0 | 0.100 | 1 |",
        "| noise | 52.0 ± 2.8 | 0.300 ± 0.071 | 2 |",
    ]
