"""`llava-stf bench speed` on exports, alone and beside the weights that they were made from."""

import json
import operator

import pytest

from llava_stf import load_model
from llava_stf.errors import LlavaStfError
from llava_stf.export.write import export_model
from llava_stf_eval.speed import bench
from llava_stf_eval.speed.measuring import STAGES
from llava_stf_eval.speed.output import name_of
from llava_stf_eval.speed.plan import Plan, check_plan
from llava_stf_eval.speed.run import measure
from llava_stf_eval.speed.verdict import verdicts

SMALL = {"text_tokens": [12], "new_tokens": [3], "repeats": 1, "warm_up": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def export(plain_folder, tmp_path_factory):
    """A plain LLaVA fused to 4 tokens, for OpenVINO in 8 bits."""
    llava = load_model(plain_folder, vision_tokens=4, device="cpu", dtype="float32")
    return export_model(llava, tmp_path_factory.mktemp("exports") / "fused-int8", weights="int8", kv_cache="u8")


def test_an_export_beside_weights_in_two_precisions(plain_folder, export) -> None:
    models = [str(plain_folder), str(export)]
    result = measure(Plan(shape=None, models=models, dtype=["float32"], clock="cpu", **SMALL))
    rows = result["rows"]
    assert json.loads(json.dumps(result)) == result
    assert [name_of(row) for row in rows] == [
        "full 16, pytorch float32", "stf 4, pytorch float32",
        "export 4, openvino int8, cache u8 (fused-int8)",
    ]  # fmt: skip
    last = rows[-1]
    assert tuple(last["stages"]) == STAGES
    assert all(last["stages"][name]["median"] > 0 for name in ("tower", "prefill", "first_token", "decode"))
    assert last["stages"]["projector"]["median"] == 0
    assert last["llm_tokens"] == rows[1]["llm_tokens"] == [16, 16]
    assert last["kv_bytes"] == last["counted"]["kv_bytes"] == rows[1]["kv_bytes"] // 4
    assert 0 < result["models"][1]["weights_bytes"] < result["models"][0]["weights_bytes"]
    assert verdicts(result)[-1].endswith("x as fast as full on pytorch float32.")


def test_weights_are_measured_in_each_precision_and_an_export_as_it_is(plain_folder, export) -> None:
    plan = Plan(shape=None, models=[str(plain_folder), str(export)], dtype=["float32", "bfloat16"], **SMALL)
    assert [(subject.dtype, len(subject.settings)) for subject in check_plan(plan)] == [
        ("float32", 2), ("bfloat16", 2), (None, 1),
    ]  # fmt: skip
    with pytest.raises(LlavaStfError, match="named twice"):
        check_plan(Plan(shape=None, models=[str(export)] * 2, **SMALL))


def test_an_export_alone_and_what_is_not_for_it(export) -> None:
    alone = {"shape": None, "models": [str(export)], **SMALL, "device": None}
    (row,) = measure(Plan(**alone))["rows"]
    assert (row["method"], row["vision_tokens"], row["stages"]["first_token"]["times_faster"]) == ("export", 4, 1)
    for name, value in (("dtype", ["bfloat16"]), ("methods", ["full"]), ("vision_tokens", [4])):
        with pytest.raises(LlavaStfError, match=f"{name} is for weights in PyTorch, and .* is an export"):
            measure(Plan(**alone | {name: value}))


def test_a_process_that_ends_is_told(plain_folder, monkeypatch) -> None:
    monkeypatch.setattr(bench, "_serve", operator.abs)  # which takes no such arguments
    with pytest.raises(LlavaStfError, match=r"ended with 1; .* no memory left"):
        measure(Plan(shape=None, models=[str(plain_folder)], dtype=["float32", "bfloat16"], **SMALL))
    assert bench.multiprocessing.active_children() == []
