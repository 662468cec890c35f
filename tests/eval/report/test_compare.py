"""Two runs against each other: units, intervals, flipped answers, and runs that cannot be compared."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import typer

from llava_stf.errors import DataError, LlavaStfError
from llava_stf_eval.cli.compare import compare
from llava_stf_eval.protocols import headline
from llava_stf_eval.report import load_run
from llava_stf_eval.report.bootstrap import Stratum, bootstrap, f1, mean
from llava_stf_eval.report.compare import compare_runs
from llava_stf_eval.report.comparison import flips_as_lines


def sample(name, score, *, answer="yes", reference="yes", image_id=None, category=None, question="Q?"):
    return {
        "id": str(name), "question": question, "prompt": f"USER: {question}", "answer": answer, "reference": reference,
        "score": score, "image_id": str(name) if image_id is None else image_id, "image": None, "category": category,
    }  # fmt: skip


def write(folder, benchmarks, **other):
    """A run whose samples are given by benchmark; returns it as read."""
    (folder / "samples").mkdir(parents=True)
    results = {}
    for name, samples in benchmarks.items():
        lines = "".join(json.dumps(record) + "\n" for record in samples)
        (folder / "samples" / f"{name}.jsonl").write_text(lines)
        results[name] = {
            "status": "scored", "score": 50.0, "metric": "accuracy, %", "metrics": {}, "questions": len(samples),
            "seconds": 1.0, "samples_per_second": 2.0, "input_tokens": 90.0, "output_tokens": 2.0, "submission": None,
            "error": None,
        }  # fmt: skip
    record = {
        "model": "m", "method": "stf", "vision_tokens": 144, "protocol": "llava", "seed": 0, "limit": None,
        "batch_size": 1, "checkpoint": {"path": "m", "hash": "0"}, "machine": {"cpu": "c"}, "versions": {"torch": "2"},
        "date": "2026-11-22", "benchmarks": results, **other,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record))
    return load_run(folder)


def difference(tmp_path, name, a, b, **other):
    run_a, run_b = write(tmp_path / "a", {name: a}, **other), write(tmp_path / "b", {name: b}, **other)
    return compare_runs(run_a, run_b).differences[0]


def test_soft_accuracy_is_the_mean_and_flips_cross_one_half(tmp_path):
    a = [sample(0, 1.0), sample(1, 0.3), sample(2, 0.0), sample(3, 0.6)]
    b = [sample(0, 0.0), sample(1, 0.6), sample(2, 0.3), sample(3, 1.0)]
    found = difference(tmp_path, "vqav2", a, b)
    assert (found.score_a, found.score_b) == pytest.approx((47.5, 47.5))
    assert [one.id for one, _ in found.gained] == ["1"]
    assert [one.id for one, _ in found.lost] == ["0"]
    assert (found.units, found.differing) == (4, 4)


def test_mmbench_question_is_right_with_all_its_rotations(tmp_path):
    turns = [(question, question + 1_000_000 * turn) for question in range(3) for turn in range(4)]
    a = [sample(index, 1.0, image_id=str(question)) for question, index in turns]
    b = [sample(index, float(index != 1_000_001), image_id=str(question)) for question, index in turns]
    found = difference(tmp_path, "mmbench", a, b)
    assert (found.score_a, found.score_b) == pytest.approx((100.0, 200 / 3))
    assert (found.questions, found.units, found.differing) == (12, 3, 1)


def test_mme_sums_pairs_over_categories_of_perception(tmp_path):
    def answers(scores):
        return [
            sample(f"{category}/{image}#{turn}", scores.get((category, image, turn), 1.0),
                   image_id=f"{category}/{image}", category=category)
            for category in ("count", "color", "code_reasoning") for image in "ab" for turn in (0, 1)
        ]  # fmt: skip

    found = difference(tmp_path, "mme", answers({}), answers({("count", "a", 0): 0.0, ("code_reasoning", "a", 0): 0.0}))
    assert (found.score_a, found.score_b) == pytest.approx((400.0, 200.0 + (50.0 + 200.0) / 2))
    assert found.units == 4


def test_ocrbench_counts_right_answers_as_bench_tasks_does(tmp_path):
    a, b = ([sample(at, float(at < right)) for at in range(8)] for right in (5, 6))
    found = difference(tmp_path, "ocrbench", a, b)
    of_task = {"ocrbench_accuracy,none": 5 / 1000}  # lmms-eval: right answers by 1,000, however many were asked
    assert found.score_a == pytest.approx(headline("ocrbench", "llava", {"ocrbench": of_task}))
    assert found.difference == pytest.approx(1.0)
    assert found.low <= 1 <= found.high <= 8


def pope(answers):
    kinds = ("random", "popular")
    truth = ["yes", "yes", "no", "no"] * 2
    return [
        sample(at, float(answer.startswith(real)), answer=answer, reference=real, category=kinds[at // 4])
        for at, (answer, real) in enumerate(zip(answers, truth, strict=True))
    ]


def test_pope_is_the_mean_of_the_kinds_f1_and_reads_leniently_by_the_authors_protocol(tmp_path):
    wordy = pope(["yes", "no", "yes", "no", "yes", "yes", "no, sir", "no"])
    exact = pope(["yes", "yes", "no", "no"] * 2)
    found = difference(tmp_path / "1", "pope", wordy, exact)
    assert (found.score_a, found.score_b) == pytest.approx(((50 + 100) / 2, 100.0))
    found = difference(tmp_path / "2", "pope", wordy, exact, protocol="lmms-eval")
    assert found.score_a == pytest.approx(100 * 2 * 3 / (4 + 4))  # pooled: 3 right of 4 claimed and 4 real


def test_differences_are_of_common_questions_and_say_what_is_left_out(tmp_path):
    a = write(tmp_path / "a", {"gqa": [sample(at, 1.0) for at in range(5)], "pope": []}, batch_size=1, limit=5)
    b = write(tmp_path / "b", {"gqa": [sample(at, 0.0) for at in range(3, 7)]}, batch_size=8, limit=5)
    comparison = compare_runs(a, b)
    (found,) = comparison.differences
    assert (found.questions, found.unpaired, found.difference, found.low, found.high) == (2, 5, -100, -100, -100)
    assert comparison.left_out == ["pope"]
    assert comparison.settings == {"batch size": ("1", "8")}


@pytest.mark.parametrize(
    ("b", "other", "message"),
    [
        ({"gqa": [sample(0, 1.0)]}, {"protocol": "lmms-eval"}, "one protocol, found llava .* lmms-eval"),
        ({"gqa": [sample(0, 1.0, question="R?")]}, {}, "same data .* question 'Q\\?' .* 'R\\?' .* gqa 0"),
        ({"gqa": [sample(0, 1.0, reference="no")]}, {}, "same data .* reference"),
        ({"gqa": [sample(9, 1.0)]}, {}, "both runs answered, found none"),
        ({"pope": [sample(0, 1.0)]}, {}, "both runs scored, found gqa .* pope"),
        ({"gqa": [sample(0, 1.0), sample(0, 1.0)]}, {}, "question 0 of gqa twice"),
        ({"gqa": [sample(0, None)]}, {}, "without a score"),
    ],
    ids=["protocol", "question", "reference", "ids", "benchmarks", "twice", "unscored"],
)
def test_runs_that_cannot_be_compared(tmp_path, b, other, message):
    a = write(tmp_path / "a", {"gqa": [sample(0, 1.0)]})
    with pytest.raises(DataError, match=message):
        compare_runs(a, write(tmp_path / "b", b, **other))


def test_equal_runs_differ_by_nothing_and_the_seed_repeats_the_interval(tmp_path):
    rng = np.random.default_rng(0)
    a = [sample(at, float(rng.random() < 0.7)) for at in range(300)]
    b = [sample(at, float(rng.random() < 0.6)) for at in range(300)]
    same = difference(tmp_path / "1", "gqa", a, a)
    assert (same.difference, same.low, same.high, same.clear) == (0, 0, 0, False)
    runs = write(tmp_path / "a", {"gqa": a}), write(tmp_path / "b", {"gqa": b})
    one, again, other = (compare_runs(*runs, seed=seed).differences[0] for seed in (0, 0, 1))
    assert (one.low, one.high) == (again.low, again.high) != (other.low, other.high)


def test_interval_equals_the_normal_one_where_that_is_exact():
    """Paired 0-1 scores of many questions: the difference's mean plus and minus 1.96 standard errors."""
    rng = np.random.default_rng(0)
    scores = 100 * (rng.random((20_000, 2)) < (0.62, 0.60)).astype(float)
    scores[:10_000, 1] = scores[:10_000, 0]  # half of the answers agree, as those of two similar models do
    *_, low, high = bootstrap([Stratum(scores[:, :, None], 1.0)], mean, seed=0)
    gap = scores[:, 1] - scores[:, 0]
    error = gap.std() / np.sqrt(len(gap))
    # the 2.5 % quantile of 10,000 resamples has a deviation of 0.027 standard errors; 0.12 is more than four of them
    assert (low, high) == pytest.approx((gap.mean() - 1.96 * error, gap.mean() + 1.96 * error), abs=0.12 * error)


