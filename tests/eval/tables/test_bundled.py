"""The table of the bundled models: a row for each kind and budget, the mean of its seeds, and STF's lead."""

import json

from llava_stf.world import ALL
from llava_stf_eval.tables.bundled import lead, table

ASKED = {"images": 1000, "seed": 0, "questions": 6558}


def write(folder, name, *shares, tokens=(16,)):
    results = [
        ASKED | {"accuracy": share, "vision_tokens": count, "families": dict.fromkeys(ALL, share)}
        for share, count in zip(shares, tokens, strict=True)
    ]
    (folder / f"{name}.json").write_text(json.dumps(results))


def test_a_row_for_each_kind_and_budget_and_the_lead_over_pooling_of_the_same_seed(tmp_path):
    write(tmp_path, "pool-0", 0.8)
    write(tmp_path, "pool-1", 0.82)
    write(tmp_path, "fused-0", 0.83)
    write(tmp_path, "fused-1", 0.86)
    write(tmp_path, "fused-2", 0.9)
    write(tmp_path, "nested-0", 0.9, 0.85, 0.7, tokens=(64, 16, 4))
    header, _, mirrors, pool, fused, *nested, _, ahead = table(tmp_path).splitlines()
    assert header == f"| tokens in brackets | {' | '.join(ALL)} | **all** | seeds |"
    assert mirrors.startswith("| mirrors | VQAv2 | GQA | ")
    assert pool == "| mean pooling (16) | " + "81.0 | " * len(ALL) + "81.0 ± 1.4 | 2 |"
    assert fused == "| **STF and MBTF** (16) | " + "86.3 | " * len(ALL) + "86.3 ± 3.5 | 3 |"
    assert [row.split(" | ")[0] for row in nested] == ["| one model (64)", "| one model (16)", "| one model (4)"]
    assert nested[2].endswith(" | 70.0 | 70.0 | 1 |")
    assert ahead == "* STF and MBTF less mean pooling, 16 tokens: 3.50 ± 0.71 points over 2 seeds."


def test_no_lead_is_said_without_both(tmp_path):
    write(tmp_path, "full-0", 0.9, tokens=(64,))
    assert not lead(tmp_path, "fused", "pool")
    assert table(tmp_path).splitlines()[-1].startswith("| all tokens (64) | 90.0 ")
