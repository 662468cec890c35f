"""The benchmarks' scoring rules on answers made by hand; expected values follow each benchmark's published rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_stf.errors import DataError
from llava_stf_eval.scoring import choices, mme, pope, vqa
from llava_stf_eval.scoring.choices import ChoiceAnswer

NEEDS_LMMS_EVAL = "the VQA normaliser is lmms-eval's: pip install --no-deps lmms-eval==0.7.3"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("  The Red Bus. ", "red bus"),
        ("two", "2"),
        ("None", "0"),
        ("a dont", "don't"),
        ("1,000", "1000"),
        ("man's hat", "man 's hat"),
        ("top-left", "top left"),  # the mark touches no space: it becomes one
        ("top - left", "top left"),  # it touches one: it is deleted
        ("a-b c- d", "ab c d"),  # ... everywhere in the text
        ("3.5", "3.5"),
        ("3. 5 p.m.", "3 5 pm"),
        ("yes?\nno\tmaybe", "yes no maybe"),
        ("", ""),
    ],
)
def test_normalise_answer(answer, expected):
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    assert vqa.normalise_answer(answer) == expected


@pytest.mark.parametrize(
    ("equal", "expected"),
    # n of ten people agree: each of them sees n - 1 others, the rest see n
    [(0, 0.0), (1, 0.3), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1.0), (10, 1.0)],
)
def test_soft_accuracy_leaves_each_person_out_once(equal, expected):
    references = ["cat"] * equal + [f"dog {index}" for index in range(10 - equal)]
    assert vqa.soft_accuracy("cat", references) == pytest.approx(expected)


def test_soft_accuracy_without_references():
    with pytest.raises(DataError, match="no reference answers"):
        vqa.soft_accuracy("cat", [])


def test_textvqa_normalises_both_sides_and_wants_ten_references():
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    assert vqa.textvqa_accuracy("The Bank.", ["bank"] * 3 + ["BANK!"] + ["river"] * 6) == 1.0
    assert vqa.textvqa_accuracy("bankk", ["bank"] * 10) == 0.0
    with pytest.raises(DataError, match="10 reference answers, found 3"):
        vqa.textvqa_accuracy("bank", ["bank"] * 3)


def test_vqa_accuracy_keeps_the_servers_asymmetry():
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    assert vqa.vqa_accuracy("Two", ["2"] * 10) == 1.0
    # LLaVA submits "man 's hat"; the server leaves the references' possessive alone
    assert vqa.vqa_accuracy("man's hat", ["man's hat"] * 10) == 0.0


@pytest.mark.parametrize(("answer", "expected"), [("Red.", 1), ("red..", 1), ("the red", 0), ("red ", 0)])
def test_gqa_drops_closing_periods_and_case_alone(answer, expected):
    assert vqa.gqa_accuracy(answer, "red") == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("No", "no"),
        ("no.", "no"),
        ("Yes, it is not there", "no"),
        ("There is no dog. Yes", "no"),
        ("Yes. There is no cat", "yes"),  # the first sentence alone
        ("No, there isn't", "no"),
        ("NO", "yes"),  # only No, no and not are known
        ("nothing", "yes"),
        ("I cannot tell", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_leniently(answer, expected):
    assert pope.yes_or_no(answer) == expected


def test_pope_f1_counts_yes_as_positive():
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 4 + [("no", "no")] * 8
    precision, recall = 6 / 8, 6 / 10
    assert pope.f1_score(pairs) == pytest.approx(2 * precision * recall / (precision + recall))
    assert pope.f1_score([("no", "yes"), ("no", "no")]) == 0.0


def test_pope_mean_weighs_categories_alike():
    records = [("random", "yes", "yes")] * 99 + [("popular", "no", "yes"), ("adversarial", "yes", "yes")]
    assert pope.mean_f1(records) == pytest.approx(2 / 3)
    assert pope.mean_f1([("random", "yes", "yes")]) == 1.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B. text", "B"),
        ("The answer is B.", "B"),
        ("So: The answer is B, because", "B"),
        ("The answer is A. The answer is B.", None),
        ("The answer is B", None),  # nothing behind the letter
        ("(B)", None),
        ("b", None),
        ("B.", None),
        ("B.text", None),
        ("D", None),  # not one of three options
        ("AB", None),
        ("", None),
    ],
)
def test_science_letter(answer, expected):
    assert choices.science_letter(answer, 3) == expected


OPTIONS = {"A": "red", "B": "dark blue", "C": "blue", "D": "green"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("The answer is B", "B"),
        ("A bird is in the green tree", "D"),  # the article is no letter
        ("A or B", None),
        ("It is GREEN.", "D"),
        ("dark blue", None),  # holds two options
        ("purple", None),
        ("", None),
    ],
)
def test_option_letter(answer, expected):
    assert choices.option_letter(answer, OPTIONS) == expected


@pytest.mark.parametrize("absent", [None, float("nan"), "nan", "None"])
def test_options_end_at_the_first_missing_one(absent):
    assert choices.options_of({"A": "x", "B": 2, "C": absent, "D": "y"}) == {"A": "x", "B": "2"}


def _rotated(question, predictions, answers="ADCB"):
    return [
        ChoiceAnswer(question + k * choices.ROTATION, prediction, answers[k], OPTIONS)
        for k, prediction in enumerate(predictions)
    ]


def test_a_question_counts_only_if_every_rotation_is_right():
    rows = [*_rotated(7, "ADCB"), *_rotated(8, "ADCA"), *_rotated(9, "ADCB")[:2]]
    assert choices.circular_accuracy(rows) == pytest.approx(2 / 3)
    assert choices.circular_accuracy(reversed(rows)) == pytest.approx(2 / 3)


@given(st.lists(st.sampled_from(["ADCB", "ADCD", "BBBB"]), min_size=1, max_size=6))
def test_circular_accuracy_is_the_share_of_whole_questions(answered):
    rows = [row for question, predictions in enumerate(answered) for row in _rotated(question, predictions)]
    assert choices.circular_accuracy(rows) == pytest.approx(answered.count("ADCB") / len(answered))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", "yes"), ("no, it is", "no"), ("Y", "other"), ("It is: yes", "other"), ("none", "no"), ("", "other")],
)
def test_mme_reads_four_characters(answer, expected):
    assert mme.yes_no_other(answer) == expected


def test_mme_adds_single_and_paired_accuracy_per_category():
    answers = [
        ("count", "1.png", True), ("count", "1.png", True), ("count", "2.png", True), ("count", "2.png", False),
        ("OCR", "1.png", False), ("OCR", "1.png", True),
    ]  # fmt: skip
    assert mme.category_scores(answers) == pytest.approx({"count": 75 + 50, "OCR": 50})
    assert mme.category_scores([("scene", "x", True)] * 2) == {"scene": 200}


def test_mme_names_the_question_that_is_no_pair():
    with pytest.raises(DataError, match=r"2 questions of '2.png' in category 'count', found 1"):
        mme.category_scores([("count", "1.png", True), ("count", "1.png", True), ("count", "2.png", True)])
