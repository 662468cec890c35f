"""Options of `llava-stf bench` that name nothing: a sentence, and nothing that was not asked for."""

import pytest

from llava_stf.cli import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["tasks", "--tasks", ","],
        ["tasks", "--tasks", "", "--fetch", "--data", "data"],
        ["turns", "--methods", " "],
        ["speed", "--methods", ","],
        ["speed", "--attention", ""],
        ["speed", "--dtype", ","],
    ],
)
def test_no_name_is_refused(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert "expected names with commas between, found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
