"""The processor: token counts, ids per chunk, padding, and the markers it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoProcessor, LlavaImageProcessorPil

from llava_stf import LlavaStfProcessor
from llava_stf.errors import PromptError

PICTURE = Image.new("RGB", (90, 40), (200, 30, 60))


@pytest.fixture(scope="module")
def processor(stf_folder):
    return AutoProcessor.from_pretrained(stf_folder)


@pytest.mark.parametrize(("window", "tokens"), [(1, 16), (2, 4), (4, 1)])
def test_an_image_takes_one_id_per_window(stf_folder, window, tokens):
    processor = AutoProcessor.from_pretrained(stf_folder, fusion_window=window)
    ids = processor(images=PICTURE, text="USER: <image>\nhi ASSISTANT:")["input_ids"][0]
    assert ids.count(processor.image_token_id) == tokens
    first = ids.index(processor.image_token_id)
    assert ids[first : first + tokens] == [processor.image_token_id] * tokens


def test_chunks_are_tokenised_on_their_own(processor):
    ids = processor(images=PICTURE, text="USER: <image>\nhi")["input_ids"][0]
    chunks = [processor.tokenizer(chunk, add_special_tokens=False)["input_ids"] for chunk in ("USER: ", "\nhi")]
    assert ids == [processor.tokenizer.bos_token_id, *chunks[0], *[processor.image_token_id] * 4, *chunks[1]]


def test_saving_keeps_the_window(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, LlavaStfProcessor)
    assert (again.fusion_window, again.patch_size) == (2, 14)
    assert json.loads((tmp_path / "processor_config.json").read_text())["fusion_window"] == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(processor, side):
    texts = ["<image>\nA", "<image>\nA longer one"]
    batch = processor(images=[PICTURE] * 2, text=texts, padding=True, padding_side=side, return_tensors="pt")
    alone = processor(images=PICTURE, text=texts[0], return_tensors="pt")["input_ids"][0]
    kept = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert torch.equal(kept, alone)
    assert batch["attention_mask"][0, -1 if side == "left" else 0] == 1
    assert batch["attention_mask"][0, 0 if side == "left" else -1] == 0
    assert batch["pixel_values"].shape == (2, 3, 56, 56)


def test_text_alone(processor):
    batch = processor(text="USER: hi ASSISTANT:", return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        ([PICTURE, PICTURE], "<image>\nhi", "found 1 markers in the text and 2 images"),
        (None, "<image>\nhi", "found 1 markers in the text and 0 images"),
        ([PICTURE], "hi", "found 0 markers in the text and 1 images"),
        ([[PICTURE, PICTURE], [PICTURE]], ["<image>a", "<image><image>b"], "found 1 markers and 2 images in prompt 0"),
        (None, None, "found neither"),
    ],
)
def test_markers_and_images_must_match(processor, images, text, message):
    with pytest.raises(PromptError, match=message):
        processor(images=images, text=text)


def test_prompts_are_never_cut(processor):
    with pytest.raises(PromptError, match="max_length is 10"):
        processor(images=PICTURE, text="<image>\n" + "word " * 20, truncation=True, max_length=10)


def test_chat_template_tokenised_in_one_call(processor):
    messages = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    together = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    apart = processor(images=PICTURE, text=prompt, return_tensors="pt")
    assert torch.equal(together["input_ids"], apart["input_ids"])
    assert torch.equal(together["pixel_values"], apart["pixel_values"])


def test_tokens_of_an_image_size(processor):
    assert processor._get_num_multimodal_tokens(image_sizes=[[300, 200], [10, 10]]).num_image_tokens == [4, 4]


def test_pad_mode_equals_the_authors_preprocessing(golden_stf):
    reference = load_file(golden_stf / "preprocess.safetensors")
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    pictures = [Image.fromarray(reference[f"image{i}.uint8_hwc"]) for i in (0, 1)]
    pad = LlavaImageProcessorPil(do_pad=True, **size)(pictures, return_tensors="np")["pixel_values"]
    square = LlavaImageProcessorPil(**size)(pictures[:1], return_tensors="np")["pixel_values"]
    assert np.array_equal(pad, reference["pixel_values.pad"])
    assert np.array_equal(square, reference["pixel_values.square"])
