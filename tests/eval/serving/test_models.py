"""Models as they are served: without an end, at the asked number of tokens, the original untouched."""

import pytest
import torch
from PIL import Image

from llava_stf.errors import CheckpointError, FusionError, LlavaStfError
from llava_stf.loading import load_model
from llava_stf_eval.serving.models import parse, prepare, prepare_shape

IMAGE = Image.new("RGB", (112, 112), "red")


def test_a_name_may_say_its_tokens() -> None:
    assert parse("tiny-full:all") == ("tiny-full", "all")
    assert parse("owner/name:144") == ("owner/name", 144)
    assert parse("runs/mine") == ("runs/mine", None)
    assert parse("runs/odd:name") == ("runs/odd:name", None)
    assert parse("runs/odd:0") == ("runs/odd:0", None)


def test_all_tokens_are_those_of_the_plain_model_and_answers_do_not_end(tmp_path) -> None:
    model = prepare("tiny-full:all", tmp_path / "model")
    assert (model.name, model.vision_tokens) == ("tiny-full:all", 64)
    copy, plain = load_model(model.folder, dtype="float32"), load_model("tiny-full", dtype="float32")
    assert copy.vision_tokens == 64
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
    inputs = plain.encode([turn], [[IMAGE]])
    torch.testing.assert_close(
        copy.model(**copy.encode([turn], [[IMAGE]])).logits, plain.model(**inputs).logits, atol=1e-4, rtol=1e-4
    )  # float32; the projector is the same, in another class
    new = copy.generate(inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert len(new) == 40
    assert copy.processor.tokenizer.eos_token_id not in new
    assert len(plain.generate(inputs, max_new_tokens=40)[0]) < inputs["input_ids"].shape[1] + 40


def test_a_quarter_of_a_plain_model_is_saved_as_such(tmp_path) -> None:
    model = prepare("tiny-full:16", tmp_path / "model")
    assert model.vision_tokens == load_model(model.folder).vision_tokens == 16


def test_weights_of_a_saved_model_are_linked_and_the_original_stays(stf_folder, tmp_path) -> None:
    before = {file.name: file.read_bytes() for file in stf_folder.iterdir()}
    model = prepare(str(stf_folder), tmp_path / "model")
    assert model.vision_tokens == 4
    assert (model.folder / "model.safetensors").resolve() == (stf_folder / "model.safetensors").resolve()
    assert {file.name: file.read_bytes() for file in stf_folder.iterdir()} == before
    assert load_model(model.folder).ask(IMAGE, "What is shown?", max_new_tokens=3)


@pytest.mark.parametrize(("tokens", "count"), [("all", 64), (None, 16)])
def test_random_weights_answer_in_words_to_the_last_token(tmp_path, tokens, count) -> None:
    model = prepare_shape("tiny", tokens, tmp_path / "model")
    assert (model.name, model.vision_tokens) == (f"tiny:{count}", count)
    llava = load_model(model.folder, vision_tokens=count)
    inputs = llava.encode([[_turn("What is shown here?")]], [[IMAGE]])
    ids = inputs["input_ids"][0]
    assert (ids == llava.model.config.image_token_id).sum() == count
    assert len(ids) - count < 64  # text, as in llava-stf bench speed
    new = llava.generate(inputs, max_new_tokens=12)[0, len(ids) :]
    assert len(new) == 12
    assert llava.processor.tokenizer.decode(new).strip()


def test_what_cannot_be_prepared_is_said(tmp_path, stf_folder) -> None:
    with pytest.raises(LlavaStfError, match=r"shape must be one of .*medium.*, found 'huge'"):
        prepare_shape("huge", None, tmp_path / "a")
    with pytest.raises(FusionError):
        prepare("tiny-full:17", tmp_path / "b")
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError):
        prepare(str(tmp_path / "bare"), tmp_path / "c")


def _turn(text: str) -> dict:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
