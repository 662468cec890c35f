"""Counted costs against figures computed by hand from the shapes of LLaVA-1.5, and against a cache that was filled."""

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextProcessor

from llava_stf import LlavaNextStfProcessor, apply_pooling, apply_stf, load_model
from llava_stf.analysis.counting import Count, count, llm_parameters, projector_flops, tower_flops
from llava_stf.errors import FusionError
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_next_video, tiny_llava_onevision, tiny_video_llava
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig

LLM = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
MIB = 2**20


def llava(size: str, *, fused: bool) -> LlavaConfig:
    hidden, mlp, layers, heads = LLM[size]
    parts = {
        "vision_config": CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14,
        ),
        "text_config": LlamaConfig(
            hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
            vocab_size=32064,
        ),
    }  # fmt: skip
    return LlavaStfConfig(**parts, fusion_hidden_size=16384) if fused else LlavaConfig(**parts)


@pytest.mark.parametrize(
    ("size", "tokens", "text", "tflops"),
    [
        ("7b", 576, 0, 7.63),
        ("7b", 144, 0, 1.88),
        ("7b", 576, 64, 8.50),
        ("7b", 144, 64, 2.72),
        ("13b", 576, 0, 14.89),
        ("13b", 144, 0, 3.67),
        ("13b", 576, 64, 16.58),
        ("13b", 144, 64, 5.31),
    ],
)
def test_prefill_flops_are_those_computed_by_hand(size: str, tokens: int, text: int, tflops: float) -> None:
    counted = count(llava(size, fused=False), tokens, text_tokens=text)
    assert counted.prefill_flops / 1e12 == pytest.approx(tflops, abs=0.005)


@pytest.mark.parametrize(("size", "fused", "gflops"), [("7b", 82.1, 24.2), ("13b", 87.0, 36.2)])
def test_projector_flops_are_those_computed_by_hand(size: str, fused: float, gflops: float) -> None:
    assert count(llava(size, fused=True)).projector_flops / 1e9 == pytest.approx(fused, abs=0.05)
    assert count(llava(size, fused=False)).projector_flops / 1e9 == pytest.approx(gflops, abs=0.05)


def test_tower_flops_leave_out_the_block_that_a_fused_model_does_not_run() -> None:
    assert count(llava("7b", fused=False)).tower_flops / 1e9 == pytest.approx(382, abs=0.5)
    assert count(llava("7b", fused=True)).tower_flops / 1e9 == pytest.approx(366, abs=0.5)


@pytest.mark.parametrize(
    ("size", "tokens", "mib"), [("7b", 576, 288), ("7b", 144, 72), ("13b", 576, 450), ("13b", 144, 112.5)]
)
def test_kv_cache_of_an_image_in_16_bits(size: str, tokens: int, mib: float) -> None:
    assert count(llava(size, fused=False), tokens, text_tokens=0).kv_bytes == mib * MIB


def test_a_config_knows_its_own_tokens() -> None:
    assert count(llava("7b", fused=False)).vision_tokens == (576,) * 32
    assert count(llava("7b", fused=True)).vision_tokens == (144,) * 32


def test_tokens_dropped_inside_the_llm_are_counted_layer_by_layer() -> None:
    config = llava("7b", fused=False)
    dropped = count(config, [576] * 2 + [144] * 30)
    full, short = count(config, 576), count(config, 144)
    assert dropped.llm_tokens == (640,) * 2 + (208,) * 30
    assert dropped.prefill_flops == (2 * full.prefill_flops + 30 * short.prefill_flops) // 32
    assert dropped.kv_bytes == (2 * full.kv_bytes + 30 * short.kv_bytes) // 32
    assert dropped.mean_vision_tokens == 171


def test_images_add_up_but_for_attention_between_them() -> None:
    config = llava("7b", fused=True)
    one, two = count(config, text_tokens=0), count(config, text_tokens=0, images=2)
    assert (two.tower_flops, two.kv_bytes) == (2 * one.tower_flops, 2 * one.kv_bytes)
    assert two.prefill_flops - 2 * one.prefill_flops == 32 * 4 * 2 * 144**2 * 4096


def test_a_new_token_reads_every_weight_once() -> None:
    config = llava("7b", fused=True)
    attention = 32 * 4 * 209 * 4096
    assert count(config).decode_flops == 2 * llm_parameters(config) + attention
    assert llm_parameters(config) == 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32064


