"""Frames of a video file: animations by Pillow, everything else by PyAV (the extra `video`)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from llava_stf.errors import MissingDependencyError, VideoError

_ANIMATIONS = ("GIF", "PNG", "WEBP")


def even_indices(total: int, wanted: int) -> list[int]:
    """Indices of `wanted` of `total` frames, evenly from the first to the last; all of them where there are no more.

    One frame is the middle one.
    """
    if wanted >= total:
        return list(range(total))
    if wanted == 1:
        return [total // 2]
    return [round(place * (total - 1) / (wanted - 1)) for place in range(wanted)]


def read_file(path: Path, wanted: int) -> tuple[list[Image.Image], int]:
    """The frames of a file that `even_indices` names, and how many it has.

    Raises:
        VideoError: it is not there, is no video or one image, or is damaged.
        MissingDependencyError: PyAV is needed and not installed.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1)
    except OSError as error:
        raise VideoError(f"Cannot open the video {path}: {error.strerror or error}.") from error
    if not head:
        raise VideoError(f"The video {path} is an empty file.")
    return _animation(path, wanted) or _decoded(path, wanted)


def _animation(path: Path, wanted: int) -> tuple[list[Image.Image], int] | None:
    """As `read_file`, of a file that Pillow knows for an image; else `None`."""
    try:
        with Image.open(path) as image:
            total = getattr(image, "n_frames", 1)
            if total == 1 or image.format not in _ANIMATIONS:
                raise VideoError(f"{path} is one image ({image.format}) and no video; give it as an image.")
            indices = set(even_indices(total, wanted))
            frames = enumerate(ImageSequence.Iterator(image))
            return [frame.convert("RGB") for index, frame in frames if index in indices], total
    except UnidentifiedImageError:
        return None
    except VideoError:
        raise
    except Exception as error:  # Pillow's parsers let any kind of exception out on a damaged file
        raise VideoError(f"Cannot read the animation {path}, the file is damaged: {error}.") from error


def _decoded(path: Path, wanted: int) -> tuple[list[Image.Image], int]:
    try:
        av: Any = import_module("av")  # so that carried code can be read where it is not installed
    except ImportError as error:
        raise MissingDependencyError(f"Reading {path} needs PyAV: pip install 'llava-stf[video]'") from error
    try:
        total = _packets(path, av)
        found, decoded = _chosen(path, av, even_indices(total, wanted))
        if decoded != total:  # packets that hold no frame of their own, or a file that breaks off
            total = decoded
            found, _ = _chosen(path, av, even_indices(total, wanted))
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise VideoError(f"{path} is damaged, or no video that PyAV can read: {error}.") from error
    if not total:
        raise VideoError(f"{path} holds no frame that can be decoded.")
    return found, total


def _packets(path: Path, av: Any) -> int:
    """How many frames the file says to have, without decoding them."""
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(_stream(container, path)) if packet.size)


def _chosen(path: Path, av: Any, indices: list[int]) -> tuple[list[Image.Image], int]:
    """The frames of these indices, and how many were decoded."""
    wanted, found, count = set(indices), [], 0
    for frame in _frames(path, av):
        if count in wanted:
            found.append(frame.to_image())
        count += 1
    return found, count


def _frames(path: Path, av: Any) -> Iterator[Any]:
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        stream.thread_type = "AUTO"
        try:
            yield from container.decode(stream)
        except av.error.InvalidDataError:  # the end of a file that breaks off
            return


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path} has no video in it.")
    return container.streams.video[0]
