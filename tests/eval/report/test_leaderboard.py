"""Many runs in one table, and one run at two batch sizes."""

import json

import pytest
import typer

from llava_stf.errors import DataError, LlavaStfError
from llava_stf_eval.cli.compare import compare
from llava_stf_eval.cli.speed import speed
from llava_stf_eval.report import load_run
from llava_stf_eval.report.batches import batch_changes, print_changes
from llava_stf_eval.report.compare import compare_runs
from llava_stf_eval.report.leaderboard import leaderboard
from llava_stf_eval.speed.variants import EXPORT


def sample(name, right, answer=None):
    return {
        "id": str(name), "question": "Q?", "prompt": "USER: Q?", "answer": answer or ("yes" if right else "no"),
        "reference": "yes", "score": float(right), "image_id": str(name), "image": None, "category": "adversarial",
    }  # fmt: skip


def write(folder, benchmarks, **other):
    (folder / "samples").mkdir(parents=True)
    results = {}
    for name, samples in benchmarks.items():
        (folder / "samples" / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
        results[name] = {
            "status": "scored", "score": 100 * sum(one["score"] for one in samples) / len(samples), "metric": "%",
            "metrics": {}, "questions": len(samples), "seconds": 1.0, "samples_per_second": 2.0, "input_tokens": 9.0,
            "output_tokens": 2.0, "submission": None, "error": None,
        }  # fmt: skip
    record = {
        "model": "m", "method": "full", "vision_tokens": 576, "protocol": "llava", "seed": 0, "limit": None,
        "batch_size": 1, "checkpoint": {}, "machine": {}, "versions": {}, "date": "2026-11-29", "benchmarks": results,
        **other,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record))
    return load_run(folder)


def questions(right, count=40):
    return [sample(place, place < right) for place in range(count)]


@pytest.fixture
def runs(tmp_path):
    return [
        write(tmp_path / "full", {"gqa": questions(30), "vqav2": questions(20)}),
        write(tmp_path / "good", {"gqa": questions(34), "vqav2": questions(20)}, method="fastv", vision_tokens=144,
              mean_tokens=171.0, method_options={"full_layers": 3}),
        write(tmp_path / "bad", {"gqa": questions(10), "vqav2": questions(12), "vizwiz": questions(3)}, method="pool",
              vision_tokens=144),
    ]  # fmt: skip


def measured(folder, *options):
    """What `bench speed` writes of the smallest shape; returns its rows."""
    app = typer.Typer()
    app.command()(speed)
    app(["--output", str(folder), "--repeats", "1", "--warm-up", "0", "--text-tokens", "4", "--new-tokens", "1",
         "--device", "cpu", *options], standalone_mode=False)  # fmt: skip
    return json.loads((folder / "speed.json").read_text())["rows"]


def first_token(row):
    stage = row["stages"]["first_token"]
    return stage["median"], stage["spread"]


def test_runs_are_ranked_by_the_mean_over_common_benchmarks(runs):
    board = leaderboard(runs)
    assert board.benchmarks == ["vqav2", "gqa"]
    assert [place.run.method for place in board.places] == ["fastv", "full", "pool"]
    good, full, bad = board.places
    assert (good.accuracy, full.accuracy, bad.accuracy) == pytest.approx((67.5, 62.5, 27.5))
    assert good.scores == pytest.approx({"gqa": 85.0, "vqav2": 50.0})
    for place in board.places:
        # Two means of 40 questions each: 95 % of the draws lie within about 1.96 standard errors.
        errors = [(share / 100 * (1 - share / 100) / 40) for share in place.scores.values()]
        width = 100 * 2 * 1.96 * sum(errors) ** 0.5 / 2
        assert place.high - place.low == pytest.approx(width, rel=0.15)
        assert place.low < place.accuracy < place.high
    assert full.difference == (0.0, 0.0, 0.0)
    assert bad.difference[0] == pytest.approx(-35.0)
    assert bad.difference[2] < 0 < good.difference[2]


