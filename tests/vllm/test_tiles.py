"""LLaVA-NeXT and LLaVA-OneVision on vLLM: images of any sizes in one batch, counted and answered as by transformers."""

import numpy as np
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
def folder(request, tmp_path_factory):
    """A model for 2x2 and 4x4 windows, or 2x2 and whole tiles, its newline and weights off any symmetry."""
    model, processor = MODELS[request.param](width=64)
    apply_stf(model, processor, window=[2, 4] if request.param == "llava_next" else [2, 5])
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in [*model.model.multi_modal_projector.parameters(), model.model.image_newline]:
            weight += 0.05 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="module")
def llm(folder):
    with engine(folder, block_size=32, limit_mm_per_prompt={"image": 3}, max_model_len=1024) as llm:
        yield llm


def test_sizes_budgets_and_groups_in_one_batch(llm, reference, images):
    """All alone, then in twos and threes, at both budgets; and once more, when all of them are cached."""
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
    assert len({tuple(answer) for _, answer in expected}) > 15
    assert answers(llm, requests) == expected
    assert answers(llm, requests) == expected


def test_pixels_are_those_of_pillow(llm, reference, images):
    """Where torchvision is installed, as here, transformers would take its own, which differ by more than rounding."""
    from vllm import SamplingParams

    prompt, params = reference.prompt("Go"), SamplingParams(temperature=0, max_tokens=1, logprobs=5)
    outputs = llm.generate([request(prompt, [image]) for image in images], params, use_tqdm=False)
    for image, output in zip(images, outputs, strict=True):
        inputs = reference.processor(images=image, text=prompt, return_tensors="pt")
        with torch.no_grad():
            expected = reference.model(**inputs).logits[0, -1]
        found = {token: value.logprob for token, value in output.outputs[0].logprobs[0].items()}
        differences = [logprob - float(expected[token]) for token, logprob in found.items()]
        # The ids that are never generated are left out of vLLM's logarithm, which adds the same to all of them. Up to
        # 2e-5 between the two builds, and up to 5e-2 with the other pixels.
        assert max(differences) - min(differences) < 1e-3


def test_an_image_that_was_alone_comes_beside_another(llm, reference, images):
    """The second of two is cached as it was alone, which for LLaVA-OneVision is in tiles; and the other way round."""
    for group in ([images[6]], [images[5], images[6]], [images[4], images[5]], [images[4]]):
        prompt = reference.prompt("Look", len(group))
        assert answers(llm, [request(prompt, group)]) == [reference.ids(prompt, group)]


def test_videos(llm, reference, images):
    """Of several lengths in one batch, beside an image, at both budgets; for LLaVA-NeXT none."""
    from vllm.exceptions import VLLMValidationError

    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (frames, 50, 70, 3), dtype=np.uint8) for frames in (1, 3, 8)]
    if not hasattr(reference.model.config, "video_token_id"):
        with pytest.raises(VLLMValidationError, match="At most 0 video"):
            answers(llm, [{"prompt": "Go", "multi_modal_data": {"video": clips[0]}}])
        return
    least = min(reference.model.config.vision_token_counts)
    requests, expected = [], []
    for clip, image, count in [(clips[0], None, None), (clips[1], images[1], None), (clips[2], None, least)]:
        shown = [] if image is None else [image]
        prompt = reference.prompt("Go", len(shown), videos=1)
        data = {"video": clip, **({"image": shown} if shown else {})}
        options = {} if count is None else {"mm_processor_kwargs": {"vision_tokens": count}}
        requests.append({"prompt": prompt, "multi_modal_data": data, **options})
        expected.append(reference.ids(prompt, shown, count, videos=[clip]))
    assert answers(llm, requests) == expected
    with pytest.raises(ValueError, match=r"A video of 500 frames has .* send fewer frames"):
        answers(llm, [{**requests[0], "multi_modal_data": {"video": np.zeros((500, 8, 8, 3), dtype=np.uint8)}}])
    with pytest.raises(ValueError, match="found 1 markers in the text and 2 videos"):
        answers(llm, [{**requests[0], "multi_modal_data": {"video": clips[:2]}}])


def test_control_tokens_in_a_message_are_text(llm, reference, images):
    """Quoted while the checkpoint's own template is filled; the template's stay what they are."""
    from vllm import SamplingParams

    from llava_stf import LlavaStf

    question = "What ends with </s> or <|im_end|> or [INST]?"
    content = [{"type": "image_pil", "image_pil": images[0]}, {"type": "text", "text": question}]
    params = SamplingParams(temperature=0, max_tokens=8)
    output = llm.chat([{"role": "user", "content": content}], params, use_tqdm=False)[0]
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    expected = LlavaStf(reference.model, reference.processor).encode([asked], [[images[0]]])["input_ids"][0].tolist()
    assert list(output.prompt_token_ids) == expected
    end = reference.processor.tokenizer.eos_token
    assert end in reference.processor.tokenizer.decode(expected)  # in characters
    assert expected.count(reference.processor.tokenizer.eos_token_id) == (end == "<|im_end|>")
