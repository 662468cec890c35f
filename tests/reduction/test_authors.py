"""VisionZip, ToMe, DivPrune and FastV against outputs of their authors' own code (golden/README.md)."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from llava_stf.models.fusion.modeling import CACHE
from llava_stf.reduction import apply_reduction, remove_reduction
from llava_stf.reduction.divprune import DivPrune
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.tome import ToMe, merging_block, patches_after
from llava_stf.reduction.visionzip import VisionZip

IMAGE = 999
# Float32 on both sides, sums in another order; the logits' scale is 2.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model(golden_reduction):
    return LlavaForConditionalGeneration.from_pretrained(golden_reduction / "model").eval()


@pytest.fixture(scope="module")
def inputs(golden_reduction):
    return load_file(golden_reduction / "inputs.safetensors")


class Case:
    """One image's outputs."""

    def __init__(self, golden, name, row):
        recorded = load_file(golden / f"{name}.safetensors")
        self.values = {key.partition(".")[2]: value for key, value in recorded.items() if key.startswith(f"image{row}")}

    def __getitem__(self, name):
        return self.values[name]


def prompt(ids, placeholders):
    """The prompt with as many image ids as an image takes in it."""
    place = int((ids == IMAGE).nonzero()[0])
    return torch.cat([ids[:place], ids.new_full((placeholders,), IMAGE), ids[place + 1 :]])[None]


@torch.no_grad()
def run(model, inputs, row, method, vision_tokens):
    """Image tokens, last logits, 8 greedy ids and cache rows of each layer."""
    apply_reduction(model, None, method, vision_tokens=vision_tokens)
    try:
        pixels = inputs["pixels"][row][None].to(model.dtype)
        ids = prompt(inputs["ids"][row], method.prompt_tokens(576, vision_tokens))
        outputs = model(input_ids=ids, pixel_values=pixels, use_cache=True)
        rows = [outputs[CACHE].get_seq_length(layer) for layer in range(6)]
        new = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=8,
            min_new_tokens=8, do_sample=False,
        )  # fmt: skip
        kept = method.kept(model, pixels)
        return outputs.logits[0, -1].float(), new[0, -8:].tolist(), rows, kept
    finally:
        remove_reduction(model)


def check(case, found):
    logits, new, rows, _ = found
    torch.testing.assert_close(logits, case["last_logits"], **CLOSE)
    assert new == case["generated"][1:].tolist()
    assert rows == case["kv_rows"].tolist()


rows = pytest.mark.parametrize("row", [0, 1, 2])


@rows
@pytest.mark.parametrize("count", [64, 192])
def test_visionzip(model, inputs, golden_reduction, row, count):
    case, method = Case(golden_reduction, f"visionzip_{count}", row), VisionZip()
    found = run(model, inputs, row, method, count)
    check(case, found)
    assert found[-1][0].tolist() == sorted(place - 1 for place in case["kept"].tolist() if place)
    apply_reduction(model, None, method, vision_tokens=count)
    try:
        with torch.no_grad():
            state, attention, keys = method.measure(model.model, inputs["pixels"][row][None])
            states = method.zip_tokens(state, attention, keys, count)[0]
    finally:
        remove_reduction(model)
    torch.testing.assert_close(states, case["states"], **CLOSE)


@pytest.mark.parametrize(
    "option", [{"class_token": False}, {"contextual": "mean"}, {"targets": "spread"}, {"order": "raster"}]
)
def test_every_option_of_visionzip_is_another_method(model, inputs, golden_reduction, option):
    logits, *_ = run(model, inputs, 0, VisionZip(**option), 64)
    assert (logits - Case(golden_reduction, "visionzip_64", 0)["last_logits"]).abs().max() > 1e-3


@rows
@pytest.mark.parametrize("count", [64, 192])
@torch.no_grad()
def test_tome(model, inputs, golden_reduction, row, count):
    case, tower = Case(golden_reduction, f"tome_{count}", row), model.model.vision_tower
    schedule = patches_after(23, 576, count)
    merged = [before - left for before, left in zip([576, *schedule], schedule, strict=False)]
    assert merged == load_file(golden_reduction / f"tome_{count}.safetensors")["merged_per_block"].tolist()
    x, size = tower.pre_layrnorm(tower.embeddings(inputs["pixels"][row][None])), None
    for block, left in zip(tower.encoder.layers, schedule, strict=False):
        x, size = merging_block(block, x, size, left)
    assert size[0].tolist() == case["sizes"][:, 0].tolist()
    torch.testing.assert_close(x[0], case["states"], **CLOSE)
    apply_reduction(model, None, ToMe(), vision_tokens=count)
    try:
        found = model.get_image_features(inputs["pixels"][row][None]).pooler_output[0]
    finally:
        remove_reduction(model)
    torch.testing.assert_close(found, model.model.multi_modal_projector(case["states"][1:]), atol=1e-4, rtol=1e-4)


@rows
@pytest.mark.parametrize("count", [64, 192])
def test_divprune(model, inputs, golden_reduction, row, count):
    case = Case(golden_reduction, f"divprune_{count}", row)
    found = run(model, inputs, row, DivPrune(), count)
    check(case, found)
    assert found[-1][0].tolist() == sorted(case["kept"].tolist())


@rows
@pytest.mark.parametrize(("count", "full_layers"), [(144, 2), (288, 3)])
def test_fastv(model, inputs, golden_reduction, row, count, full_layers):
    case = Case(golden_reduction, f"fastv_{count}_K{full_layers}", row)
    logits, new, lengths, _ = run(model, inputs, row, FastV(full_layers), count)
    torch.testing.assert_close(logits, case["last_logits"], **CLOSE)
    assert new == case["generated"][1:].tolist()
    # The authors' cache holds layer K - 1 twice, ours every layer once.
    assert lengths == [56 + 576] * full_layers + [56 + count] * (6 - full_layers)


@rows
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_divprune_in_16_bits(inputs, golden_reduction, row, dtype):
    """Each choice of the authors is, but for rounding, the best of its step in the cosines that `dtype=model` takes.

    The choices themselves depend on the last bit of the tower's states, which another version of transformers rounds
    otherwise, and on how ties are broken; that `most_diverse` is this rule is tested in test_maths.
    """
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    chosen = Case(golden_reduction, f"divprune_{short}_64", row)["kept"].tolist()
    model = LlavaForConditionalGeneration.from_pretrained(golden_reduction / "model", dtype=dtype).eval()
    tokens = model.get_image_features(inputs["pixels"][row][None].to(dtype)).pooler_output[0]
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    far = 1 - unit @ unit.T
    slack = 4 * torch.finfo(dtype).eps
    first = far.sort(dim=0).values[1]
    assert first[chosen[0]] >= first.max() - slack
    for step in range(1, len(chosen)):
        gap = far[chosen[:step]].amin(0)
        assert gap[chosen[step]] >= gap.max() - slack, step
        assert (gap >= gap.max() - slack).sum() < 100  # most of the 576 would not do
