"""Every kind of image a user may hold is read as upright 8-bit RGB, or refused in one sentence that names it."""

import asyncio
import io
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_stf.errors import ImageError
from llava_stf.images import MAX_SIDE, load_image, read_header, to_rgb
from llava_stf.images import load as images

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def image() -> Image.Image:
    """A gradient, 7 wide and 5 high, that no flip or channel swap leaves as it is."""
    return Image.fromarray(np.arange(7 * 5 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))


def test_path_text_path_bytes_pil_and_array_give_the_same_image(image: Image.Image, tmp_path: Path) -> None:
    file = tmp_path / "an image.png"
    image.save(file)
    for source in (file, str(file), file.read_bytes(), image, np.asarray(image)):
        assert same(load_image(source), image)


def test_a_lazily_opened_pil_image_is_read_and_stays_usable(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert same(load_image(opened), image)
        assert opened.convert("RGB").size == image.size


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "JPEG2000", "PPM", "TGA", "TIFF", "WEBP"])
def test_common_formats_equal_pillow(kind: str, image: Image.Image) -> None:
    data = encode(image, kind)
    assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_8_bit_mode_equals_convert_rgb(mode: str, image: Image.Image) -> None:
    converted = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert same(load_image(converted), converted.convert("RGB"))


def test_transparency_is_dropped_as_the_authors_do(recwarn: pytest.WarningsRecorder) -> None:
    assert load_image(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == RED
    palette = Image.new("P", (2, 2))
    palette.putpalette([*RED, *BLUE])
    assert load_image(encode(palette, transparency=b"\x00\x80")).getpixel((0, 0)) == RED
    assert not recwarn.list


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red, green, blue = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greys_are_scaled_not_clipped(kind: str) -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    expected = np.array([[0, 1, 128, 255]], dtype=np.uint8)
    for source in (encode(Image.fromarray(grey), kind), grey):
        assert np.array_equal(np.asarray(load_image(source))[..., 0], expected)


def test_32_bit_and_float_pil_images_take_the_range_they_fit_in() -> None:
    wide = np.array([[0, 100, 255]], dtype=np.int32)
    assert np.asarray(load_image(Image.fromarray(wide)))[0, :, 0].tolist() == [0, 100, 255]
    assert np.asarray(load_image(Image.fromarray(wide * 257)))[0, :, 0].tolist() == [0, 100, 255]
    assert np.asarray(load_image(Image.fromarray(np.array([[0, 1.0]], np.float32))))[0, :, 0].tolist() == [0, 255]


def test_the_exif_tag_turns_a_photograph_upright() -> None:
    lying = Image.new("RGB", (20, 10), BLUE)
    lying.paste(RED, (0, 0, 10, 10))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the left half comes to stand above
    for source in (encode(lying, "JPEG", exif=exif, quality=95), Image.open(io.BytesIO(encode(lying, exif=exif)))):
        upright = load_image(source)
        assert upright.size == (10, 20)
        assert upright.getpixel((5, 2))[0] > 200
        assert upright.getpixel((5, 17))[2] > 200


def test_an_animation_gives_its_first_frame() -> None:
    data = encode(Image.new("RGB", (4, 4), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), BLUE)])
    assert load_image(data).getpixel((0, 0)) == RED