def mean_units(rng, size):
    """Correlated right answers: B is right in 55 %, A in 60 %, and half of the questions are answered alike."""
    a = rng.random(size) < 0.6
    b = np.where(rng.random(size) < 0.5, a, rng.random(size) < 0.5)
    return 100 * np.stack([a, b], axis=1)[:, :, None].astype(float)


def f1_units(rng, size):
    truth = rng.random(size) < 0.5
    answers = [np.where(rng.random(size) < right, truth, ~truth) for right in (0.85, 0.8)]
    columns = [np.stack([yes & truth, yes, truth], axis=-1) for yes in answers]
    return np.stack(columns, axis=1).astype(float)


@pytest.mark.parametrize(
    ("units", "statistic", "strata", "true"),
    [(mean_units, mean, 1, -5.0), (mean_units, mean, 3, -15.0), (f1_units, f1, 1, -5.0)],
    ids=["mean", "sum-of-strata", "f1"],
)
def test_interval_holds_the_true_difference_in_95_of_100_experiments(units, statistic, strata, true):
    """F1 of a balanced question set with accuracy p, errors both ways alike, is p: the true difference is 80 - 85."""
    rng = np.random.default_rng(1)
    experiments = 1000
    held = 0
    for _ in range(experiments):
        drawn = [Stratum(units(rng, 150), 1.0) for _ in range(strata)]
        *_, low, high = bootstrap(drawn, statistic, seed=int(rng.integers(2**31)), resamples=400)
        held += low <= true <= high
    # the binomial deviation of 1000 experiments at 95 % is 0.7 points; percentile intervals at 150 units and 400
    # resamples lose about one point
    assert 0.92 < held / experiments < 0.975


