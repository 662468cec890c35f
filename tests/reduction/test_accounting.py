"""Token accounting: what hooks on the layers see is what a method says, what is counted, and what the cache holds."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_stf.analysis.counting import count
from llava_stf.errors import FusionError
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.reduction import METHODS, apply_reduction, check_reduction, remove_reduction

SIDE, LAYERS, TEXT, IMAGE = 6, 6, 7, 99
PATCHES = SIDE**2


@cache
def model():
    """Six blocks on 6x6 patches, six layers."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=14 * SIDE,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    ).eval()


def possible(name, vision_tokens):
    """Whether the method can be had at that budget."""
    try:
        check_reduction(model().config, name, vision_tokens)
    except FusionError:
        return False
    return True


def prompts(places, images, rows):
    """Right-padded prompts of that many images with text before, between and behind them, and their mask."""
    one = [1, 2]
    for image in range(images):
        one += [IMAGE] * places + [3 + image]
    one += [9] * (TEXT - len(one) + places * images)
    return torch.tensor([one] * rows), torch.ones(rows, len(one), dtype=torch.long)


@torch.no_grad()
def seen_by_hooks(llava, ids, mask, pixels):
    """Positions that each layer works on in the pass that reads the prompt, and those that its cache holds."""
    lengths = []
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
        )
        for layer in llava.model.language_model.layers
    ]
    try:
        cached = llava(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=True)[CACHE]
    finally:
        for handle in handles:
            handle.remove()
    return lengths, [layer.keys.shape[2] for layer in cached.layers]


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=8)
@given(vision_tokens=st.integers(1, PATCHES), images=st.integers(1, 2), rows=st.integers(1, 2))
def test_hooks_see_what_is_said(name, vision_tokens, images, rows):
    llava, method = model(), METHODS[name]
    if not possible(name, vision_tokens):
        with pytest.raises(FusionError):
            apply_reduction(llava, None, method, vision_tokens=vision_tokens)
        return
    said = method.vision_tokens_per_layer(LAYERS, PATCHES, vision_tokens)
    apply_reduction(llava, None, method, vision_tokens=vision_tokens)
    try:
        ids, mask = prompts(method.prompt_tokens(PATCHES, vision_tokens), images, rows)
        pixels = torch.randn(images * rows, 3, 14 * SIDE, 14 * SIDE, generator=torch.Generator().manual_seed(0))
        lengths, cached = seen_by_hooks(llava, ids, mask, pixels)
        counted = count(llava.config, said, text_tokens=TEXT, images=images)
    finally:
        remove_reduction(llava)
    assert lengths == cached == list(counted.llm_tokens) == [images * tokens + TEXT for tokens in said]
    assert list(counted.vision_tokens) == [images * tokens for tokens in said]
    assert counted.mean_vision_tokens == pytest.approx(images * method.mean_tokens(LAYERS, PATCHES, vision_tokens))
    assert said[-1] == vision_tokens


@pytest.mark.parametrize("name", METHODS)
def test_some_budgets_are_possible(name):
    """So that the property above is not one of refusals alone."""
    assert sum(possible(name, vision_tokens) for vision_tokens in range(1, PATCHES + 1)) >= 4