def test_one_pixel() -> None:
    assert load_image(np.array([[[1, 2, 3]]], dtype=np.uint8)).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("array", "pixel"),
    [
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 4), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 3), 1.0, np.float32), (255, 255, 255)),
        (np.full((2, 3, 3), 0.5, np.float16), (128, 128, 128)),
        (np.full((2, 3), True), (255, 255, 255)),
        (np.full((2, 3), 200, np.int64), (200, 200, 200)),
        (np.full((3, 2, 4), 9, np.uint8).transpose(1, 0, 2), (9, 9, 9)),
    ],
    ids=["grey", "HxWx1", "RGBA", "float", "half", "bool", "int64", "strided"],
)
def test_arrays(array: np.ndarray, pixel: tuple[int, int, int]) -> None:
    image = load_image(array)
    assert (image.size, image.getpixel((1, 1))) == ((3, 2), pixel)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"\[H, W, 3\].*\[3, 8, 8\]"),
        (np.zeros(5, np.uint8), r"\[5\]"),
        (np.full((4, 4, 3), 200.0), r"0\.\.1.*200"),
        (np.full((4, 4), -1), r"0\.\.255.*-1"),
        (np.full((4, 4), np.nan), "nan"),
        (np.full((4, 4), 70000), "70000"),
        (np.full((4, 4), "x"), "<U1"),
    ],
    ids=["empty", "channels-first", "flat", "float-255", "negative", "nan", "over-16-bit", "text"],
)
def test_arrays_that_are_no_image(array: np.ndarray, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        load_image(array)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_truncated_file_is_named(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    file = tmp_path / f"cut.{kind.lower()}"
    data = encode(noise, kind)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=str(file)):
        load_image(file)


def test_files_that_are_no_image_are_named(tmp_path: Path) -> None:
    empty, text, script = tmp_path / "empty.png", tmp_path / "notes.txt", tmp_path / "drawing.eps"
    empty.write_bytes(b"")
    text.write_text("not an image")
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for file in (empty, text, script):
        with pytest.raises(ImageError, match=f"{file} is empty or not an image"):
            load_image(file)
    with pytest.raises(ImageError, match=f"No image file at {tmp_path}/missing.png"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=f"{tmp_path} is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="Cannot open"):
        load_image("a\0b.png")
    for long in ("x" * 5000, Path("x" * 5000), Path("x" * 300) / "a.png"):
        with pytest.raises(ImageError, match=r"Cannot open x{200}\.\.\.") as caught:
            load_image(long)
        assert len(str(caught.value)) < 400
    with pytest.raises(ImageError, match=r"Cannot open iVBOR.*6,024 characters are no path; decode base64"):
        load_image("iVBORw0KGgoAAAANSUhEUgAA" + "A" * 6000)
    with pytest.raises(ImageError, match=r"No image file at a \\udcff.png"):
        load_image("a \udcff.png")


def test_a_path_of_windows_is_known(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "one.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="write / where the path has a backslash"):
        load_image("images\\one.png")
    with pytest.raises(ImageError, match="check the path"):
        load_image("images\\two.png")


def test_a_decompression_bomb_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (300, 300)).save(file)
    for limit in (80_000, 40_000):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=rf"{file} has more than {limit:,} pixels"):
            load_image(file)


def test_a_callers_own_pixel_limit_holds_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("L", (30, 20)).save(file)
    truncated = file.read_bytes()[:45]  # the header alone: decoding would complain about that
    for source in (file, str(file), file.read_bytes(), truncated):
        with pytest.raises(ImageError, match="30x20, more than 599 pixels"):
            load_image(source, max_pixels=599)
    assert load_image(file, max_pixels=600).size == (30, 20)


def test_a_real_bomb_costs_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (14_000, 14_000)).save(file)
    start = time.monotonic()
    with pytest.raises(ImageError, match="pixels"):
        load_image(file)
    assert time.monotonic() - start < 1


def test_an_icon_is_checked_before_it_is_decoded(tmp_path: Path) -> None:
    """An icon's header says 32 x 32, whatever the PNG in it holds."""
    png = encode(Image.new("1", (14_000, 14_000)))
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(png), 22)
    bomb = struct.pack("<HHH", 0, 1, 1) + entry + png
    peak = _peak_megabytes(bomb, tmp_path)
    assert peak < 50
    with pytest.raises(ImageError, match="pixels"):
        load_image(bomb)
    small = encode(Image.new("RGBA", (32, 32), RED), "ICO")
    assert load_image(small).getpixel((0, 0)) == RED


def test_no_process_wide_warning_filter_is_touched(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen, open_ = list(warnings.filters), [], Image.open

    def recording(*args: Any, **options: Any) -> Image.Image:
        seen.append(list(warnings.filters))
        return open_(*args, **options)

    monkeypatch.setattr(Image, "open", recording)
    load_image(encode(image))
    assert seen == [before]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_a_large_image_is_reduced_strip_by_strip_as_it_would_be_in_one(mode: str) -> None:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 255, (151, 9, 3), dtype=np.uint8))
    image = pixels.resize((MAX_SIDE + 5, 523)).convert(mode)
    expected = image.convert("RGBA" if mode == "P" else mode).convert("RGB").reduce(2)
    assert same(load_image(image), expected)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert same(load_image(encode(image, kind)), expected)


def test_a_large_16_bit_image_keeps_one_scale_for_all_strips() -> None:
    values = np.zeros((1500, MAX_SIDE + 4), np.int32)
    values[-1, -4:] = 65535
    assert np.asarray(load_image(Image.fromarray(values)))[-1, -1, 0] in (127, 128)  # one of two rows is black
    values[:700] = 200  # below 256: in a strip of its own it would be taken for 8 bits
    assert np.asarray(load_image(Image.fromarray(values)))[0, 0, 0] == 1


def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same() -> None:
    wave = np.linspace(0, 6.28, 5000)
    values = 127 + 120 * np.sin(wave)[None, :, None] * np.cos(np.linspace(0, 6.28, 1200))[:, None, None]
    image = Image.fromarray(np.repeat(values, 3, axis=2).astype(np.uint8))
    reduced = load_image(encode(image, "JPEG", quality=95))
    assert reduced.size == (2500, 600)
    assert np.abs(np.asarray(reduced, int) - np.asarray(image.reduce(2), int)).max() <= 3