@pytest.fixture
def folders(tmp_path):
    hostile = "</script><script>alert(1)</script>"
    write(tmp_path / "a", {"gqa": [sample(0, 1.0), sample(1, 0.0, answer=hostile), sample(2, 1.0)]})
    write(tmp_path / "b", {"gqa": [sample(0, 0.0, answer="no"), sample(1, 1.0), sample(2, 1.0)]}, vision_tokens=64)
    return tmp_path / "a", tmp_path / "b"


def run(*arguments):
    app = typer.Typer()
    app.command()(compare)
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_command_prints_tables_and_json(folders, capsys):
    run(*folders)
    printed = capsys.readouterr().out
    assert "vision tokens, 144 in A, 64 in B" in printed
    assert "too narrow" in printed  # two questions differ
    run(*folders, "--json")
    record = json.loads(capsys.readouterr().out)["benchmarks"]["gqa"]
    assert (record["gained"], record["lost"], record["difference"]) == (["1"], ["0"], 0)
    assert record["low"] < 0 < record["high"]


def test_output_holds_every_flip(folders, tmp_path, capsys):
    run(*folders, "--output", tmp_path / "flips.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "flips.jsonl").read_text().splitlines()]
    assert [(line["id"], line["change"], line["answer_b"]) for line in lines] == [
        ("1", "gained", "yes"),
        ("0", "lost", "no"),
    ]
    assert flips_as_lines(compare_runs(*map(load_run, folders))) == (tmp_path / "flips.jsonl").read_text()
    run(*folders, "--output", tmp_path / "flips.html")
    scripts = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            scripts.extend([dict(attributes)] * (tag == "script"))

    page = (tmp_path / "flips.html").read_text()
    Reader().feed(page)
    assert len(scripts) == 2  # the data and the page's own; none came in with an answer
    assert "alert(1)" in page


@pytest.mark.parametrize(("name", "message"), [("flips.txt", "end in"), ("none/flips.html", "no folder")])
def test_output_that_cannot_be_written_is_refused_before_reading(tmp_path, name, message):
    with pytest.raises(LlavaStfError, match=message):
        run(tmp_path / "a", tmp_path / "b", "--output", tmp_path / name)
