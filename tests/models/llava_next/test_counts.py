"""Counts from sizes: processor, config and the model's features agree for any image, and with transformers' own."""

import random

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import LlavaNextConfig, LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava_stf import LlavaNextStfConfig, LlavaNextStfModel, LlavaNextStfProcessor
from llava_stf.errors import FusionError, PromptError
from llava_stf.loading.testing import tiny_tokenizer
from llava_stf.models.fusion.budget import budget_per_image, num_image_tokens, token_budgets
from llava_stf.models.fusion.tiles import image_area, number_of_tiles

PUBLISHED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ODD = [[336, 1008], [1008, 1008], [1008, 336], [336, 336], [1680, 336]]  # 3, 9, 3, 1 and 5 tiles


def processor_for(pinpoints, patch_size=14, kind=LlavaNextStfProcessor, **options):
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=pinpoints
    )
    return kind(
        images, tiny_tokenizer(), patch_size=patch_size, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, **options,
    )  # fmt: skip


def random_sizes(count, seed=0):
    """Height and width from 1 to 4000 px, half of them of one order of magnitude, so that thin ones are there."""
    rng = random.Random(seed)
    even = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(count // 2)]
    return even + [(round(10 ** rng.uniform(0, 3.6)), round(10 ** rng.uniform(0, 3.6))) for _ in range(count // 2)]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 6, 12, 24])
@pytest.mark.parametrize("pinpoints", [PUBLISHED, ODD])
def test_processor_config_and_features_agree_for_any_size(window, pinpoints):
    config = LlavaNextStfConfig(fusion_window=window, image_grid_pinpoints=pinpoints)
    processor = processor_for(pinpoints, fusion_window=window)
    with torch.device("meta"):
        model = LlavaNextStfModel.__new__(LlavaNextStfModel)
        torch.nn.Module.__init__(model)
    model.config = config
    sizes = random_sizes(600, seed=window)
    counts = processor.num_image_tokens(sizes)
    assert counts == num_image_tokens(config, sizes)
    tokens = (24 // window) ** 2
    features = [torch.empty(number_of_tiles(size, pinpoints, 336), tokens, 1, device="meta") for size in sizes]
    packed, lengths = model.pack_image_features(features, sizes, "default", torch.empty(1, device="meta"))
    assert [len(image) for image in packed] == counts
    assert window == 1 or min(counts) > tokens  # no tile vanishes
    assert len(lengths) == len(sizes)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_counts_are_those_of_the_processor_of_transformers(window):
    ours = processor_for(PUBLISHED, fusion_window=window)
    stock = processor_for(PUBLISHED, patch_size=14 * window, kind=LlavaNextProcessor)
    sizes = [(h, w) for h, w in random_sizes(4000, seed=9) if window == 1 or max(h, w) < 6 * min(h, w)]
    expected = stock._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    assert ours.num_image_tokens(sizes) == expected
    assert ours._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"] == expected


@pytest.mark.parametrize(
    ("size", "plain", "fused"),
    [
        ((672, 672), 2928, 744), ((480, 640), 2340, 594), ((1080, 1920), 1948, 494), ((336, 336), 1176, 300),
        ((600, 640), 2830, 694),
    ],
)  # fmt: skip
def test_known_sizes(size, plain, fused):
    assert num_image_tokens(LlavaNextConfig(), [size]) == [plain]
    assert num_image_tokens(LlavaNextStfConfig(), [size]) == [fused]


@pytest.mark.parametrize("size", [(31, 1648), (1648, 31), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("length", [11, 12])
def test_thin_image_keeps_one_row(size, length):
    shape = (length, 24) if size[0] < size[1] else (24, length)
    rows, columns = image_area(*shape, size, least=1)
    assert min(rows.stop - rows.start, columns.stop - columns.start) == 1


def test_budget_is_of_a_tile():
    plain, fused = LlavaNextConfig(), LlavaNextStfConfig(fusion_windows=[2, 4], fusion_weight_window=2)
    assert budget_per_image(plain) == budget_per_image(plain, "all") == 576
    assert token_budgets(fused) == [144, 36]
    assert num_image_tokens(fused, [(672, 672)], 36) == [36 + 12 * 13]
    with pytest.raises(FusionError, match="load it with vision_tokens=144"):
        budget_per_image(plain, 144)


def test_image_sizes_must_fit_the_tiles():
    model = LlavaNextStfModel.__new__(LlavaNextStfModel)
    torch.nn.Module.__init__(model)
    model.config = LlavaNextStfConfig()
    tiles = torch.empty(2, 3, 3, 336, 336, device="meta")
    with pytest.raises(PromptError, match="takes image_sizes"):
        model.sizes_of_images(tiles)
    with pytest.raises(PromptError, match="1 sizes"):
        model.sizes_of_images(tiles, torch.tensor([[336, 336]]))
    with pytest.raises(PromptError, match="has 5 tiles, found 3"):
        model.sizes_of_images(tiles, torch.tensor([[336, 672], [672, 672]]))
    with pytest.raises(PromptError, match="need 8 tiles, found 6"):
        model.sizes_of_images(tiles.flatten(0, 1), torch.tensor([[336, 672], [672, 672]]))
    assert model.sizes_of_images(tiles, torch.tensor([[336, 672], [672, 336]])) == [(336, 672), (672, 336)]


def byte_level(begin, *, adds):
    """A tokenizer of single bytes, as Llama 3's and Qwen's without merges; `adds` puts `begin` before every text."""
    alphabet = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({piece: index for index, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    special = [token for token in (begin, "<|end|>", "<image>") if token]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    if adds:
        backend.post_processor = TemplateProcessing(f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token="<|end|>", pad_token="<|end|>", padding_side="left"
    )


@pytest.mark.parametrize(
    ("begin", "adds", "prompt"),
    [
        ("<|begin|>", True, "<|begin|>user: <image>\nWhat is it?<|end|>"),  # Llama 3: template and tokenizer write it
        ("<|begin|>", True, "user: <image>\nWhat is it?"),
        ("<|begin|>", False, "user: <image>\nWhat is it?"),  # Yi: neither does
        (None, False, "user: <image>\nWhat is it?<|end|>and <image>?"),  # Qwen
    ],
)
def test_ids_of_other_llms_are_those_of_transformers(begin, adds, prompt):
    images = [Image.new("RGB", (700, 500))] * prompt.count("<image>")
    tokenizer = byte_level(begin, adds=adds)
    found = {}
    for kind, options in ((LlavaNextStfProcessor, {"fusion_window": 1}), (LlavaNextProcessor, {})):
        processor = processor_for(PUBLISHED, kind=kind, **options)
        made = kind(
            processor.image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, **options,
        )  # fmt: skip
        found[kind] = made(images=images, text=prompt)["input_ids"][0]
    stock = found[LlavaNextProcessor]
    written_twice = adds and prompt.startswith(begin)  # by template and tokenizer, and one is what the LLM knows
    assert found[LlavaNextStfProcessor] == (stock[1:] if written_twice else stock)
