"""apply_stf, apply_pooling and remove_stf on a loaded LLaVA."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_stf import LlavaStfForConditionalGeneration, LlavaStfProcessor, apply_pooling, apply_stf, remove_stf
from llava_stf.errors import CheckpointError, FusionError

PICTURE = Image.radial_gradient("L").convert("RGB")
PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture
def plain(plain_folder):
    return (
        LlavaForConditionalGeneration.from_pretrained(plain_folder).eval(),
        LlavaProcessor.from_pretrained(plain_folder),
    )


@torch.no_grad()
def logits(model, processor):
    return model(**processor(images=PICTURE, text=PROMPT, return_tensors="pt")).logits


@pytest.mark.parametrize("patch", [apply_stf, apply_pooling])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_removing_restores_every_bit(plain, patch, window):
    model, processor = plain
    before, config = logits(model, processor), model.config.to_dict()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert patch(model, processor, window=window) is model
    assert isinstance(model, LlavaStfForConditionalGeneration)
    assert isinstance(processor, LlavaStfProcessor)
    fused = processor(images=PICTURE, text=PROMPT, return_tensors="pt")["input_ids"]
    assert (fused == processor.image_token_id).sum() == (4 // window) ** 2
    logits(model, processor)
    remove_stf(model, processor)
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert torch.equal(logits(model, processor), before)
    assert model.config.to_dict() == config
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert model.state_dict().keys() == state.keys()


@pytest.mark.parametrize("window", [2, 4])
def test_default_start_equals_pooling(plain, window):
    model, processor = plain
    apply_pooling(model, processor, window=window)
    pooled = logits(model, processor)
    remove_stf(model, processor)
    apply_stf(model, processor, window=window)
    torch.testing.assert_close(logits(model, processor), pooled, atol=1e-5, rtol=0)


@torch.no_grad()
def test_window_of_one_keeps_the_outputs(plain):
    model, processor = plain
    inputs = processor(images=PICTURE, text=PROMPT, return_tensors="pt")
    before = model(**inputs).logits
    apply_stf(model, window=1)
    torch.testing.assert_close(model(**inputs).logits, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch", [apply_stf, apply_pooling])
def test_patched_model_saves_and_loads(plain, patch, tmp_path):
    model, processor = plain
    patch(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is LlavaStfForConditionalGeneration
    assert torch.equal(logits(again.eval(), AutoProcessor.from_pretrained(tmp_path)), logits(model, processor))


def test_random_start_is_seeded_and_leaves_the_global_generator_alone(plain):
    model, processor = plain
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    apply_stf(model, processor, init="random", seed=1)
    assert torch.equal(torch.rand(1), expected)
    one = logits(model, processor)
    remove_stf(model, processor)
    apply_stf(model, processor, init="random", seed=1)
    assert torch.equal(logits(model, processor), one)
    remove_stf(model, processor)
    apply_stf(model, processor, init="random", seed=2)
    assert not torch.equal(logits(model, processor), one)


def test_starts_from_an_adapter_file(plain, stf_folder, tmp_path):
    weights = load_file(stf_folder / "model.safetensors")
    adapter = {name: value for name, value in weights.items() if name.startswith("multi_modal_projector.")}
    save_file(adapter, tmp_path / "adapter.safetensors")
    model, processor = plain
    apply_stf(model, processor, init=tmp_path / "adapter.safetensors")
    for name, value in model.model.multi_modal_projector.state_dict().items():
        assert torch.equal(value, adapter[f"multi_modal_projector.{name}"])


def test_adapter_of_another_model_is_refused(plain, golden_stf):
    model, processor = plain
    before = logits(model, processor)
    with pytest.raises(CheckpointError, match="has shape"):
        apply_stf(model, processor, init=golden_stf / "mm_projector.bin")
    assert torch.equal(logits(model, processor), before)


def test_adapter_must_exist(plain):
    with pytest.raises(CheckpointError, match="'pool', 'random' or an adapter file"):
        apply_stf(plain[0], init="warm")


def test_a_failing_patch_changes_nothing(plain):
    model, processor = plain
    before = logits(model, processor)
    with pytest.raises(FusionError, match="fusion_window 3"):
        apply_stf(model, processor, window=3)
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert type(model.config) is LlavaConfig
    assert torch.equal(logits(model, processor), before)


def test_patching_twice_and_removing_from_a_loaded_model_are_refused(plain, stf_folder):
    apply_stf(plain[0])
    with pytest.raises(FusionError, match="plain LlavaForConditionalGeneration"):
        apply_stf(plain[0])
    with pytest.raises(FusionError, match="has changed in this process"):
        remove_stf(AutoModelForImageTextToText.from_pretrained(stf_folder))


def test_patched_model_trains(plain):
    model, processor = plain
    apply_stf(model, processor)
    inputs = processor(images=PICTURE, text=PROMPT, return_tensors="pt")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradients = [p.grad for p in model.model.multi_modal_projector.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_rows_without_a_token_are_not_generated_by_a_model_patched_with_its_processor(plain):
    model, processor = plain
    tokenizer, rows = processor.tokenizer, model.config.text_config.vocab_size
    model.resize_token_embeddings(rows + 8, mean_resizing=False)
    apply_stf(model, processor)
    inputs = processor(images=PICTURE, text=PROMPT, return_tensors="pt")
    with torch.no_grad():
        model.lm_head.weight[rows:] = 10 * model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        assert model(**inputs).logits[0, -1].argmax() >= len(tokenizer)
    new = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert new.max() < len(tokenizer)
