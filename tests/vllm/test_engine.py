"""vLLM's engine on folders of every kind: several token counts, both generations of names, other towers and fusions."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    ViTConfig,
)

from llava_stf import apply_pooling, apply_stf, load_model
from llava_stf.loading.testing import write_tiny_llava

from .conftest import Reference, answers, engine, request

QUESTION = "How many shapes are there?"


def saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_budgets(tmp_path_factory):
    """The embedded plain model made for 16 and 4 tokens; its fused weights are off the warm start's symmetry."""
    model, processor = load_model("tiny-full", dtype="float32", device="cpu")
    apply_stf(model, processor, window=[2, 4])
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return saved(model, processor, tmp_path_factory.mktemp("two_budgets"))


@pytest.fixture(scope="module")
def two_budget_engine(two_budgets):
    with engine(two_budgets, block_size=32) as llm:
        yield llm


def budget(count):
    return {"mm_processor_kwargs": {"vision_tokens": count}}


def test_each_request_has_its_own_count(two_budgets, two_budget_engine, pictures):
    """In one batch, the same pictures at both counts; and once more, when all of them are cached."""
    reference = Reference(two_budgets)
    groups = [[pictures[0]], [pictures[1]], pictures[2:4]]
    counts = [None, 4, 16]
    cases = [(group, count) for group in groups for count in counts]
    requests = [
        request(reference.prompt(QUESTION, len(group)), group, **({} if count is None else budget(count)))
        for group, count in cases
    ]
    expected = [reference.ids(reference.prompt(QUESTION, len(group)), group, count) for group, count in cases]
    assert len({tuple(prompt) for prompt, _ in expected}) == 4
    assert answers(two_budget_engine, requests) == expected
    assert answers(two_budget_engine, requests) == expected


def test_an_unknown_count_is_refused(two_budgets, two_budget_engine, pictures):
    prompt = Reference(two_budgets).prompt(QUESTION)
    with pytest.raises(ValueError, match="trained for 16 or 4 vision tokens and cannot give 64"):
        answers(two_budget_engine, [request(prompt, [pictures[0]], **budget(64))])
    assert len(answers(two_budget_engine, [request(prompt, [pictures[0]])])) == 1


def test_adapters_on_the_tower_know_its_rows(two_budget_engine):
    def counts(model):
        item = {"modality": "image", "num_mm_embeds": 4}
        return model.get_mm_lora_token_counts(mm_kwargs={}, **item), model.get_mm_lora_token_counts(
            mm_kwargs=None, **{**item, "num_mm_embeds": 64}
        )

    assert two_budget_engine.apply_model(counts) == [((65, None), (16 * 65, None))]


def test_older_names_and_no_prefix_caching(tiny_folder, reference, pictures, tmp_path):
    """Files of older versions of transformers have a level more in the names of the tower."""
    folder = tmp_path / "older"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    names = {name: name.replace("vision_tower.", "vision_tower.vision_model.") for name in weights}
    assert sum(name != older for name, older in names.items()) > 50
    save_file({names[name]: weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    groups = [[pictures[0]], [pictures[1]], pictures[2:5], [pictures[0]]]
    requests = [request(reference.prompt(QUESTION, len(group)), group) for group in groups]
    with engine(folder, enable_prefix_caching=False, block_size=32) as llm:
        found = answers(llm, requests)
    assert found == [reference.ids(reference.prompt(QUESTION, len(group)), group) for group in groups]


def test_pooling_on_a_siglip_tower(tmp_path, pictures):
    folder = write_tiny_llava(tmp_path / "plain", stf=False)
    processor = load_model(folder, vision_tokens="all").processor
    config = AutoConfig.from_pretrained(folder)
    sizes = {"intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = SiglipVisionConfig(image_size=56, patch_size=14, hidden_size=16, **sizes)
    vocabulary = {"vocab_size": config.text_config.vocab_size, "max_position_embeddings": 512}
    text = LlamaConfig(hidden_size=64, initializer_range=0.2, **vocabulary, **sizes)  # heads of 32, the least on a CPU
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=text,
            image_token_index=config.image_token_index,
            image_seq_length=16,
            vision_feature_select_strategy="full",
        )
    )
    apply_pooling(model.eval(), processor, window=[2, 1])
    folder = saved(model, processor, tmp_path / "pooled")
    reference = Reference(folder)
    groups = [[pictures[0]], pictures[1:3]]
    prompts = [reference.prompt("Go", len(group)) for group in groups]
    requests = [request(prompt, group, **budget(16)) for prompt, group in zip(prompts, groups, strict=True)]
    requests += [request(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]
    expected = [
        reference.ids(prompt, group, count) for count in (16, 4) for prompt, group in zip(prompts, groups, strict=True)
    ]
    with engine(folder, block_size=32) as llm:
        assert answers(llm, requests) == expected


def test_a_tower_that_vllm_does_not_have(tmp_path):
    from vllm.config import ModelConfig

    folder = write_tiny_llava(tmp_path / "vit")
    config = AutoConfig.from_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config.vision_config = ViTConfig(image_size=56, patch_size=14, **sizes)
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match="clip_vision_model and siglip_vision_model, found vit"):
        ModelConfig(str(folder))
