"""Exports that another run of the measurement made are taken if they are whole and of the same model."""

import argparse
import json

import pytest

from llava_stf.errors import ExportError, LlavaStfError
from llava_stf_eval.measurement import export_speed

OPTIONS = argparse.Namespace(shape="tiny", layers=None, blocks=None)


def test_a_folder_of_something_else_is_refused_and_one_of_the_same_taken(tmp_path):
    with pytest.raises(ExportError, match="holds no exports of this command"):
        export_speed.prepare(OPTIONS, tmp_path)
    about = {"shape": "tiny", "layers": 4, "blocks": 6}
    for name, other in (("shape", "medium"), ("layers", 2), ("blocks", 2)):
        (tmp_path / "about.json").write_text(json.dumps(about | {name: other}))
        with pytest.raises(ExportError, match=f"Expected exports of .*'{name}': .* found .*'{name}': {other!r}"):
            export_speed.prepare(OPTIONS, tmp_path)
    (tmp_path / "about.json").write_text(json.dumps(about))
    export_speed.prepare(OPTIONS, tmp_path)


def test_exports_that_could_not_be_made_leave_no_folder(tmp_path, monkeypatch, capfd):
    def build(*arguments):
        raise MemoryError("no memory left")

    monkeypatch.setattr(export_speed, "build", build)
    folder = tmp_path / "not" / "there"
    with pytest.raises(LlavaStfError, match="ended with 1"):
        export_speed.prepare(OPTIONS, folder)
    assert "no memory left" in capfd.readouterr().err
    assert not folder.exists()