def test_benchmarks_count_alike_whatever_their_scale(tmp_path):
    mme = [
        {**one, "image_id": str(at // 2), "category": "count" if at < 20 else "color"}
        for at, one in enumerate(questions(20))
    ]
    benchmarks = {"gqa": questions(20), "ocrbench": questions(10), "mme": mme}
    (place, _) = leaderboard([write(tmp_path / name, benchmarks) for name in ("a", "b")]).places
    assert place.scores == {"gqa": 50.0, "ocrbench": 10.0, "mme": 200.0}  # as bench tasks says them
    assert place.accuracy == pytest.approx((50 + 25 + 50) / 3)  # MME's two categories give 400 at most


def test_differences_are_paired_as_between_two_runs(runs, tmp_path):
    two = [write(tmp_path / "one", {"gqa": questions(30)}), write(tmp_path / "two", {"gqa": questions(34)})]
    found, expected = leaderboard(two).places[0].difference, compare_runs(*two).differences[0]
    assert found == pytest.approx((expected.difference, expected.low, expected.high))


def test_times_are_those_of_the_method_and_its_options_at_that_share(runs, tmp_path):
    rows = measured(
        tmp_path / "speed", "--methods", "full,fastv", "--option", "full_layers=3", "--vision-tokens", "4,16"
    )
    board = leaderboard(runs, speed=tmp_path / "speed" / "speed.json")
    assert [row["vision_tokens"] for row in rows] == [64, 4, 16]
    assert [place.first_token for place in board.places] == [first_token(rows[2]), first_token(rows[0]), None]
    assert board.speed == "tiny (random weights)"

    measured(tmp_path / "other", "--methods", "full,fastv")
    board = leaderboard(runs, speed=tmp_path / "other" / "speed.json")
    assert board.places[0].first_token is None  # FastV as published, and not the run's


def test_the_time_of_an_export_is_its_own(tmp_path):
    rows = measured(tmp_path / "speed", "--methods", "full,stf")
    path = tmp_path / "speed" / "speed.json"
    exports = ["runs/int8", "runs/int4"]
    # An export's row as `bench speed` writes it differs in these two from one of weights.
    named = [{**row, "method": EXPORT, "model": export} for row, export in zip(rows, exports, strict=True)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": named}))
    two = [
        write(tmp_path / f"run-{at}", {"gqa": questions(30 - at)}, model=export, method="exported")
        for at, export in enumerate(["runs/int4/", "runs/int8"])
    ]
    places = leaderboard(two, speed=path).places
    assert [place.first_token for place in places] == [first_token(rows[1]), first_token(rows[0])]


def test_a_measurement_of_an_older_version_is_refused(runs, tmp_path):
    (tmp_path / "speed.json").write_text(json.dumps({"rows": [], "plan": {}, "machine": {}, "model": {}}))
    with pytest.raises(DataError, match="run bench speed again"):
        leaderboard(runs, speed=tmp_path / "speed.json")


def test_on_the_command_line(runs, tmp_path, capsys):
    app = typer.Typer()
    app.command()(compare)
    folders = [str(run.folder) for run in runs]
    row = measured(tmp_path / "speed", "--methods", "full,pool")[1]
    plot = tmp_path / "board.png"
    capsys.readouterr()
    app([*folders, "--speed", str(tmp_path / "speed"), "--output", str(plot)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert f"{1000 * first_token(row)[0]:,.1f}" in printed
    assert "measured on tiny (random weights)" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    app([*folders, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert [place["method"] for place in found["places"]] == ["fastv, full_layers=3", "full", "pool"]
    with pytest.raises(LlavaStfError, match=r"end in \.png, found board\.html"):
        app([*folders, "--output", str(tmp_path / "board.html")], standalone_mode=False)
    with pytest.raises(typer.BadParameter, match="two runs or more"):
        app(folders[:1], standalone_mode=False)


def test_runs_of_other_questions_or_protocols_are_refused(runs, tmp_path):
    short = write(tmp_path / "short", {"gqa": questions(3, count=10)})
    with pytest.raises(DataError, match="30 that only one of"):
        leaderboard([runs[0], short])
    other = write(tmp_path / "other", {"gqa": questions(3)}, protocol="lmms-eval")
    with pytest.raises(DataError, match="one protocol"):
        leaderboard([runs[0], other])
    with pytest.raises(DataError, match="that all runs scored"):
        leaderboard([runs[0], write(tmp_path / "none", {"vizwiz": questions(3)})])


def test_answers_that_a_batch_changed(tmp_path, capsys):
    alone = [sample(0, True), sample(1, False), sample(2, True), sample(3, False, "maybe"), sample(4, True)]
    batch = [sample(0, True), sample(1, True), sample(2, False), sample(3, False, "perhaps"), sample(4, True)]
    runs = write(tmp_path / "alone", {"gqa": alone}), write(tmp_path / "batch", {"gqa": batch}, batch_size=5)
    (change,) = batch_changes(*runs)
    assert (change.questions, change.differing, change.gained, change.lost) == (5, 3, 1, 1)
    assert [one.id for one, _ in change.examples] == ["1", "2", "3"]
    print_changes([change])
    printed = capsys.readouterr().out
    assert "alone 'no', in the batch 'yes'" in printed
