"""Scoring on drawn images."""

import json
import sys

import pytest

from llava_stf import LlavaStf, load_model
from llava_stf.errors import LlavaStfError
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.world import is_right
from llava_stf_eval import drawn


class Oracle(LlavaStf):
    """Answers every question of the held-out images rightly, but for one family."""

    def __init__(self, llava, images, wrong):
        super().__init__(*llava)
        pairs = drawn.held_out(images, seed=0)
        self.answers = [question.answer if question.family != wrong else "?" for _, question in pairs]

    def ask_batch(self, pairs, **options):
        return [f" {self.answers.pop(0).capitalize()}. " for _ in pairs]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [(" Yes. ", "yes", True), ("A", "a", True), ("blue square", "blue", False), ("", "no", False), ("12", "12", True)],
)
def test_is_right(answer, reference, right):
    assert is_right(answer, reference) is right


def test_held_out_repeats_itself_and_depends_on_the_seed():
    one, again, other = (drawn.held_out(5, seed) for seed in (0, 0, 1))
    assert [question for _, question in one] == [question for _, question in again]
    assert [question for _, question in one] != [question for _, question in other]
    assert all(image.tobytes() == same.tobytes() for (image, _), (same, _) in zip(one, again, strict=True))


def test_held_out_of_some_families_on_larger_images():
    pairs = drawn.held_out(5, 0, side=224, families=("text", "presence"))
    assert {image.size for image, _ in pairs} == {(224, 224)}
    assert {question.family for _, question in pairs} == {"text", "presence"}


def test_tokens_are_those_of_all_tiles(tmp_path):
    model, processor = tiny_llava_next()
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    asked = {"images": 2, "side": 120, "families": ("text", "presence")}
    plain = drawn.evaluate("all", load_model(tmp_path, vision_tokens="all"), **asked)
    fused = drawn.evaluate("stf", load_model(tmp_path), **asked)
    assert (plain.vision_tokens, fused.vision_tokens) == (16 + 8 * 9, 4 + 4 * 5)
    assert set(plain.families) <= {"text", "presence"}


def test_shares_are_per_family(stf_folder):
    result = drawn.evaluate("oracle", Oracle(load_model(stf_folder), 40, "choice"), images=40, batch_size=7)
    assert result.families.pop("choice") == 0
    assert set(result.families.values()) == {1.0}
    assert 0.7 < result.accuracy < 1
    assert (result.vision_tokens, result.questions) == (4, len(drawn.held_out(40, 0)))
    assert result.first_token_seconds > 0


def test_command_writes_the_results(stf_folder, plain_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    arguments = ["--full", str(plain_folder), "--model", str(stf_folder), "--images", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["drawn", *arguments])
    drawn.main()
    full, fused = json.loads(output.read_text())
    assert (full["vision_tokens"], fused["vision_tokens"]) == (16, 4)
    assert "ms to first token" in capsys.readouterr().out


def test_images_without_a_question_of_the_families_are_refused():
    with pytest.raises(LlavaStfError, match="the first 1 images of seed 1 have no question of text; ask more"):
        drawn.held_out(1, 1, families=("text",))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "nowhere/x", "--output", "/proc/self/a.json"], "/proc/self cannot be written to"),
        (["--model", "tiny", "--vision-tokens", "64"], "models take --budget"),
        (["--full", "tiny-full", "--budget", "16"], "methods take --vision-tokens"),
        (["--model", "tiny", "--option", "order=raster"], "--option is of each --method"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(arguments, named, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["drawn", *arguments])
    with pytest.raises(LlavaStfError, match=named):
        drawn.main()
