"""RandAugment: each operation against PIL's own function, which timm calls, and draws for each image."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps


@pytest.fixture(scope="module")
def operations():
    pytest.importorskip("kornia", reason="RandAugment needs kornia")
    from llava_stf.encoders.randaugment import operations

    return operations((0.25, 0.5, 0.75))


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


# Strength 0.9 as timm has it, sign -1; PIL's own functions are the reference.
PIL = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, 1),
    "solarize": lambda image: ImageOps.solarize(image, 26),
    "solarize_add": lambda image: image.point([min(255, i + 99) if i < 128 else i for i in range(256)] * 3),
    "color": lambda image: ImageEnhance.Color(image).enhance(0.19),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.19),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(0.19),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(0.19),
    "rotate": lambda image: image.rotate(-27, Image.Resampling.BILINEAR),
    "shear_x": lambda image: affine(image, (1, -0.27, 0, 0, 1, 0)),
    "shear_y": lambda image: affine(image, (1, 0, 0, -0.27, 1, 0)),
    "translate_x": lambda image: affine(image, (1, 0, -0.405 * 24, 0, 1, 0)),
    "translate_y": lambda image: affine(image, (1, 0, 0, 0, 1, -0.405 * 24)),
}


@pytest.mark.parametrize("name", PIL)
def test_an_operation_is_pils(operations, name):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(20, 236, (4, 4, 3), dtype=np.uint8))
    image = small.resize((24, 24), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    found = operations[name](pixels, torch.tensor([0.9]), torch.tensor([-1])).clamp(0, 1)[0]
    expected = torch.from_numpy(np.array(PIL[name](image))).permute(2, 0, 1) / 255
    inside = (expected > 0).all(0) if name[:5] in ("rotat", "shear", "trans") else torch.ones(24, 24, dtype=bool)
    core = -torch.nn.functional.max_pool2d(-inside[None].float(), 5, 1, 2)[0] > 0  # PIL does not blend at the border
    assert core.float().mean() > 0.2
    # PIL rounds to 1 / 255, and its contrast the mean gray too.
    torch.testing.assert_close(found[:, core], expected[:, core], atol=2 / 255, rtol=0)


def test_what_moves_in_has_the_fill_colour(operations):
    moved = operations["translate_x"](torch.ones(1, 3, 20, 20), torch.tensor([1.0]), torch.tensor([1]))
    assert moved[0, :, 5, -1].tolist() == pytest.approx([0.25, 0.5, 0.75])
    assert moved[0, :, 5, 0].tolist() == pytest.approx([1, 1, 1])


def test_randaugment_draws_for_each_image_and_repeats_by_seed(operations):
    from llava_stf.encoders.randaugment import RandAugment

    augment = RandAugment()
    pixels = torch.rand(1, 3, 16, 16).expand(64, 3, 16, 16)
    torch.manual_seed(5)
    first = augment(pixels)
    torch.manual_seed(5)
    assert torch.equal(first, augment(pixels))
    untouched = (first == pixels).flatten(1).all(1).sum()
    assert 4 < untouched < 32  # a quarter draws no operation
    assert len({row.sum().item() for row in first}) > 30
    assert 0 <= first.min() <= first.max() <= 1
