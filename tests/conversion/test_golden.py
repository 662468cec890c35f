"""The authors' own checkpoint, converted, gives the authors' own numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from llava_stf import convert_checkpoint, load_model
from llava_stf.models.llava_stf.chunks import tokenize_chunks

CASES = ["case_single", "case_two_images_one_prompt"]


@pytest.fixture(scope="module", params=["model.safetensors", "pytorch_model.bin"])
def converted(request, golden_stf, tmp_path_factory):
    """The checkpoint from one of its two forms; the pickle has its tower in another folder."""
    folder = tmp_path_factory.mktemp("golden")
    convert_checkpoint(golden_stf / request.param, folder / "hf", progress=False)
    return folder / "hf"


def expand(case, model):
    tokens = [model.config.image_token_id] * model.config.image_seq_length
    return [i for token in case["input_ids"][0].tolist() for i in (tokens if token == -200 else [token])]


@pytest.mark.parametrize("name", CASES)
def test_features_logits_and_greedy_ids(name, converted, golden_stf):
    model, _ = load_model(converted, dtype="float32", attn_implementation="eager", device="cpu")
    case = load_file(golden_stf / f"{name}.safetensors")
    ids = torch.tensor([expand(case, model)])
    vocab = case["logits"].shape[-1]
    with torch.no_grad():
        features = torch.stack(model.get_image_features(case["pixel_values"]).pooler_output)
        logits = model(input_ids=ids, pixel_values=case["pixel_values"]).logits[..., :vocab]
    torch.testing.assert_close(features, case["image_features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, case["logits"], atol=1e-4, rtol=0)
    new = model.generate(input_ids=ids, pixel_values=case["pixel_values"], max_new_tokens=8)[:, ids.shape[1] :]
    assert new.tolist() == case["generated_ids"].tolist()


def test_pixels_are_bit_equal(converted, golden_stf):
    case = load_file(golden_stf / "preprocess.safetensors")
    images = [case[f"image{i}.uint8_hwc"].numpy() for i in range(2)]
    processor = LlavaImageProcessorPil.from_pretrained(converted)
    assert np.array_equal(processor(images, return_tensors="np").pixel_values, case["pixel_values.pad"].numpy())


def test_square_mode_is_bit_equal(golden_stf, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(golden_stf, source, copy_function=shutil.copyfile)
    source.chmod(0o755)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": "square"}))
    convert_checkpoint(source, tmp_path / "dst", progress=False)
    case = load_file(golden_stf / "preprocess.safetensors")
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "dst")
    found = processor(case["image0.uint8_hwc"].numpy(), return_tensors="np").pixel_values
    assert np.array_equal(found, case["pixel_values.square"].numpy())


def test_there_and_back(converted, golden_stf, tmp_path):
    convert_checkpoint(converted, tmp_path / "back", to="original", progress=False)
    expected, found = load_file(golden_stf / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    tower, written = (load_file(f / "clip_tower" / "model.safetensors") for f in (golden_stf, tmp_path / "back"))
    assert tower.keys() == written.keys()
    config, former = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "back", golden_stf))
    free = {"_name_or_path", "tokenizer_model_max_length"}
    assert {name: config[name] for name in former if name not in free} == {
        name: value for name, value in former.items() if name not in free
    }


def test_a_tokenizer_of_another_vocabulary_is_left_out_with_a_note(golden_stf, tmp_path, caplog):
    convert_checkpoint(golden_stf, tmp_path / "dst", progress=False)
    assert "700 tokens and the model 128" in caplog.text
    assert not (tmp_path / "dst" / "tokenizer.json").exists()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("vocab", [700, 720])
def test_converted_tokenizers_give_the_authors_ids(legacy, vocab, golden_stf, original_class, tmp_path):
    """Also after the processor was saved and loaded again, and where the model has more rows than the tokenizer."""
    source = original_class.small(vocab=vocab).write(tmp_path / "src")
    config = json.loads((golden_stf / "tokenizer" / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": legacy}))
    shutil.copyfile(golden_stf / "tokenizer" / "tokenizer.model", source / "tokenizer.model")
    convert_checkpoint(source, tmp_path / "dst", progress=False)
    processor = load_model(tmp_path / "dst", device="cpu").processor
    processor.save_pretrained(tmp_path / "dst")
    again = load_model(tmp_path / "dst", device="cpu").processor

    cases = json.loads((golden_stf / "tokenization_cases.json").read_text())["inference_prompts"]
    key = f"input_ids_legacy_{str(legacy).lower()}"
    for tokenizer in (processor.tokenizer, again.tokenizer):
        assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [vocab, vocab + 1]
        assert (tokenizer.pad_token_id, tokenizer.padding_side) == (vocab + 1, "left")
        for case in cases:
            assert tokenize_chunks(tokenizer, case["prompt"], image_token_id=-200) == case[key]
        behind_end = tokenizer("</s>USER: hi", add_special_tokens=False).input_ids
        assert (len(behind_end) == len(tokenizer("USER: hi", add_special_tokens=False).input_ids)) is not legacy

    convert_checkpoint(tmp_path / "dst", tmp_path / "back", to="original", progress=False)
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["legacy"] is legacy
