"""OCRBench, DocVQA, ChartQA and RefCOCO: lmms-eval's own scoring of answers made by hand, and that of one sample."""

from importlib import import_module
from types import SimpleNamespace

import pytest

from llava_stf_eval.protocols import headline, needs_server, sample_score
from llava_stf_eval.scoring.boxes import overlap

pytest.importorskip("lmms_eval", reason="lmms-eval is installed by hand, see eval/README.md")


def theirs(module):
    return import_module(f"lmms_eval.tasks.{module}")


@pytest.mark.parametrize(
    ("answer", "said", "score"),
    [
        (["STOP"], "The sign says stop.", 1),
        (["STOP", "HALT"], "halt", 1),
        (["STOP"], "ST0P", 0),
        (["12 34"], "１２　３４", 1),  # full-width digits and space
        (["a\nb"], "a b", 1),
    ],
)
def test_ocrbench_looks_for_the_answer_in_what_is_said(answer, said, score):
    doc = {"answer": answer, "dataset": "drawn", "question_type": "Regular Text Recognition"}
    found = theirs("ocrbench.utils").ocrbench_process_results(doc, [said])
    assert sample_score("ocrbench", "llava", found) == score


def test_ocrbench_counts_right_answers_of_a_thousand(tmp_path):
    scored = [
        {"question_type": kind, "score": score}
        for kind, score in (("Doc-oriented VQA", 1), ("Digit String Recognition", 1), ("Handwriting Recognition", 0))
    ]
    share = theirs("ocrbench.utils").ocrbench_aggregate_accuracy(scored, SimpleNamespace(output_path=str(tmp_path)))
    assert headline("ocrbench", "llava", {"ocrbench": {"ocrbench_accuracy,none": share}}) == 2


@pytest.mark.parametrize(
    ("references", "said", "score"),
    [
        (["Dr. Smith"], "dr.  smith", 1.0),
        (["abcd"], "abce", 0.75),
        (["abcd", "abce"], "abce", 1.0),
        (["abcd"], "xyzd", 0.0),  # less than half of it
    ],
)
def test_docvqa_is_by_edit_distance(references, said, score):
    found = import_module("lmms_eval.api.metrics").anls(references, [said])
    assert sample_score("docvqa", "lmms-eval", found) == pytest.approx(score)
    assert headline("docvqa", "llava", {"docvqa_val": {"anls,none": found["anls"]}}) == pytest.approx(100 * score)


@pytest.mark.parametrize(
    ("answer", "said", "score"),
    [("20", "21", 1), ("20", "21.1", 0), ("20%", "0.2", 1), ("Red", "red", 1), ("red", "red.", 0), ("2", "two", 0)],
)
def test_chartqa_forgives_a_twentieth_of_a_number(answer, said, score):
    found = theirs("chartqa.utils").chartqa_process_results({"type": "human_test", "answer": answer}, [said])
    assert sample_score("chartqa", "llava", found) == found["relaxed_human_split"] == score


@pytest.mark.parametrize(
    ("said", "share", "score"),
    [
        ("[0.2, 0.2, 0.6, 0.6]", 1.0, 1),
        ("It is at [0.2, 0.2, 0.6, 0.4].", 0.5, 1),
        ("[0.2, 0.2, 0.4, 0.4]", 0.25, 0),
        ("[0.6, 0.6, 0.9, 0.9]", 0.0, 0),
        ("in the upper left", 0.0, 0),
    ],
)
def test_refcoco_is_right_from_half_of_the_box(said, share, score):
    rec = theirs("refcoco.utils_rec")
    doc = {"answer": "the red circle", "question_id": "1", "bbox": [0.2, 0.2, 0.6, 0.6]}
    found = rec.refcoco_bbox_rec_process_result(doc, [said])
    value = found["refcoco_ACC@0.5"]
    assert overlap(value["bbox"], value["pred"]) == pytest.approx(share)
    assert overlap(value["bbox"], value["pred"]) == pytest.approx(rec.compute_iou(value["bbox"], value["pred"]))
    assert sample_score("refcoco", "llava", found) == score == rec.refcoco_bbox_rec_acc05([value])
    results = {"refcoco_bbox_rec_val": {"refcoco_ACC@0.5,none": rec.refcoco_bbox_rec_acc05([value])}}
    assert headline("refcoco", "llava", results) == 100 * score


def test_nothing_is_nowhere():
    assert overlap([0, 0, 0, 0], [0, 0, 0, 0]) == 0


def test_all_splits_are_scored_here():
    assert not any(needs_server(name, "llava") for name in ("ocrbench", "docvqa", "chartqa", "refcoco:testA"))
