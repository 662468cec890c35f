"""The reconstruction of MOS: stitching, its targets, and a step of training. There is no reference data for it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTModel

from llava_stf.encoders.objectives.mos import (
    MOS,
    MOSOptions,
    members,
    stitch,
    stitched_to_single_targets,
    stitched_to_stitched_targets,
)
from llava_stf.encoders.objectives.patch_mixing import mix_targets, mix_to_mix_targets
from llava_stf.encoders.pretrain.augment import View
from llava_stf.errors import LlavaStfError


def tiny(**options) -> MOS:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    torch.manual_seed(0)
    return MOS(ViTModel(config, add_pooling_layer=False), MOSOptions(hidden=12, out=8, drop_path=0.0, **options))


def four_views(batch: int) -> list[View]:
    torch.manual_seed(1)
    boxes, flips = torch.zeros(batch, 4), torch.zeros(batch, dtype=torch.bool)
    return [View(torch.randn(batch, 3, 16, 16), boxes, flips) for _ in range(4)]


def test_stitched_images_hold_their_neighbours_in_raster_order():
    """Images of one value each: image i's cells are i, i + 1, i + 2, i + 3 modulo the batch."""
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    stitched = stitch(images, members(5, 2))
    for number in range(5):
        cells = stitched[number, 0, ::4, ::4].flatten()
        assert cells.tolist() == [(number + offset) % 5 for offset in range(4)]
        assert torch.equal(
            stitched[number], cells.view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, 8, 8)
        )


def test_cells_are_the_members_made_smaller():
    torch.manual_seed(0)
    images, chosen = torch.rand(4, 3, 16, 16), members(4, 2)
    area = stitch(images, chosen)
    torch.testing.assert_close(area[1, :, 8:, :8], F.avg_pool2d(images[3], 2))
    bicubic = stitch(images, chosen, resize="bicubic")
    small = F.interpolate(images[3:4], size=(8, 8), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(bicubic[1, :, 8:, :8], small)
    assert torch.equal(stitch(images, members(4, 1)), images)


@pytest.mark.parametrize(("batch", "side"), [(7, 1), (9, 2), (20, 3)])
def test_targets_of_neighbours_are_patchmixs(batch, side):
    """The same shares as M = r * r mixed images have, which PatchMix's reference data holds."""
    chosen = members(batch, side)
    torch.testing.assert_close(stitched_to_single_targets(chosen), mix_targets(batch, side**2))
    torch.testing.assert_close(stitched_to_stitched_targets(chosen, chosen), mix_to_mix_targets(batch, side**2))


def test_targets_of_drawn_members_count_the_common_ones():
    torch.manual_seed(0)
    one, two = members(6, 2, random=True), members(6, 2, random=True, shuffle=True)
    assert torch.bincount(one.flatten(), minlength=6).tolist() == [4] * 6
    assert not torch.equal(one.sort(dim=1).values, two.sort(dim=1).values)
    targets = stitched_to_stitched_targets(one, two)
    for row in range(6):
        for column in range(6):
            common = set(one[row].tolist()) & set(two[column].tolist())
            assert targets[row, column].item() == pytest.approx(len(common) / 16)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))


def test_shuffled_cells_keep_the_members():
    torch.manual_seed(0)
    plain, shuffled = members(8, 2), members(8, 2, shuffle=True)
    assert not torch.equal(plain, shuffled)
    assert torch.equal(plain.sort(dim=1).values, shuffled.sort(dim=1).values)


def test_the_three_losses_are_soft_cross_entropies():
    objective = tiny(sides=(2,)).eval()
    (inputs,) = objective.inputs(four_views(9))
    losses = objective(**inputs)
    with torch.no_grad():
        query = F.normalize(objective.query(inputs["stitched1"]))
        keys = {name: F.normalize(objective.key(inputs[name])) for name in ("stitched2", "single1", "single2")}
        single = F.normalize(objective.query(inputs["single1"]))

    def cross_entropy(queries, keys, targets):
        return -(targets * (queries @ keys.T / 0.2).log_softmax(1)).sum(1).mean()

    expected = {
        "stitched_to_single": cross_entropy(query, keys["single1"], mix_targets(9, 4)),
        "stitched_to_stitched": cross_entropy(query, keys["stitched2"], mix_to_mix_targets(9, 4)),
        "single_to_single": cross_entropy(single, keys["single2"], torch.eye(9)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    torch.testing.assert_close(losses["loss"], sum(expected.values()))


def test_options_change_the_losses_as_they_say():
    views = four_views(9)
    (inputs,) = tiny(sides=(2,)).inputs(views)
    plain = tiny(sides=(2,)).eval()(**inputs)
    summed = tiny(sides=(2,), average_members=False).eval()(**inputs)
    torch.testing.assert_close(summed["stitched_to_single"], 4 * plain["stitched_to_single"])
    torch.testing.assert_close(summed["single_to_single"], plain["single_to_single"])
    exchanged = {
        "stitched1": inputs["stitched2"],
        "stitched2": inputs["stitched1"],
        "single1": inputs["single2"],
        "single2": inputs["single1"],
        "members1": inputs["members2"],
        "members2": inputs["members1"],
    }
    other_way = tiny(sides=(2,)).eval()(**exchanged)
    both = tiny(sides=(2,), symmetric=True).eval()(**inputs)
    torch.testing.assert_close(both["loss"], (plain["loss"] + other_way["loss"]) / 2)


def test_sides_are_drawn_from_those_given():
    objective, views = tiny(sides=(1, 2)), four_views(5)
    seen = {objective.inputs(views)[0]["members1"].shape[1] for _ in range(20)}
    assert seen == {1, 4}
    whole = tiny(sides=(1,)).inputs(views)[0]
    assert torch.equal(whole["stitched1"], views[0].pixels)
    assert torch.equal(whole["single2"], views[3].pixels)


def test_views_of_images_become_a_loss():
    pytest.importorskip("kornia", reason="augmentations need kornia")
    objective = tiny()
    (inputs,) = objective.inputs(objective.views(torch.rand(6, 3, 20, 24)))
    losses = objective(**inputs)
    assert losses["loss"].isfinite()
    assert losses["loss"].requires_grad


def test_training_lowers_the_loss_and_moves_no_key_by_gradient():
    objective = tiny(sides=(2,))
    (inputs,) = objective.inputs(four_views(9))
    optimizer = torch.optim.AdamW(objective.parameter_groups(0.04), lr=3e-3)
    momentum = {name: value.clone() for name, value in objective.momentum_encoder.named_parameters()}
    losses = []
    for _ in range(15):
        found = objective(**inputs)
        optimizer.zero_grad()
        found["loss"].backward()
        objective.clip_gradients()
        optimizer.step()
        losses.append(found["loss"].item())
    assert losses[-1] < losses[0] - 0.5
    for name, value in objective.momentum_encoder.named_parameters():
        assert torch.equal(value, momentum[name])


def test_what_cannot_be_is_refused():
    with pytest.raises(LlavaStfError, match=r"sides must divide the image of 16 pixels, found \[3\]"):
        tiny(sides=(1, 3))
    with pytest.raises(LlavaStfError, match="at least 1"):
        MOSOptions(sides=(0, 2))
    with pytest.raises(LlavaStfError, match="'area' or 'bicubic'"):
        MOSOptions(resize="nearest")
    with pytest.raises(LlavaStfError, match="3 x 3 cells do not divide images of 16 x 16"):
        stitch(torch.zeros(9, 3, 16, 16), members(9, 3))
