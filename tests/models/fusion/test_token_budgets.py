"""One model for several numbers of vision tokens: the fusion in every window, and the choice at run time."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_stf import LlavaStfConfig, apply_pooling, apply_stf, convert_checkpoint, load_model
from llava_stf.errors import CheckpointError, FusionError
from llava_stf.loading.testing import write_tiny_llava
from llava_stf.models.fusion.projector import LlavaStfProjector, region
from llava_stf.models.fusion.warm_start import init_from_pooling

GRID = 12
WINDOWS = [2, 1, 3, 4, 6]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A plain LLaVA with 12 x 12 patches."""
    return write_tiny_llava(tmp_path_factory.mktemp("grid12"), stf=False, grid=GRID, positions=1024)


@pytest.fixture(scope="module")
def several_folder(base_folder, tmp_path_factory):
    """A LLaVA-STF for 36 (the default), 16 and 9 tokens, its projector random."""
    folder = tmp_path_factory.mktemp("several")
    model, processor = load_model(base_folder, vision_tokens="all", device="cpu")
    apply_stf(model, processor, window=[2, 3, 4], init="random")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 255, (168, 168, 3), dtype=np.uint8)


def fused_config(model, **fields):
    config = model.config.to_dict() | {"fusion_window": 2, "fusion_windows": WINDOWS, "fusion_weight_window": 2}
    return LlavaStfConfig.from_dict(config | {"fusion_layers": None} | fields)


