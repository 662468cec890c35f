"""Model cards: made from what the files tell, by whatever saves a model, never over a user's own."""

import errno
import os

import pytest
from huggingface_hub import ModelCard

from llava_stf import convert_checkpoint, load_model
from llava_stf.cli import main
from llava_stf.errors import LlavaStfError
from llava_stf.models.model_card import write_card


def test_saving_makes_a_card_of_what_the_config_tells(stf_folder, tmp_path):
    load_model(stf_folder).model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert "llava_stf" in card.data.tags
    assert "| vision tokens per image | 4 of 16 |" in card.text
    assert "Not measured." in card.text


def test_converting_names_the_base_if_it_is_on_the_hub_and_no_path_of_this_machine(stf_folder, tmp_path):
    folder = convert_checkpoint(stf_folder, tmp_path / "dst", progress=False)
    text = (folder / "README.md").read_text()
    assert str(stf_folder.parent) not in text
    assert stf_folder.name in text
    assert write_card(folder, base="llava-hf/llava-1.5-7b-hf", license="llama2", training={"stage": "align"})
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.license) == ("llava-hf/llava-1.5-7b-hf", "llama2")
    assert "| stage | align |" in card.text


@pytest.mark.parametrize("edit", ["# Mine\n", None])
def test_a_card_of_the_users_own_stays(edit, stf_folder, tmp_path, capsys):
    model = load_model(stf_folder).model
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(edit or card.read_text().replace("Not measured.", "Splendid."))
    before = card.read_text()
    model.save_pretrained(tmp_path)
    assert not write_card(tmp_path)
    assert main(["card", str(tmp_path)]) == 2
    assert "is not replaced" in capsys.readouterr().err
    assert card.read_text() == before


def test_a_card_that_cannot_be_written_leaves_the_old_one_whole(stf_folder, tmp_path, monkeypatch):
    load_model(stf_folder).model.save_pretrained(tmp_path)
    assert write_card(tmp_path)
    before = (tmp_path / "README.md").read_text()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LlavaStfError, match=r"README\.md cannot be written: No space left"):
        write_card(tmp_path, measured="New.")
    assert (tmp_path / "README.md").read_text() == before


def test_the_command_writes_what_was_measured(stf_folder, tmp_path, capsys):
    load_model(stf_folder).model.save_pretrained(tmp_path)
    (tmp_path / "table.md").write_text("| task | accuracy |\n| --- | --- |\n| drawn | 0.5 |\n")
    measured = ["--measured", str(tmp_path / "table.md")]
    assert main(["card", str(tmp_path), "--base", "a/b", "--license", "mit", *measured]) == 0
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("a/b", "mit")
    assert "| drawn | 0.5 |" in card.text
    assert main(["card", str(tmp_path / "nothing")]) == 2
    assert "config.json" in capsys.readouterr().err
