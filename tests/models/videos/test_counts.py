"""Counts from sizes and frames: processor, config and the model's features agree, and with transformers' own."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionProcessor,
    VideoLlavaConfig,
    VideoLlavaProcessor,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava_stf import (
    LlavaNextVideoStfConfig,
    LlavaOnevisionStfConfig,
    LlavaOnevisionStfModel,
    LlavaOnevisionStfProcessor,
    VideoLlavaStfConfig,
    apply_stf,
    remove_stf,
)
from llava_stf.errors import FusionError
from llava_stf.loading.testing import tiny_tokenizer
from llava_stf.loading.testing_videos import tiny_llava_next_video, tiny_llava_onevision, tiny_video_llava
from llava_stf.models.fusion.budget import num_image_tokens, num_video_tokens
from llava_stf.models.fusion.tiles import WHOLE, number_of_tiles

ODD = [[384, 1152], [1152, 384], [384, 384], [1920, 384], [1152, 1152]]  # 3, 3, 1, 5 and 9 tiles


def onevision(window, pinpoints=None):
    fields = {} if pinpoints is None else {"image_grid_pinpoints": pinpoints}
    config = LlavaOnevisionStfConfig(fusion_window=window, **fields)
    images = LlavaOnevisionImageProcessorPil(size={"height": 384, "width": 384}, **fields)
    return config, LlavaOnevisionStfProcessor(images, tiny_tokenizer(), fusion_window=window)


def stock_of(kind, **attributes):
    """A processor of transformers with its counting alone, since without torchvision it cannot be built."""
    processor = object.__new__(kind)
    vars(processor).update({"image_token": "<image>", "video_token": "<video>", **attributes})
    return processor


def random_sizes(count, seed=0):
    """Height and width from 1 to 4000 px, half of them of one order of magnitude, so that thin ones are there."""
    rng = random.Random(seed)
    even = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(count // 2)]
    return even + [(round(10 ** rng.uniform(0, 3.6)), round(10 ** rng.uniform(0, 3.6))) for _ in range(count // 2)]


@pytest.mark.parametrize(("window", "pinpoints"), [(1, None), (2, None), (3, None), (2, ODD), (3, ODD), (27, ODD)])
def test_processor_config_and_features_agree_for_any_size(window, pinpoints):
    config, processor = onevision(window, pinpoints)
    model = LlavaOnevisionStfModel.__new__(LlavaOnevisionStfModel)
    torch.nn.Module.__init__(model)
    model.config = config
    sizes = [*random_sizes(2000, seed=window), WHOLE]
    counts = processor.num_image_tokens(sizes)
    assert counts == num_image_tokens(config, sizes)
    sizes, counts = sizes[-250:], counts[-250:]
    tokens = (-(-27 // window)) ** 2
    tiles = [number_of_tiles(size, config.image_grid_pinpoints, 384) for size in sizes]
    features = [torch.empty(number, tokens, 1, device="meta") for number in tiles]
    packed, _ = model.pack_image_features(features, sizes, image_newline=torch.empty(1, device="meta"))
    assert [len(image) for image in packed] == counts
    assert min(counts) > tokens  # no tile vanishes, and no newline
    assert counts[-1] == tokens + 1


@pytest.mark.parametrize(("window", "tokens"), [(1, 729), (2, 196), (3, 81)])
def test_counts_are_those_of_the_processor_of_transformers(window, tokens):
    config, ours = onevision(window)
    stock = stock_of(
        LlavaOnevisionProcessor, num_image_tokens=tokens, image_processor=ours.image_processor,
        vision_aspect_ratio="anyres_max_9", vision_feature_select_strategy="full",
    )  # fmt: skip
    sizes = [(h, w) for h, w in random_sizes(3000, seed=9) if max(h, w) < 12 * min(h, w)]
    assert ours.num_image_tokens(sizes) == [stock._get_number_of_features(*size, 384, 384) for size in sizes]
    assert ours._get_num_multimodal_tokens(image_sizes=sizes, video_sizes=[(8, 1, 1)])["num_video_tokens"] == [
        len(stock.replace_video_token({"pixel_values_videos": [torch.empty(8, 1)]}, 0)) // len("<video>")
    ]
    assert ours.num_video_tokens([8]) == num_video_tokens(config, [8])


@pytest.mark.parametrize(
    ("size", "all_tokens", "quarter", "ninth"),
    [
        ((384, 384), 1485, 406, 171),
        ((480, 640), 2929, 834, 347),
        ((1080, 1920), 7269, 1932, 821),
        (WHOLE, 730, 197, 82),
    ],
)
def test_known_sizes(size, all_tokens, quarter, ninth):
    counts = [num_image_tokens(config, [size]) for config in (LlavaOnevisionConfig(), onevision(2)[0], onevision(3)[0])]
    assert counts == [[all_tokens], [quarter], [ninth]]


@pytest.mark.parametrize(
    ("plain", "fused", "options", "expected"),
    [
        (LlavaOnevisionConfig, LlavaOnevisionStfConfig, {}, (1569, 393)),
        (LlavaOnevisionConfig, LlavaOnevisionStfConfig, {"fusion_pool_frames": False}, (1569, 1569)),
        (LlavaOnevisionConfig, LlavaOnevisionStfConfig, {"fusion_window": 3}, (1569, 201)),
        (LlavaNextVideoConfig, LlavaNextVideoStfConfig, {}, (1152, 288)),
        (LlavaNextVideoConfig, LlavaNextVideoStfConfig, {"fusion_pool_frames": False}, (1152, 1152)),
        (VideoLlavaConfig, VideoLlavaStfConfig, {}, (2056, 520)),
    ],
)
def test_eight_frames(plain, fused, options, expected):
    assert (num_video_tokens(plain(), [8])[0], num_video_tokens(fused(**options), [8])[0]) == expected


@pytest.mark.parametrize(("patch_size", "config"), [(14, LlavaNextVideoConfig()), (28, LlavaNextVideoStfConfig())])
def test_frames_are_counted_as_the_processors_of_transformers_do(patch_size, config):
    frames = {"pixel_values_videos": [torch.empty(5, 3, 336, 336)]}
    stock = stock_of(LlavaNextVideoProcessor, patch_size=patch_size)
    assert stock.replace_video_token(frames, 0).count("<video>") == num_video_tokens(config, [5])[0]
    config = VideoLlavaConfig() if patch_size == 14 else VideoLlavaStfConfig()
    frames = {"pixel_values_videos": [torch.empty(5, 3, 224, 224)]}
    stock = stock_of(VideoLlavaProcessor, patch_size=patch_size, num_additional_image_tokens=1)
    assert stock.replace_video_token(frames, 0).count("<video>") == num_video_tokens(config, [5])[0]


@pytest.mark.parametrize(
    ("made", "kind", "attributes"),
    [
        (
            tiny_llava_onevision, LlavaOnevisionProcessor,
            {"num_image_tokens": 25, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"},
        ),
        (tiny_llava_next_video, LlavaNextVideoProcessor, {"patch_size": 14, "num_additional_image_tokens": 1}),
        (tiny_video_llava, VideoLlavaProcessor, {"patch_size": 14, "num_additional_image_tokens": 1}),
    ],
)  # fmt: skip
def test_a_processor_of_transformers_is_changed_and_put_back(made, kind, attributes):
    model, ours = made()
    parts = {name: getattr(ours, name) for name in ("image_processor", "tokenizer", "chat_template")}
    ids = {name: getattr(ours, name) for name in ("image_token_id", "video_token_id")}
    stock = stock_of(kind, **parts, **ids, video_processor=SimpleNamespace(), **attributes)
    before = dict(vars(stock))
    apply_stf(model, stock)
    inputs = stock(
        images=[Image.new("RGB", (80, 60))], videos=[np.zeros((2, 60, 80, 3), np.uint8)], text="<image><video>",
        return_tensors="pt",
    )  # fmt: skip
    places = [int((inputs.input_ids == place).sum()) for place in ids.values()]
    assert places == [stock.num_image_tokens([(60, 80)])[0], stock.num_video_tokens([2])[0]]
    assert model(**inputs).logits.shape[1] == inputs.input_ids.shape[1]
    remove_stf(model, stock)
    assert type(stock) is kind
    assert vars(stock) == before


def test_budgets_of_an_odd_grid():
    from llava_stf.models.fusion.budget import resolve_window, token_budgets

    plain = LlavaOnevisionConfig()
    assert [resolve_window(plain, count) for count in (None, 196, 81, "all")] == [2, 2, 3, 1]
    with pytest.raises(FusionError, match="possible are 729, 196, 81, 9, 1"):
        resolve_window(plain, 144)
    assert token_budgets(LlavaOnevisionStfConfig(fusion_windows=[2, 3])) == [196, 81]
