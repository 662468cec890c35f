"""What the measuring commands are given and cannot use is a sentence, and exit code 2, before anything is measured."""

import importlib
import sys

import pytest

from llava_stf.io.command import run


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("divergence FOLDER --images 0", "--images: expected a whole number of at least 1, found '0'"),
        ("methods --shape 3b --output FOLDER/m.json", "--shape: invalid choice: '3b'"),
        ("methods --rounds 0 --output FOLDER/m.json", "--rounds: expected a whole number of at least 1"),
        ("training_memory --shape 3b", "--shape: invalid choice: '3b'"),
        ("training_memory --image-size 672", "expected height x width such as 672x672, found '672'"),
        ("training_memory --shape tiny --image-size 0x9", "height must be at least 1, found 0."),
        ("training_memory --shape tiny --frames 3", "A llava_next takes images alone"),
        ("export_speed --shape tiny --output FOLDER/e.json", "--shape: invalid choice: 'tiny'"),
        ("export_speed --new-tokens 1 --output FOLDER/e.json", "--new-tokens must be at least 2, found 1."),
        ("export_answers --only int3", "--only: invalid choice: 'int3'"),
        ("selection --count 3", "from 4 to 576 tokens, found --count 3."),
        ("selection --count 1000", "from 4 to 576 tokens, found --count 1000."),
        ("selection --repeats 0", "--repeats: expected a whole number of at least 1"),
        ("make_shape tiny FOLDER", "exists already and is not overwritten"),
        ("make_shape tiny FOLDER/new --layers -2", "--layers: expected a whole number of at least 1"),
        ("image_sources FOLDER/data.json FOLDER/new --noise --seed -1", "--seed: expected a whole number"),
        ("inversion FOLDER/data.json FOLDER/new --steps 0", "--steps: expected a whole number of at least 1"),
        ("conversation", "the following arguments are required: --before"),
        ("conversation --before FOLDER", "Expected a checkout of llava_stf in FOLDER"),
        ("conversation --before FOLDER --repeats 0", "repeats must be at least 1, found 0"),
        ("server_builds FOLDER", "Expected a checkout of llava_stf in FOLDER"),
        ("server_builds FOLDER --clients 0", "--clients: expected a whole number of at least 1"),
        ("server_soak --cases 0", "--cases: expected a whole number of at least 1"),
        ("sharding /proc/new", "/proc/new cannot be written to"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, monkeypatch, capsys, command, sentence):
    module, *arguments = command.replace("FOLDER", str(tmp_path)).split()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as stop:
        run(importlib.import_module(f"llava_stf_eval.measurement.{module}").main)
    assert stop.value.code == 2
    assert sentence.replace("FOLDER", str(tmp_path)) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_servers_are_given_names_with_values(tmp_path, monkeypatch, capsys):
    (tmp_path / "llava_stf").mkdir()
    (tmp_path / "llava_stf" / "__init__.py").touch()
    monkeypatch.setattr(sys, "argv", ["server_builds", str(tmp_path), "--server-arguments", "max-batch"])
    with pytest.raises(SystemExit) as stop:
        run(importlib.import_module("llava_stf_eval.measurement.server_builds").main)
    assert stop.value.code == 2
    assert "Expected pairs of name and value for the servers, found ['max-batch']" in capsys.readouterr().err
