"""The table and plot of training runs, from the files that the runs leave."""

import json
import shutil

import pytest

from llava_stf.errors import DataError
from llava_stf_eval.tables.training import TITLES, evaluate_run, plot, read_runs, table

UNTRAINED = {"all": 0.6, "16": 0.5, "4": 0.4}


@pytest.fixture
def folder(tmp_path):
    """Every kind of run over two seeds; the paper's second stage goes on after 100 steps of the first."""

    def write(name, rows, seconds):
        run = tmp_path / name
        run.mkdir()
        (run / "accuracy.json").write_text(json.dumps(rows))
        (tmp_path / f"{name}.seconds").write_text(seconds)

    for seed, gain in enumerate((0.0, 0.02)):
        for name in TITLES:
            steps = (100, 200) if name == "paper" else (100, 200, 300)
            counts = (16, 4) if name.startswith("several") else (4,) if name == "four" else (16,)
            rows = [{"step": s, "vision_tokens": c, "accuracy": 0.5 + gain} for s in steps for c in counts]
            write(f"{name}-{seed}", rows, "90.0 10.0\n")
        write(
            f"paper-align-{seed}",
            [{"step": 100, "vision_tokens": 16, "accuracy": 0.3}],
            "12.0 1.0\nTerminated\n8.0 4.0\n",
        )
    return tmp_path


def test_runs_are_averaged_over_seeds_and_a_second_stage_counts_on(folder):
    runs = read_runs(folder)
    (first, second) = runs["paper"]["points"]
    assert (first.step, second.step, first.seeds) == (200, 300, 2)
    assert first.mean == pytest.approx(0.51)
    assert first.deviation == pytest.approx(0.0141, abs=1e-4)
    assert runs["paper"]["cpu_seconds"] == 125
    assert runs["distill-warm"]["cpu_seconds"] == 100


def test_the_table_has_a_row_for_every_budget(folder):
    rows = table(UNTRAINED, read_runs(folder)).splitlines()
    assert "| no training, mean pooling | 4 | 40.0 | | | | |" in rows
    assert len([row for row in rows if row.startswith(f"| {TITLES['several']} |")]) == 2
    assert f"| {TITLES['paper']} | 16 | | | 51.0 ± 1.4 | 51.0 ± 1.4 | 125 |" in rows


def test_a_mean_over_fewer_seeds_says_so(folder):
    file = folder / "four-1" / "accuracy.json"
    file.write_text(json.dumps([row for row in json.loads(file.read_text()) if row["step"] != 100]))
    rows = table(UNTRAINED, read_runs(folder)).splitlines()
    assert f"| {TITLES['four']} | 4 | | 50.0 (1 of 2 seeds) | 51.0 ± 1.4 | 51.0 ± 1.4 | 100 |" in rows


def test_a_run_without_its_seconds_is_refused(folder):
    (folder / "four-1.seconds").write_text("Terminated\n")
    with pytest.raises(DataError, match=r"seconds in .*four-1\.seconds, found none"):
        read_runs(folder)


def test_kinds_that_were_not_run_are_left_out(folder, tmp_path):
    for run in folder.glob("several-*"):
        if run.is_dir():
            shutil.rmtree(run)
    runs = read_runs(folder)
    rows = table(UNTRAINED, runs)
    assert TITLES["several"] not in rows
    assert f"| {TITLES['four']} | 4 |" in rows
    plot(UNTRAINED, runs, tmp_path / "accuracy.png")


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"accuracy\.json in .*, found none"):
        read_runs(tmp_path)


def test_the_plot_is_written(folder, tmp_path):
    plot(UNTRAINED, read_runs(folder), tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_every_planned_checkpoint_is_asked_at_every_budget(tmp_path):
    from llava_stf import load_model

    model, processor = load_model("tiny-full", vision_tokens=[16, 4])
    for step in (20, 33, 40):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
        processor.save_pretrained(tmp_path / f"checkpoint-{step}")
    with pytest.raises(DataError, match=r"Expected checkpoints in .*nowhere, found none"):
        evaluate_run(tmp_path / "nowhere", images=2)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(DataError, match="1 step or more between two checkpoints, found 0"):
        evaluate_run(tmp_path, images=2, every=0)
    with pytest.raises(DataError, match="Expected checkpoint-10 in"):
        evaluate_run(tmp_path, images=2, every=10)
    assert not (tmp_path / "accuracy.json").exists()
    evaluate_run(tmp_path, images=2, every=20)
    rows = json.loads((tmp_path / "accuracy.json").read_text())
    assert [(row["step"], row["vision_tokens"]) for row in rows] == [(20, 16), (20, 4), (40, 16), (40, 4)]
    assert rows[0]["accuracy"] == rows[2]["accuracy"] > 0