def test_images_up_to_the_bound_keep_every_pixel() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, MAX_SIDE, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG"):
        data = encode(image, kind)
        assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


def _peak_megabytes(data: bytes, folder: Path, call: str = "load_image(data, max_pixels=50_000_000)") -> float:
    """By how much the memory of a process of its own grows at most while it reads an image."""
    (folder / "data").write_bytes(data)
    program = (
        "import resource\nfrom pathlib import Path\nfrom PIL import Image\n"
        "from llava_stf.errors import ImageError\nfrom llava_stf.images import load_image\n"
        "Image.init()\n"
        f"data = Path({str(folder / 'data')!r}).read_bytes()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    {call}\nexcept ImageError:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024  # Linux counts in KiB


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ],
    ids=lambda value: str(value),
)
def test_memory_is_as_told_from_the_header(kind: str, mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    data = encode(Image.new(mode, (5000, 5000), 77 if mode == "P" else "teal"), kind, **options)
    told = read_header(data).decoding_bytes / 2**20
    assert told < 270  # 25 megapixels of 4 bytes, their quarter, and a progressive JPEG's 6 bytes
    # 40 MiB: the libraries' own pages, read at the first image; today's reader without strips takes 200 MiB more.
    assert _peak_megabytes(data, tmp_path) < told + 40


def test_to_rgb_drops_transparency_and_scales_greys_and_turns_nothing() -> None:
    assert to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == RED
    assert to_rgb(Image.new("LA", (2, 2), (9, 0))).getpixel((0, 0)) == (9, 9, 9)
    assert to_rgb(Image.fromarray(np.full((2, 2), 32896, np.uint16))).getpixel((0, 0)) == (128, 128, 128)
    lying = Image.new("RGB", (4, 2))
    lying.getexif()[0x0112] = 6
    assert to_rgb(lying).size == (4, 2)


def test_thin_images_are_refused_and_long_ones_reduced() -> None:
    with pytest.raises(ImageError, match=r"1x5000 pixels.*200 times"):
        load_image(Image.new("L", (1, 5000)))
    assert load_image(Image.new("L", (5, 1000))).size == (5, 1000)
    assert load_image(Image.new("L", (20_000, 101), 77)).size == (4000, 21)


def test_other_types_are_refused() -> None:
    with pytest.raises(ImageError, match="found list"):
        load_image([1, 2])  # type: ignore[arg-type]


# --- URLs ---------------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    data = b""

    def do_GET(self) -> None:
        if self.path == "/missing.png":
            self.send_error(404)
            return
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "/a.png" if self.path == "/redirect" else "file:///etc/hostname")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/slow.png":
                for _ in range(100):  # always alive, never done: no single read ever times out
                    self.wfile.write(b".")
                    self.wfile.flush()
                    time.sleep(0.1)
            self.wfile.write(self.data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has seen enough

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for variable in images.OFFLINE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(_Handler, "data", encode(image))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_url_is_fetched_also_through_a_redirect(server: str, image: Image.Image) -> None:
    assert same(load_image(f"{server}/a.png"), image)
    assert same(load_image(f"{server}/redirect"), image)


def test_a_url_is_fetched_inside_a_running_event_loop(server: str, image: Image.Image) -> None:
    async def read() -> Image.Image:
        return load_image(f"{server}/a.png")

    assert same(asyncio.run(read()), image)


@pytest.mark.parametrize(
    ("path", "said"),
    [("/missing.png", "404"), ("/redirect-to-file", "cannot be fetched")],
)
def test_a_url_that_gives_no_image_is_named(server: str, path: str, said: str) -> None:
    with pytest.raises(ImageError, match=f"{server}{path}.*{said}"):
        load_image(server + path)


def test_a_download_has_a_size_limit(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", 2**20)
    monkeypatch.setattr(_Handler, "data", bytes(2**20 + 1))
    with pytest.raises(ImageError, match=f"{server}/a.png is larger than 1 MiB"):
        load_image(f"{server}/a.png")


def test_a_download_has_a_time_limit_over_all_of_it(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DOWNLOAD_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(ImageError, match=f"{server}/slow.png did not arrive within 0.5 seconds"):
        load_image(f"{server}/slow.png")
    assert time.monotonic() - start < 3


def test_an_unreachable_host_is_named(server: str) -> None:
    with pytest.raises(ImageError, match=r"http://127\.0\.0\.1:1/a\.png cannot be fetched"):
        load_image("http://127.0.0.1:1/a.png")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.com/a.png", "s3://bucket/a.png"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match=f"{url} is not fetched: only http and https"):
        load_image(url)


@pytest.mark.parametrize("variable", images.OFFLINE_VARIABLES)
def test_nothing_is_fetched_in_offline_mode(variable: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ImageError, match=f"{server}/a.png is not fetched: {variable} is set"):
        load_image(f"{server}/a.png")
