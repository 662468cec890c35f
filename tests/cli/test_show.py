"""`llava-stf show`: what is drawn is what the model does, and what cannot be drawn is refused in a sentence."""

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch.nn.functional import linear

from llava_stf import load_model
from llava_stf.analysis.visualise import block_contributions, visualise, visualise_selection
from llava_stf.cli.show import show
from llava_stf.errors import FusionError, ImageError, LlavaStfError
from llava_stf.models.vision.states import select_hidden_states
from llava_stf.reduction import apply_reduction, find_method, remove_reduction, with_options
from llava_stf.world import draw

SIDE = 112


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(draw(7, split="held_out")[1])


@pytest.fixture(scope="module")
def fused():
    return load_model("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def plain():
    return load_model("tiny-full", device="cpu", dtype="float32")


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(show)
    app([*arguments], standalone_mode=False)


def pixels_of(llava, image: Image.Image) -> torch.Tensor:
    return llava.processor.image_processor(image, return_tensors="pt")["pixel_values"]


def test_the_image_shown_is_the_one_that_enters_the_tower(fused) -> None:
    wide = Image.new("RGB", (2 * SIDE, SIDE), (255, 0, 0))
    seen = visualise(fused, wide).image
    assert seen.shape == (SIDE, SIDE, 3)
    canvas, red = np.array([122, 116, 104]) / 255, np.array([1.0, 0.0, 0.0])
    assert np.abs(seen[2, SIDE // 2] - canvas).max() < 0.01  # the padding above the image
    assert np.abs(seen[SIDE // 2, SIDE // 2] - red).max() < 0.01


def test_windows_are_those_that_leave_the_model_its_tokens(fused, plain, image) -> None:
    seen = visualise(fused, image)
    assert (seen.grid // seen.window) ** 2 == fused.vision_tokens == 16
    assert visualise(plain, image).window == 1


def test_contributions_are_the_norms_of_each_blocks_part_of_the_first_layer(fused, image) -> None:
    pixels = pixels_of(fused, image)
    found = block_contributions(fused.model, pixels)
    states = select_hidden_states(fused.model.model.vision_tower, pixels, fused.model.config.fusion_states)
    layer = fused.model.model.multi_modal_projector.block_fusion.linear_1
    parts = []
    for kept in range(len(states)):  # the first layer on one state alone, the others silenced
        alone = [
            state[:, 1:] if index == kept else torch.zeros_like(state[:, 1:]) for index, state in enumerate(states)
        ]
        parts.append(linear(torch.cat(alone, dim=-1), layer.weight).norm(dim=-1))
    expected = torch.stack(parts, dim=1) / sum(parts)[:, None]
    assert found.shape == (1, len(states), 64)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


def test_contributions_of_a_warm_start_are_of_the_one_block_it_passes_through(image) -> None:
    llava = load_model("tiny-full", vision_tokens=16, device="cpu", dtype="float32")
    shares = visualise(llava, image, contributions=True)
    assert shares.states == (5, 3)
    assert np.allclose(shares.contributions[0], 1)
    assert np.allclose(shares.contributions[1], 0)


def test_contributions_need_mbtf(plain, image) -> None:
    with pytest.raises(FusionError, match="Expected a model with MBTF"):
        visualise(plain, image, contributions=True)


@pytest.mark.parametrize("method", ["random", "divprune"])
def test_patches_shown_are_those_whose_tokens_the_llm_gets(plain, image, method: str) -> None:
    pixels = pixels_of(plain, image)
    every = plain.model.get_image_features(pixels).pooler_output[0]
    kept = visualise_selection(plain, image, method, vision_tokens=9, seed=3).kept
    apply_reduction(plain.model, None, method, vision_tokens=9, seed=3)
    left = plain.model.get_image_features(pixels).pooler_output[0]
    remove_reduction(plain.model)
    assert len(kept) == 9
    torch.testing.assert_close(left, every[kept], atol=1e-5, rtol=1e-5)


def test_visualising_leaves_the_model_as_it_was(plain, image) -> None:
    before = plain.ask(image, "How many shapes are there?", max_new_tokens=8)
    visualise_selection(plain, image, "divprune", vision_tokens=16)
    with pytest.raises(FusionError, match="nothing to draw"):
        visualise_selection(plain, image, "tome", vision_tokens=16)
    assert type(plain.model).__name__ == "LlavaForConditionalGeneration"
    assert plain.ask(image, "How many shapes are there?", max_new_tokens=8) == before


def test_command_draws_windows_and_maps(tmp_path, image, capsys) -> None:
    image.save(tmp_path / "p.png")
    run(str(tmp_path / "p.png"), "--output", str(tmp_path / "windows.png"), "--device", "cpu")
    run(str(tmp_path / "p.png"), "--weights", "--output", str(tmp_path / "maps.png"), "--device", "cpu")
    windows, maps = (Image.open(tmp_path / f"{name}.png") for name in ("windows", "maps"))
    assert maps.height > windows.height
    assert "64 patches in windows of 2x2 become 16 tokens" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.png", "p.png", "windows.png"]


def test_command_draws_what_a_method_keeps(tmp_path, image, capsys) -> None:
    image.save(tmp_path / "p.png")
    arguments = ("--method", "divprune", "--vision-tokens", "9", "--output", str(tmp_path / "kept.png"))
    run(str(tmp_path / "p.png"), *arguments, "--device", "cpu")
    drawn = np.asarray(Image.open(tmp_path / "kept.png").convert("RGB")).astype(int)
    assert "keeps 9 of 64 patches" in capsys.readouterr().out
    left, right = np.split(drawn, [drawn.shape[1] // 2], axis=1)
    assert right.mean() > left.mean() + 20  # most of the right image is faded out


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        (("missing.png",), ImageError, "missing.png"),
        (("{p}", "--method", "divprun"), FusionError, "divprune"),
        (("{p}", "--method", "divprune", "--weights"), LlavaStfError, "--weights looks into MBTF"),
        (("{p}", "--output", "no/such/folder/show.png"), LlavaStfError, "no folder"),
        (("{p}", "--method", "divprune", "--vision-tokens", "65"), FusionError, "65"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(tmp_path, image, arguments, kind, sentence) -> None:
    image.save(tmp_path / "p.png")
    with pytest.raises(kind, match=sentence):
        run(*(argument.format(p=tmp_path / "p.png") for argument in arguments), "--device", "cpu")


def test_a_fused_model_is_no_ground_for_a_method(image) -> None:
    llava = load_model("tiny", device="cpu")
    with pytest.raises(FusionError, match="plain"):
        visualise_selection(llava, image, "divprune", vision_tokens=16)


def test_options_of_a_method_reach_the_drawing(plain, image) -> None:
    ours = with_options(find_method("visionzip"), {"class_token": "false"})
    kept = [visualise_selection(plain, image, method, vision_tokens=16).kept for method in ("visionzip", ours)]
    assert set(kept[0]) < set(kept[1])  # the class token takes the place of one patch


@pytest.mark.parametrize("option", ["class_token", "=false", "class_token=maybe", "clas=false"])
def test_options_that_are_none_are_refused(option: str, image, tmp_path) -> None:
    image.save(tmp_path / "p.png")
    with pytest.raises(FusionError, match=r"[Oo]ption"):
        run(str(tmp_path / "p.png"), "--method", "visionzip", "--option", option)
