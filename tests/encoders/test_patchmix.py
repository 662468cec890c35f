"""PatchMix: shares of a mixed image, options, what is refused."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from llava_stf.encoders.objectives.base import Progress
from llava_stf.encoders.objectives.patch_mixing import mix, mix_to_mix_targets
from llava_stf.encoders.objectives.patchmix import PatchMix, PatchMixOptions
from llava_stf.errors import LlavaStfError


def objective(**changes):
    """A PatchMix on 8-pixel images in 4 patches."""
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    return PatchMix(ViTModel(vit, add_pooling_layer=False), PatchMixOptions(hidden=8, out=8, **changes))


@pytest.mark.parametrize(("images_per_mix", "rest"), [(2, 1), (3, 0), (4, 1)])
def test_a_mixed_image_has_an_equal_share_of_each_and_every_patch_at_its_place(images_per_mix, rest):
    images = torch.arange(5.0)[:, None, None, None] * 100 + torch.arange(9.0).view(3, 3).repeat_interleave(
        2, 0
    ).repeat_interleave(2, 1)
    images = images.expand(5, 3, 6, 6)
    mixed = mix(images, 2, images_per_mix, torch.randperm(9))
    assert torch.equal(mixed % 100, images % 100)
    for number, image in enumerate(mixed[:, 0] // 100):
        sources = (image[::2, ::2].flatten() - number) % 5
        counts = torch.bincount(sources.long(), minlength=images_per_mix).tolist()
        assert counts == [9 // images_per_mix + rest, *[9 // images_per_mix] * (images_per_mix - 1)]


def test_mixed_targets_sum_to_one_over_both_processes():
    rows = mix_to_mix_targets(6, 3, 0.2, rank=1, processes=2)
    assert rows.shape == (6, 12)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(6))
    assert (rows[:, :6] < rows[:, 6:].max()).all()


def test_the_momentum_encoder_follows_and_learns_by_no_gradient():
    model = objective(momentum=0.5)
    before = model.momentum_encoder.layernorm.weight.clone()
    with torch.no_grad():
        model.encoder.layernorm.weight.add_(1)
    model.before_step(Progress(0, 1000, 1000))
    torch.testing.assert_close(model.momentum_encoder.layernorm.weight, before + 0.5, atol=1e-4, rtol=0)
    views = [view.pixels for view in model.views(torch.rand(4, 3, 8, 8))]
    model(view1=views[0], view2=views[1], mixed1=views[0], mixed2=views[1])["loss"].backward()
    assert all(parameter.grad is None for parameter in model.momentum_encoder.parameters())
    assert model.trained_encoder() is model.momentum_encoder
    assert objective(momentum=None).trained_encoder().layernorm.weight.requires_grad


def test_released_momentum_changes_per_epoch_and_the_corrected_one_per_step():
    def moved(step, **changes):
        model = objective(momentum=0.0, **changes)
        for parameter in model.encoder.parameters():
            parameter.data.fill_(1.0)
        for parameter in model.momentum_encoder.parameters():
            parameter.data.zero_()
        model.before_step(Progress(step, steps_per_epoch=10, epochs=2))
        return model.momentum_encoder.layernorm.weight[0].item()

    assert moved(1) == moved(9) != moved(10)
    assert moved(1, momentum_per_step=True) > moved(9, momentum_per_step=True)
    assert PatchMixOptions.corrected().identity_smoothing == 0
    assert PatchMixOptions.corrected().momentum_per_step


def test_stochastic_depth_is_of_the_query_encoder_in_training_alone():
    model = objective(drop_path=0.9)
    images = torch.rand(6, 3, 8, 8)
    assert not torch.equal(model.project(images), model.project(images))
    assert torch.equal(model.key(images), model.key(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"images_per_mix": 1}, "at least 2, found 1"), ({"local_crops": 2, "local_crop_size": 6}, "local_crop_size 6")],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(LlavaStfError, match=message):
        objective(**changes)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(LlavaStfError, match="patches of 4 pixels do not divide images of 6 x 8"):
        mix(torch.zeros(2, 3, 6, 8), 4, 2, torch.arange(2))
