"""Augmentations and data order: crops are the boxes, everything repeats by seed, every image comes once an epoch."""

import pytest
import torch

from llava_stf.encoders.pretrain.augment import Augmentation, Recipe, crop, random_boxes
from llava_stf.encoders.pretrain.schedule import Batches, cosine_by_epoch

PLAIN = {"jitter_p": 0.0, "gray_p": 0.0, "flip_p": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}


def test_a_crop_equals_slicing_and_resizing():
    images = torch.rand(2, 3, 12, 16)
    boxes = torch.tensor([[2.0, 4.0, 6.0, 8.0], [0.0, 0.0, 12.0, 16.0]])
    for image, box, found in zip(images, boxes, crop(images, boxes, 24, "bilinear"), strict=True):
        y, x, h, w = box.int().tolist()
        resized = torch.nn.functional.interpolate(image[None, :, y : y + h, x : x + w], size=(24, 24), mode="bilinear")
        # At the border of a box the sampler reads the image beyond it, `interpolate` repeats the last pixel.
        torch.testing.assert_close(found[:, 3:-3, 3:-3], resized[0, :, 3:-3, 3:-3])


def test_boxes_lie_in_the_image_and_have_the_asked_share():
    torch.manual_seed(0)
    boxes = random_boxes(500, (40, 60), (0.2, 0.5))
    y, x, h, w = boxes.unbind(1)
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= 40).all() and (x + w <= 60).all()  # noqa: PT018
    share = h * w / 2400
    assert 0.18 < share.min() < 0.22 < 0.47 < share.max() < 0.53
    assert y.max() > 10 > 1 > y.min()


def test_a_image_too_thin_for_every_try_gives_its_middle():
    boxes = random_boxes(4, (8, 200), (1.0, 1.0))
    assert boxes.tolist() == [[0, 94, 8, 11]] * 4  # 11 = round(8 * 4 / 3)


def test_a_flip_is_reported_and_follows_the_crop():
    images = torch.rand(32, 3, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(32, 4)
    view = Augmentation(Recipe(8, (1.0, 1.0), **(PLAIN | {"flip_p": 0.5})))(images, boxes)
    assert 0 < view.flipped.sum() < 32
    expected = torch.where(view.flipped[:, None, None, None], images.flip(-1), images)
    torch.testing.assert_close(view.pixels, expected, atol=1e-5, rtol=0)


def test_colours_change_and_repeat_by_seed():
    images = torch.rand(16, 3, 8, 8)
    augmentation = Augmentation(Recipe(8, (0.3, 1.0), blur_p=0.5, solarize_p=0.5))
    torch.manual_seed(3)
    first = augmentation(images)
    torch.manual_seed(3)
    again = augmentation(images)
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, augmentation(images).pixels)
    gray = Augmentation(Recipe(8, (1.0, 1.0), **(PLAIN | {"gray_p": 1.0})))(images).pixels
    torch.testing.assert_close(gray[:, 0], gray[:, 2])


def test_solarising_inverts_from_the_threshold_on():
    recipe = Recipe(4, (1.0, 1.0), solarize_p=1.0, **PLAIN)
    dark, bright = torch.full((1, 3, 4, 4), 127 / 255), torch.full((1, 3, 4, 4), 200 / 255)
    pixels = Augmentation(recipe)(torch.cat([dark, bright])).pixels
    torch.testing.assert_close(pixels, torch.cat([dark, 1 - bright]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", [0, 3])
def test_processes_share_an_epoch_and_a_resumed_one_goes_on(start):
    def order(rank, start):
        return list(Batches(25, 2, epochs=2, accumulation=2, rank=rank, processes=2, seed=1, start=start))

    both = [order(rank, start) for rank in range(2)]
    assert both == [order(rank, 0)[2 * start :] for rank in range(2)]
    if start == 0:
        first_epoch = [number for numbers in both for batch in numbers[: 2 * 3] for number in batch]
        assert len(first_epoch) == len(set(first_epoch)) == 24
        assert both[0][:6] != both[0][6:]


def test_the_rate_by_epoch_is_the_lesser_of_warm_up_and_cosine():
    rates = [cosine_by_epoch(epoch, base=2.0, epochs=100, warmup_epochs=20) for epoch in (0, 9, 50, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 2 * 0.000246719], rel=1e-5)
