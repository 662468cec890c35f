"""Methods that are published for tiles, on the tiles of a LLaVA-NeXT: each as it would be alone, and counted alike."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from llava_stf import remove_stf
from llava_stf.errors import FusionError
from llava_stf.inference import LlavaStf
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_onevision
from llava_stf.models.fusion.budget import budget_per_image
from llava_stf.reduction import METHODS, apply_reduction
from llava_stf.reduction.model import TrainingFreeMethod

EACH = ["visionzip", "random"]
TILED = [*EACH, "divprune"]


def images():
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy())
        for height, width in ((60, 150), (56, 56), (300, 8))
    ]


def square(model):
    """A LLaVA-1.5 out of the parts of a LLaVA-NeXT."""
    config = model.config
    plain = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config, text_config=config.text_config, image_seq_length=16,
            image_token_index=config.image_token_index,
        )
    ).eval()  # fmt: skip
    plain.model.vision_tower = model.model.vision_tower
    plain.model.multi_modal_projector = model.model.multi_modal_projector
    return plain


@pytest.mark.parametrize("method", EACH)
def test_each_tile_has_the_tokens_that_it_has_as_an_image(method):
    model, processor = tiny_llava_next()
    plain = apply_reduction(square(model), None, method, vision_tokens=6)
    apply_reduction(model, processor, method, vision_tokens=6)
    inputs = processor(images=images(), text="<image>a<image>b<image>", return_tensors="pt")
    with torch.inference_mode():
        found = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True).pooler_output
        for tokens, tiles in zip(found, inputs["pixel_values"], strict=True):
            alone = plain.get_image_features(tiles[: len(tokens) // 6], return_dict=True).pooler_output
            torch.testing.assert_close(tokens, torch.cat(list(alone)), rtol=1e-4, atol=1e-4)
        model(**inputs)
    places = int((inputs["input_ids"] == model.config.image_token_id).sum())
    sizes = [(image.height, image.width) for image in images()]
    assert places == sum(map(len, found)) == sum(model.config.num_image_tokens(sizes))


@torch.inference_mode()
def test_divprune_chooses_among_the_joined_tiles_and_their_newlines():
    model, processor = tiny_llava_next()
    whole = processor(images=images(), text="<image>a<image>b<image>", return_tensors="pt")
    plain = model.get_image_features(whole["pixel_values"], whole["image_sizes"], return_dict=True).pooler_output
    apply_reduction(model, processor, "divprune", vision_tokens=6)
    inputs = processor(images=images(), text="<image>a<image>b<image>", return_tensors="pt")
    found = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True).pooler_output
    for tokens, before in zip(found, plain, strict=True):
        unit = torch.nn.functional.normalize(before, dim=-1)
        distance = 1 - unit @ unit.T
        chosen = [int(distance.fill_diagonal_(9.0).amin(0).argmax())]
        while len(chosen) < round(6 / 16 * len(before)):
            gap = distance[chosen].amin(0)
            gap[chosen] = -1
            chosen.append(int(gap.argmax()))
        torch.testing.assert_close(tokens, before[sorted(chosen)], rtol=0, atol=0)
    sizes = [(image.height, image.width) for image in images()]
    places = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert places == sum(map(len, found)) == sum(model.config.num_image_tokens(sizes))


def test_processor_and_config_count_alike_for_any_size():
    rng = np.random.default_rng(0)
    sizes = [(int(height), int(width)) for height, width in rng.integers(1, 900, (500, 2))]
    for count in (1, 5, 16):
        model, processor = tiny_llava_next()
        plain = processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
        apply_reduction(model, processor, "divprune", vision_tokens=count)
        expected = [max(1, round(count * tokens / 16)) for tokens in plain]
        assert model.config.num_image_tokens(sizes) == processor.num_image_tokens(sizes) == expected


@pytest.mark.parametrize("method", TILED)
def test_it_answers_and_is_undone(method):
    model, processor = tiny_llava_next()
    inputs = processor(images=images()[0], text="<image>What?", return_tensors="pt")
    with torch.inference_mode():
        before = model(**inputs).logits
    apply_reduction(model, processor, method, vision_tokens=3)
    llava = LlavaStf(model, processor)
    assert budget_per_image(model.config) == 3
    answer = llava.ask(images()[0], "What?", max_new_tokens=3)
    rows = [(images()[0], "What?"), (images()[:2], "Which of the two?")]
    assert llava.ask_batch(rows, max_new_tokens=3)[0] == answer
    with pytest.raises(FusionError, match="no checkpoint can hold"):
        model.save_pretrained("nowhere")
    remove_stf(model, processor)
    assert type(model) is LlavaNextForConditionalGeneration
    again = processor(images=images()[0], text="<image>What?", return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(model(**again).logits, before)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if isinstance(kind, TrainingFreeMethod)])
def test_others_and_other_classes_are_refused(method):
    model, processor = tiny_llava_onevision() if method in TILED else tiny_llava_next()
    with pytest.raises(FusionError, match="cuts images into tiles"):
        apply_reduction(model, processor, method, vision_tokens=4)
