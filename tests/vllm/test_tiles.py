"""LLaVA-NeXT and LLaVA-OneVision on vLLM: images of any sizes in one batch, counted and answered as by transformers."""

import pytest
import torch
from PIL import Image

from llava_stf import apply_stf
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_onevision

from .conftest import Reference, answers, engine, request

SIZES = [(80, 60), (300, 20), (56, 56), (40, 190), (500, 6), (1, 1), (700, 400)]  # width, height; thin ones among them
MODELS = {"llava_next": tiny_llava_next, "llava_onevision": tiny_llava_onevision}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator) for w, h in SIZES]
    return [Image.fromarray(array.numpy()) for array in pixels]


@pytest.fixture(scope="module", params=MODELS)
def tiled(request, tmp_path_factory):
    """A model for 2x2 and 4x4 windows, or 2x2 and whole tiles, its newline and weights off any symmetry."""
    model, processor = MODELS[request.param](heads=1)
    apply_stf(model, processor, window=[2, 4] if request.param == "llava_next" else [2, 5])
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in [*model.model.multi_modal_projector.parameters(), model.model.image_newline]:
            weight += 0.05 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_sizes_budgets_and_groups_in_one_batch(tiled, images):
    """All alone, then in twos and threes, at both budgets; and once more, when all of them are cached."""
    reference = Reference(tiled)
    groups = [[image] for image in images] + [images[:2], images[2:5], [images[0], images[0]]]
    least = min(reference.model.config.vision_token_counts)
    cases = [(group, count) for group in groups for count in (None, least)]
    prompts = [reference.prompt("Go", len(group)) for group, _ in cases]
    options = [{} if count is None else {"mm_processor_kwargs": {"vision_tokens": count}} for _, count in cases]
    requests = [
        request(prompt, group, **option) for prompt, (group, _), option in zip(prompts, cases, options, strict=True)
    ]
    expected = [reference.ids(prompt, *case) for prompt, case in zip(prompts, cases, strict=True)]
    assert len({len(prompt) for prompt, _ in expected}) >= 10
    with engine(tiled, block_size=32, limit_mm_per_prompt={"image": 3}, max_model_len=1024) as llm:
        assert answers(llm, requests) == expected
        assert answers(llm, requests) == expected
