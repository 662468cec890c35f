"""What lmms-eval calls to score an answer (`doc`, [answer]) -> {metric: value}, and to join a task's values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_stf_eval.requirements import lmms_eval_module
from llava_stf_eval.scoring import choices, mme, pope, vqa

Row = Mapping[str, Any]
Values = dict[str, Any]


def vqav2(doc: Row, results: Sequence[str]) -> Values:
    """VQAv2's accuracy of the answer, by its ten references."""
    return {"exact_match": vqa.vqa_accuracy(results[0], [reference["answer"] for reference in doc["answers"]])}


def vizwiz(doc: Row, results: Sequence[str]) -> Values:
    """VizWiz's accuracy of the answer, by its ten references."""
    return {"exact_match": vqa.vqa_accuracy(results[0], doc["answers"])}


def textvqa(doc: Row, results: Sequence[str]) -> Values:
    """TextVQA's accuracy of the answer, by its ten references."""
    return {"exact_match": vqa.textvqa_accuracy(results[0], doc["answers"])}


def gqa(doc: Row, results: Sequence[str]) -> Values:
    """Whether GQA's answer is the reference."""
    return {"exact_match": vqa.gqa_accuracy(results[0], doc["answer"])}


def scienceqa(doc: Row, results: Sequence[str]) -> Values:
    """Whether the letter that the answer gives is the right one."""
    letter = choices.science_letter(results[0], len(doc["choices"]))
    return {"exact_match": float(letter == choices.LETTERS[doc["answer"]])}


def vqav2_submission(doc: Row, results: Sequence[str]) -> Values:
    """The answer as VQAv2's server takes it."""
    return {"submission": {"question_id": doc["question_id"], "answer": vqa.normalise_answer(results[0])}}


def vizwiz_submission(doc: Row, results: Sequence[str]) -> Values:
    """The answer as VizWiz's server takes it."""
    return {"submission": {"image": f"{doc['question_id']}.jpg", "answer": vqa.normalise_answer(results[0])}}


def write_vqav2(results: list[Values], args: Any) -> None:
    """Write the file for VQAv2's server."""
    _write_json(results, "vqav2_test.json", args)


def write_vizwiz(results: list[Values], args: Any) -> None:
    """Write the file for VizWiz's server."""
    _write_json(results, "vizwiz_test.json", args)


def pope_answer(doc: Row, results: Sequence[str]) -> Values:
    """One record, under the mean and under the metric of the question's category."""
    truth, prediction = doc["answer"].lower().strip(), pope.yes_or_no(results[0])
    record = {
        "question_id": doc["question_id"],
        "category": doc["category"],
        "prediction": prediction,
        "ground_truth": truth,
        "score": float(prediction == truth),
    }
    return {"pope_f1_mean": record, "pope_accuracy": record, f"pope_f1_{doc['category']}": record}


def pope_mean_f1(results: list[Values]) -> float:
    """Mean of the categories' F1 scores."""
    return pope.mean_f1([(record["category"], record["prediction"], record["ground_truth"]) for record in results])


def pope_f1(results: list[Values]) -> float:
    """F1 score of one category."""
    return pope.f1_score((record["prediction"], record["ground_truth"]) for record in results)


def pope_accuracy(results: list[Values]) -> float:
    """Share of right answers."""
    return sum(record["score"] for record in results) / len(results)


def mme_answer(doc: Row, results: Sequence[str]) -> Values:
    """One record, under the perception or the cognition score."""
    category = doc["category"]
    metric = "mme_perception_score" if category in mme.PERCEPTION else "mme_cognition_score"
    is_right = mme.yes_no_other(results[0]) == doc["answer"].lower().strip().rstrip(".")
    return {metric: {"question_id": doc["question_id"], "category": category, "score": float(is_right)}}


def mme_sum(results: list[Values]) -> float:
    """Sum of the scores of the categories."""
    answers = ((record["category"], record["question_id"], record["score"] == 1) for record in results)
    return sum(mme.category_scores(answers).values())


def mmbench(doc: Row, results: Sequence[str]) -> Values:
    """One record for the score and for the table that the server takes."""
    prediction = results[0].strip()
    options = choices.options_of(doc)
    record = {
        "index": doc["index"],
        "question": doc["question"],
        **{letter: options.get(letter) for letter in "ABCD"},
        "prediction": prediction,
        "answer": None if choices.is_absent(doc["answer"]) else doc["answer"],
        "split": doc["split"],
    }
    score = float(choices.option_letter(prediction, options) == doc["answer"])
    return {"circular_accuracy": {**record, "score": score}, "submission": record}


def mmbench_circular(results: list[Values]) -> float:
    """Percent of questions that are right in every rotation."""
    rows = (
        choices.ChoiceAnswer(record["index"], record["prediction"], record["answer"], choices.options_of(record))
        for record in results
    )
    return 100 * choices.circular_accuracy(rows)


def write_mmbench_en_dev(results: list[Values], args: Any) -> None:
    """Write the table of the English dev split."""
    _write_table(results, "mmbench_en_dev.xlsx", args)


def write_mmbench_en_test(results: list[Values], args: Any) -> None:
    """Write the table of the English test split."""
    _write_table(results, "mmbench_en_test.xlsx", args)


def write_mmbench_cn_dev(results: list[Values], args: Any) -> None:
    """Write the table of the Chinese dev split."""
    _write_table(results, "mmbench_cn_dev.xlsx", args)


def write_mmbench_cn_test(results: list[Values], args: Any) -> None:
    """Write the table of the Chinese test split."""
    _write_table(results, "mmbench_cn_test.xlsx", args)


def mmbench_cn_static(results: list[Values]) -> float:
    """lmms-eval's own matching without a judge, in percent, which it offers for English only."""
    evaluator = lmms_eval_module("tasks.mmbench.cn_utils").mmbench_evaluator
    accuracy, _, _ = evaluator.eval_result(results, eval_method="static")
    return 100 * accuracy


def _submission_path(name: str, args: Any) -> Path:
    """`submissions/<name>` in lmms-eval's output path, or in the working folder where it has none."""
    return Path(lmms_eval_module("tasks._task_utils.file_utils").generate_submission_file(name, args))


def _write_json(rows: list[Values], name: str, args: Any) -> None:
    _submission_path(name, args).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _write_table(rows: list[Values], name: str, args: Any) -> None:
    """An Excel table, one row per answer, without the control characters that Excel cannot hold."""
    from openpyxl import Workbook  # type: ignore[import-untyped]
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE  # type: ignore[import-untyped]

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(list(rows[0]))
    for row in rows:
        cells = row.values()
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("", cell) if isinstance(cell, str) else cell for cell in cells])
    book.save(_submission_path(name, args))
