"""Whatever image, window or grid comes in: a usable result, or one of this package's errors, never another one."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from llava_stf.errors import FusionError, ImageError
from llava_stf.images import MAX_ASPECT_RATIO, load_image
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig

SIDE = 56
# A format that can hold the mode, so that the image takes the same way as a user's file.
FORMATS = {
    "1": ("PNG", "TIFF", "BMP"),
    "L": ("PNG", "JPEG", "WEBP"),
    "LA": ("PNG",),
    "P": ("PNG", "GIF"),
    "RGB": ("PNG", "JPEG", "WEBP", "BMP", "GIF"),
    "RGBA": ("PNG", "TIFF", "WEBP"),
    "CMYK": ("JPEG", "TIFF"),
    # Pillow 12 cannot read the YCbCr TIFF that it writes.
    "YCbCr": ("JPEG", "TIFF") if int(PIL.__version__.split(".")[0]) >= 13 else ("JPEG",),
    "LAB": ("TIFF",),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
}
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["pad", "square"])
def processor(request: pytest.FixtureRequest, stf_folder: Path) -> Any:
    """With both ways of LLaVA to make an image square: a canvas around it, or its middle."""
    processor = AutoProcessor.from_pretrained(stf_folder)
    if request.param == "square":
        size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
        processor.image_processor = CLIPImageProcessorPil(size=size, crop_size=crop)
    return processor


def raw_image(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """Noise in any of Pillow's modes, within the range that the mode is written for."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32))
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "LAB":
        return Image.frombytes("LAB", rgb.size, rgb.tobytes())
    return rgb.convert(mode)


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def read_or_refusal(source: Any) -> Image.Image | str:
    """The image, or the sentence that says why there is none; any other exception fails the test."""
    try:
        return load_image(source)
    except ImageError as error:
        return str(error)


files = st.sampled_from([(mode, kind) for mode, kinds in FORMATS.items() for kind in kinds])
sides = st.one_of(st.integers(1, 5), st.integers(1, 130), st.integers(1, 1500))


@fuzz
@given(file=files, width=sides, height=sides, seed=st.integers(0, 9))
def test_every_mode_and_size_reaches_the_model(
    processor: Any, file: tuple[str, str], width: int, height: int, seed: int
) -> None:
    mode, kind = file
    data = encode(raw_image(mode, width, height, seed), kind)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        with pytest.raises(ImageError, match=f"{width}x{height}"):
            load_image(data)
        return
    image = load_image(data)
    assert (image.mode, image.size) == ("RGB", (width, height))
    inputs = processor(images=image, text="<image>", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert inputs["pixel_values"].isfinite().all()
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 4


@pytest.mark.parametrize("size", [(8200, 41), (41, 8200), (30_000, 150), (3, 600)])
def test_the_longest_and_thinnest_images_stay_affordable(processor: Any, size: tuple[int, int]) -> None:
    inputs = processor(images=load_image(Image.new("RGB", size, (10, 200, 30))), text="<image>", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)


@fuzz
@given(
    file=files, seed=st.integers(0, 3), cut=st.floats(0, 1), changes=st.lists(st.tuples(st.floats(0, 1), st.binary()))
)
def test_a_mutilated_file_is_read_or_refused(
    tmp_path: Path, file: tuple[str, str], seed: int, cut: float, changes: list[tuple[float, bytes]]
) -> None:
    mode, kind = file
    data = bytearray(encode(raw_image(mode, 40, 30, seed), kind))
    for place, noise in changes:
        at = int(place * len(data))
        data[at : at + len(noise)] = noise
    path = tmp_path / "hostile.img"
    path.write_bytes(data[: int(cut * len(data)) + 1])
    image = read_or_refusal(path)
    assert str(path) in image if isinstance(image, str) else image.mode == "RGB"


@fuzz
@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0"]),
)
def test_bytes_that_are_no_image_are_refused(data: bytes, magic: bytes) -> None:
    with pytest.raises(ImageError, match=f"image of {len(magic + data)} bytes"):
        load_image(magic + data)


@fuzz
@given(
    shape=st.lists(st.integers(0, 6), max_size=4),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int64", "float16", "float32", "float64", "bool", "complex64"]),
    scale=st.sampled_from([0.0, 1.0, 255.0, 1e6, -1.0, float("nan"), float("inf")]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_array_is_read_or_refused(shape: list[int], dtype: str, scale: float) -> None:
    array = (np.ones(shape) * scale).astype(dtype)
    image = read_or_refusal(array)
    assert image if isinstance(image, str) else (image.mode, image.height, image.width) == ("RGB", *shape[:2])


@fuzz
@given(grid=st.integers(1, 30), window=st.integers(-1, 31), rest=st.integers(0, 13))
def test_a_window_divides_the_grid_or_is_refused_with_both_numbers(grid: int, window: int, rest: int) -> None:
    options = {
        "vision_config": CLIPVisionConfig(
            hidden_size=8, num_hidden_layers=3, num_attention_heads=1, image_size=14 * grid + rest, patch_size=14
        ),
        "text_config": LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
        "fusion_window": window,
    }
    if window < 1 or grid % window:
        with pytest.raises(FusionError, match=f"{window} does not divide the grid of {grid}x{grid}"):
            LlavaStfConfig(**options)
    else:
        assert LlavaStfConfig(**options).image_seq_length == (grid // window) ** 2