def test_grouped_query_attention_shrinks_cache_and_projections() -> None:
    config = llava("7b", fused=False)
    full = count(config)
    config.text_config.num_key_value_heads = 8
    grouped = count(config)
    assert grouped.kv_bytes * 4 == full.kv_bytes
    assert full.prefill_flops - grouped.prefill_flops == 32 * 2 * 640 * 2 * 4096 * 24 * 128


@pytest.mark.parametrize("tokens", [[576] * 31, [576] * 31 + [-1], []])
def test_a_list_that_does_not_fit_the_llm_is_refused(tokens: list[int]) -> None:
    with pytest.raises(FusionError, match="each of the LLM's 32 layers"):
        count(llava("7b", fused=False), tokens)


@pytest.mark.parametrize("name", ["tiny", "tiny-full"])
def test_counted_cache_is_the_one_that_a_prompt_fills(name: str) -> None:
    model, _ = load_model(name, dtype="bfloat16", device="cpu")
    counted: Count = count(model.config, text_tokens=9)
    tokens = counted.vision_tokens[0]
    ids = torch.tensor([[5] * 4 + [model.config.image_token_id] * tokens + [6] * 5])
    side = model.config.vision_config.image_size
    with torch.no_grad():
        cache = model(input_ids=ids, pixel_values=torch.zeros(1, 3, side, side, dtype=model.dtype))[CACHE]
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == counted.kv_bytes
    assert tuple(layer.keys.shape[-2] for layer in cache.layers) == counted.llm_tokens


TILED = [(tiny_llava_next, [(56, 80)]), (tiny_llava_next, [(30, 190), (80, 60)]), (tiny_llava_onevision, [(150, 70)])]


@pytest.mark.parametrize(("make", "sizes"), [*TILED, (tiny_llava_onevision, [(150, 70), (40, 40)])])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_tiles_are_counted_as_the_model_runs_them(make, sizes, fused) -> None:
    """Tokens are those of the processor, and the tower and the projector see as many squares as are counted."""
    model, processor = make()
    if fused:
        apply_stf(model, processor)
    elif isinstance(processor, LlavaNextProcessor):
        processor = LlavaNextStfProcessor(
            processor.image_processor, processor.tokenizer, patch_size=14, fusion_window=1
        )
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    inputs = processor(images=images, text="<image>" * len(sizes), return_tensors="pt")
    squares = []
    model.model.vision_tower.register_forward_hook(lambda module, args, output: squares.append(len(output[0])))
    with torch.inference_mode():
        model(**inputs)
    counted = count(model.config, image_sizes=sizes, text_tokens=0)
    found = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert counted.vision_tokens == (found,) * model.config.text_config.num_hidden_layers
    assert counted.tower_flops == sum(squares) * tower_flops(model.config)
    assert counted.projector_flops == sum(squares) * projector_flops(model.config)


def test_a_tile_of_an_odd_grid_is_projected_with_its_repeated_row_and_column() -> None:
    model, _ = tiny_llava_onevision(grid=5)
    apply_pooling(model)
    assert projector_flops(model.config) == 2 * 6 * 6 * (16 * 32 + 32 * 32)


@pytest.mark.parametrize(("pool_frames", "patches"), [(True, 16), (False, 64)])
def test_frames_are_projected_behind_their_pooler_or_in_its_place(pool_frames, patches) -> None:
    model, _ = tiny_llava_next_video(grid=8)
    apply_pooling(model, pool_frames=pool_frames)
    counted = count(model.config, frames=[3], text_tokens=5)
    assert counted.projector_flops == 3 * 2 * patches * (16 * 32 + 32 * 32)
    assert counted.llm_tokens[0] == 3 * patches // 4 + 5
    assert counted.tower_flops == 3 * tower_flops(model.config)


def test_the_class_token_of_a_frame_is_a_window_of_its_own() -> None:
    model, _ = tiny_video_llava()
    apply_pooling(model)
    counted = count(model.config, frames=[2], text_tokens=0)
    assert counted.vision_tokens[0] == 2 * 5
    assert counted.projector_flops == 2 * 2 * 5 * 4 * (16 * 32 + 32 * 32)


def test_a_number_that_is_no_budget_of_a_tile_is_refused() -> None:
    config = tiny_llava_next()[0].config
    with pytest.raises(FusionError, match="gives 5 vision tokens"):
        count(config, 5)
    with pytest.raises(FusionError, match="one of its budgets"):
        count(config, [4, 4])
    with pytest.raises(FusionError, match="images alone"):
        count(llava("7b", fused=True), frames=[8])
