"""A video as the frames of it that a model is shown, read from a file, an array or a list of frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_stf.errors import ImageError, VideoError
from llava_stf.images.decode import even_indices, read_file
from llava_stf.images.load import ImageSource, load_image

VideoSource = str | os.PathLike[str] | np.ndarray | Sequence[ImageSource]

DEFAULT_FRAMES = 8
# By these a path is known to be a video's without a look into the file.
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)


@dataclass(frozen=True, init=False)
class Video:
    """Frames of a video, chosen evenly from its first to its last.

    Args:
        source: A path; an array [frames, H, W, 3], or one of the other shapes of images; or a list of frames, each as
            `load_image` takes it. An animation (GIF, WEBP, PNG) is read by Pillow, every other file by PyAV.
        frames: How many are chosen at most; a shorter video gives all that it has.

    Attributes:
        frames: The chosen ones, upright, in mode "RGB".
        total: How many the video has.

    Raises:
        VideoError: It cannot be read, has no frame, or `frames` is below 1.
        MissingDependencyError: A file needs PyAV, which is not installed.
    """

    frames: tuple[Image.Image, ...]
    total: int

    def __init__(self, source: VideoSource, frames: int = DEFAULT_FRAMES) -> None:
        chosen: Sequence[ImageSource]
        if frames < 1:
            raise VideoError(f"A video is shown in at least 1 frame, found frames={frames}.")
        if isinstance(source, str | os.PathLike):
            chosen, total = read_file(Path(os.fsdecode(source)), frames)
        elif isinstance(source, np.ndarray) and source.ndim != 4:
            raise VideoError(f"A video array has shape [frames, H, W, 3], found {list(source.shape)}.")
        elif isinstance(source, np.ndarray | Sequence) and not isinstance(source, bytes):
            total = len(source)
            chosen = [source[index] for index in even_indices(total, frames)]
        else:
            raise VideoError(
                f"A video is a path, an array [frames, H, W, 3] or a list of frames; found {type(source).__name__}."
            )
        if not total:
            raise VideoError("The video has no frame.")
        try:
            object.__setattr__(self, "frames", tuple(load_image(frame) for frame in chosen))
        except ImageError as error:
            raise VideoError(f"A frame cannot be read: {error}") from error
        object.__setattr__(self, "total", total)


def is_video(source: Any) -> bool:
    """Whether what stands for an image is a video: a `Video`, an array [frames, H, W, C], a path that ends as one."""
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source)).suffix.lower() in VIDEO_SUFFIXES
    return isinstance(source, Video) or (isinstance(source, np.ndarray) and source.ndim == 4)