@pytest.mark.parametrize("hidden", [4 * 32, 4 * 32 + 8])
@torch.no_grad()
def test_the_warm_start_is_mean_pooling_in_every_window(base_folder, hidden):
    model, _ = load_model(base_folder, vision_tokens="all", device="cpu")
    base = model.model.multi_modal_projector.double()
    projector = LlavaStfProjector(fused_config(model, fusion_hidden_size=hidden)).double()
    init_from_pooling(projector, base)
    states = [torch.randn(2, GRID**2, 16, dtype=torch.float64) for _ in fused_config(model).fusion_states]
    outputs = base(states[0])
    for k in WINDOWS:
        windows = outputs.view(2, GRID // k, k, GRID // k, k, -1)
        pooled = windows.mean(dim=(2, 4)).flatten(1, 2)
        torch.testing.assert_close(projector(states, k), pooled, atol=1e-12, rtol=0)


def slow_fusion(fusion, x, k):
    """STF in windows of k, patch by patch, as its docstring says it."""
    side, hidden = fusion.window, fusion.linear_1.out_features
    weight = fusion.linear_1.weight.view(hidden, -1, side, side)
    grid = int(x.shape[1] ** 0.5)
    patches = x.view(len(x), grid, grid, -1)
    share = np.zeros((k, side))
    for place in range(side):
        rows, amounts = region(place, k, side)
        share[rows, place] = amounts
    size = (k / side) ** 2
    tokens = []
    for top, left in itertools.product(range(0, grid, k), repeat=2):
        window = patches[:, top : top + k, left : left + k]
        area = torch.einsum("yi,xj->yxij", *[torch.tensor(share, dtype=x.dtype)] * 2)
        means = torch.einsum("byxc,yxij->bcij", window, area) / size
        units = []
        for unit in range(hidden):
            i, j = divmod(unit * side**2 // hidden, side)
            total = 0
            for y, x_ in itertools.product(range(k), repeat=2):
                seen = means.clone()
                seen[:, :, i, j] = window[:, y, x_]
                value = torch.einsum("bcij,cij->b", seen, weight[unit]) + fusion.linear_1.bias[unit]
                total = total + area[y, x_, i, j] / size * torch.nn.functional.gelu(value)
            units.append(total)
        tokens.append(fusion.linear_2(torch.stack(units, dim=-1)))
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@torch.no_grad()
def test_every_window_is_what_the_docstring_says(base_folder, k):
    model, _ = load_model(base_folder, vision_tokens="all", device="cpu")
    fusion = LlavaStfProjector(fused_config(model, fusion_hidden_size=16)).spatial_fusion.double()
    x = torch.randn(2, GRID**2, 16, dtype=torch.float64)
    torch.testing.assert_close(fusion(x, k), slow_fusion(fusion, x, k), atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 6])
def test_regions_share_out_every_patch(window):
    shares = np.zeros((window, 2))
    for place in range(2):
        patches, amounts = region(place, window, 2)
        shares[patches, place] = amounts
    assert shares.sum(axis=1) == pytest.approx(np.ones(window))
    assert shares.sum(axis=0) == pytest.approx(np.full(2, window / 2))


def test_the_number_of_weights_does_not_depend_on_the_windows(base_folder):
    sizes = []
    for window in ([2], [2, 3, 4], [6, 12], 2):
        model, _ = load_model(base_folder, vision_tokens="all", device="cpu")
        apply_stf(model, window=window)
        sizes.append(sum(parameter.numel() for parameter in model.model.multi_modal_projector.parameters()))
    assert len(set(sizes)) == 1


@torch.no_grad()
def test_a_model_for_several_windows_is_the_published_one_at_two_by_two(base_folder, picture):
    logits = []
    for window in (2, [3, 2, 4]):
        model, processor = load_model(base_folder, vision_tokens="all", device="cpu")
        apply_stf(model, processor, window=window, init="random")
        inputs = processor(images=picture, text="<image>\nWhat?", vision_tokens=36, return_tensors="pt")
        logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("count", [36, 16, 9])
def test_the_budget_is_chosen_with_the_question(several_folder, picture, count):
    llava = load_model(several_folder, device="cpu")
    assert llava.vision_tokens == 36
    chosen = load_model(several_folder, vision_tokens=count, device="cpu")
    assert chosen.vision_tokens == count == chosen.model.config.image_seq_length
    options = {"max_new_tokens": 12}
    answer = chosen.ask(picture, "What?", **options)
    assert llava.ask(picture, "What?", vision_tokens=count, **options) == answer
    pairs = [(picture, "What?"), ([picture, picture[::-1]], "Same?")]
    assert llava.ask_batch(pairs, vision_tokens=count, **options)[0] == answer
    assert "".join(llava.stream(picture, "What?", vision_tokens=count, **options)).strip() == answer
    assert llava.chat(picture, vision_tokens=count).ask("What?", **options) == answer


def test_answers_differ_between_budgets(several_folder, picture):
    llava = load_model(several_folder, device="cpu")
    assert len({llava.ask(picture, "What?", vision_tokens=count, max_new_tokens=12) for count in (36, 16, 9)}) > 1


def test_generate_tells_the_budget_from_the_prompt(several_folder, picture):
    model = AutoModelForImageTextToText.from_pretrained(several_folder)
    processor = AutoProcessor.from_pretrained(several_folder)
    for count in (36, 16, 9):
        inputs = processor(images=picture, text="<image>\nWhat?", vision_tokens=count, return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == count
        assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    inputs = processor(images=picture, text="<image>\nWhat?", vision_tokens=25, return_tensors="pt")
    with pytest.raises(ValueError, match="36"):
        model.generate(**inputs, max_new_tokens=2)


def test_the_default_budget_is_saved(several_folder, picture, tmp_path):
    model, processor = load_model(several_folder, vision_tokens=9, device="cpu")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert again.vision_tokens == 9
    assert len(again.processor(images=picture, text="<image>")["input_ids"][0]) == 9 + 1
    assert again.ask(picture, "What?", vision_tokens=36, max_new_tokens=4)


def test_a_budget_the_model_was_not_made_for_is_refused(several_folder, base_folder, stf_folder, picture):
    with pytest.raises(FusionError, match="36 or 16 or 9 vision tokens and cannot give 4"):
        load_model(several_folder, vision_tokens=4, device="cpu")
    llava = load_model(several_folder, device="cpu")
    with pytest.raises(FusionError, match="cannot give 4"):
        llava.ask(picture, "What?", vision_tokens=4)
    with pytest.raises(FusionError, match="No window of the 12x12 patches gives 100"):
        llava.ask(picture, "What?", vision_tokens=100)
    with pytest.raises(FusionError, match="cannot give 16"):
        load_model(stf_folder, device="cpu").ask(picture, "What?", vision_tokens=16)
    plain = load_model(base_folder, vision_tokens="all", device="cpu")
    with pytest.raises(FusionError, match="load it with vision_tokens=36"):
        plain.ask(picture, "What?", vision_tokens=36)
    assert plain.ask(picture, "What?", vision_tokens="all", max_new_tokens=2) is not None
    with pytest.raises(FusionError, match="fusion_window 5 does not divide the grid of 12x12"):
        apply_stf(plain.model, window=[2, 5])
    with pytest.raises(FusionError, match="at least one window"):
        apply_stf(plain.model, window=[])
    with pytest.raises(FusionError, match="list of vision_tokens is for a plain LLaVA"):
        load_model(several_folder, vision_tokens=[36, 9], device="cpu")


def test_widths_that_cannot_be_parted_are_refused(base_folder):
    model, _ = load_model(base_folder, vision_tokens="all", device="cpu")
    with pytest.raises(FusionError, match="multiple of 4, found 30"):
        fused_config(model, fusion_hidden_size=30)


@pytest.mark.parametrize("patch", [apply_stf, apply_pooling])
@torch.no_grad()
def test_pooling_and_the_warm_start_agree_at_every_budget(base_folder, patch, picture):
    direct = []
    for count in (36, 16, 9):
        model, processor = load_model(base_folder, vision_tokens="all", device="cpu")
        apply_pooling(model, processor, window=int(GRID / count**0.5))
        direct.append(model(**processor(images=picture, text="<image>\nWhat?", return_tensors="pt")).logits)
    model, processor = load_model(base_folder, vision_tokens="all", device="cpu")
    patch(model, processor, window=[4, 2, 3])
    for count, expected in zip((36, 16, 9), direct, strict=True):
        inputs = processor(images=picture, text="<image>\nWhat?", vision_tokens=count, return_tensors="pt")
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=0)


def test_compiled_generation_serves_every_budget(several_folder, picture):
    from llava_stf.inference import LlavaStf
    from llava_stf.inference.compiled import CompiledGeneration

    eager = load_model(several_folder, device="cpu")
    compiled = LlavaStf(*eager, CompiledGeneration(eager.model, "eager"))
    for count in (36, 9, 16, 36):
        options = {"vision_tokens": count, "max_new_tokens": 6}
        assert compiled.ask(picture, "What?", **options) == eager.ask(picture, "What?", **options)


def test_the_original_format_has_no_place_for_other_windows(base_folder, tmp_path):
    model, processor = load_model(base_folder, vision_tokens=[16, 9], device="cpu")
    model.save_pretrained(tmp_path / "without")
    processor.save_pretrained(tmp_path / "without")
    with pytest.raises(CheckpointError, match="2x2 windows alone"):
        convert_checkpoint(tmp_path / "without", tmp_path / "original", to="original")
