"""The figures of training in several processes: those of a run of which every process ended well, or none."""

import json

import pytest

from llava_stf.errors import LlavaStfError
from llava_stf_eval.measurement import sharding

FIGURES = {"peak": 1.0, "times": [(second, 2 * second) for second in range(sharding.STEPS)]}


@pytest.fixture
def earlier(tmp_path):
    """Figures of an earlier run in a folder that has nothing to train."""
    for rank in range(2):
        (tmp_path / f"two-{rank}.json").write_text(json.dumps(FIGURES))
    return tmp_path


def test_a_run_that_fails_does_not_print_an_earlier_ones_figures(earlier, capfd):
    with pytest.raises(LlavaStfError, match=r"Process \d of two ended with 2; see .*two-\d\.log"):
        sharding.measure(earlier, "two", "apart", 2)
    assert not list(earlier.glob("*.json"))
    assert "No model" in capfd.readouterr().err  # pytest's own, which goes past the descriptor that the log takes


def test_one_of_two_that_fails_fails_the_run_and_says_why(earlier, monkeypatch, capfd):
    def train(folder, name, kind, processes, rank):
        if rank == 1:
            raise RuntimeError("no step was done")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(FIGURES))

    monkeypatch.setattr(sharding, "train", train)
    with pytest.raises(LlavaStfError, match=r"Process 1 of two ended with 1; see .*two-1\.log"):
        sharding.measure(earlier, "two", "apart", 2)
    assert "RuntimeError: no step was done" in capfd.readouterr().err
    assert sharding.measure(earlier, "two", "apart", 1) == ([1.0], 2.0, 1.0)
