"""The table of trained resamplers."""

import json

from llava_stf_eval.tables.resamplers import costs, table

ASKED = {"images": 1000, "seed": 0, "questions": 6558, "families": {}}


def test_a_row_for_each_kind_with_the_mean_of_its_seeds(tmp_path):
    for seed, share in ((0, 0.5), (1, 0.54)):
        rows = [ASKED | {"vision_tokens": count, "accuracy": share - 0.1 * (count == 4)} for count in (16, 4)]
        (tmp_path / f"m3-{seed}.json").write_text(json.dumps(rows))
    (tmp_path / "mqt-0.json").write_text(json.dumps([ASKED | {"vision_tokens": 16, "accuracy": 0.4}]))
    seconds = {"rows": [{"method": "pool", "first token": 3.2}, {"method": "mqt", "first token": 3}]}
    (tmp_path / "speed.json").write_text(json.dumps(seconds))
    (tmp_path / "none").mkdir()
    assert table(tmp_path / "none", tmp_path / "speed.json") == ""
    *_, mqt, nested = table(tmp_path, tmp_path / "speed.json").splitlines()
    assert mqt == "| MQT, random start | 40.0 | | | 1 | 9 M | 5 G | 3.00 |"
    assert nested == "| M3: pooling at 16, 4 and 1 | 52.0 ± 2.8 | 42.0 ± 2.8 | | 2 | 21 M | 24 G | 3.20 |"


def test_parameters_at_seven_billion():
    # Two linear layers with biases: 1024 to 4096 to 4096.
    assert costs("pool")[0] == 1024 * 4096 + 4096 + 4096**2 + 4096
    # TokenPacker: its query map, two times 4096 to 1024 to 1024, three norms, attention, and the same two layers.
    assert costs("tokenpacker")[0] == sum((
        1024**2, 2 * (4096 * 1024 + 1024 + 1024**2 + 1024), 3 * 2048, 4 * (1024**2 + 1024), costs("pool")[0],
    ))  # fmt: skip
