"""What a server is asked, and when: images of which no two are the same, and arrivals of a fixed or a Poisson load.

A server that has seen an image before may have its tokens in a cache. So every request of a measurement, those that
warm the server up included, has an image of its own.
"""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_stf.errors import LlavaStfError
from llava_stf.world import draw, questions_of

ABOUT_AN_IMAGE = "What is shown here?"


@dataclass(frozen=True)
class Question:
    """One request: a text, and an image as a data URL."""

    text: str
    image: str

    @property
    def content(self) -> list[dict[str, Any]]:
        """The content of a user's message, as OpenAI's chat route takes it."""
        return [{"type": "image_url", "image_url": {"url": self.image}}, {"type": "text", "text": self.text}]


@dataclass(frozen=True)
class Load:
    """How requests come: each of so many clients asks again when it is answered, or so many a second come at random."""

    clients: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """How a table calls the load."""
        if self.clients is not None:
            return f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"Poisson, {self.rate:.3g} a second"


def questions(images: Path | None, seed: int, count: int) -> Iterator[Question]:
    """The first `count` questions about the images of a folder, or without one about drawn images.

    Raises:
        LlavaStfError: the folder has fewer images.
    """
    if images is None:
        return (_drawn(index, seed) for index in range(count))
    files = image_files(images)
    if len(files) < count:
        raise LlavaStfError(
            f"{count} requests need as many images, since one that was seen before may come from a cache, and "
            f"{images} has {len(files)}; give more images or ask for fewer --requests."
        )
    return (Question(ABOUT_AN_IMAGE, _data_url(file.read_bytes(), _kind(file))) for file in files[:count])


def image_files(folder: Path) -> list[Path]:
    """The files of a folder whose names end like an image's; hidden ones are none.

    Raises:
        LlavaStfError: it is no folder.
    """
    if not folder.is_dir():
        raise LlavaStfError(f"Expected a folder of images, found none at {folder}.")
    visible = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in visible if _kind(file).startswith("image/"))


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which the requests of a Poisson load come, the first one at 0 included.

    The gaps are exponential, stretched as a whole so that `count` of them last exactly `count / rate`: two servers get
    the same load however the seed falls.
    """
    gaps = np.random.default_rng(seed).exponential(size=count)
    ends = np.cumsum(gaps) * (count / rate / gaps.sum())
    return [0.0, *ends[:-1].tolist()]


def lengths(count: int, shortest: int, longest: int, seed: int) -> list[int]:
    """Tokens of `count` answers, each length from `shortest` to `longest` as likely as the others."""
    return np.random.default_rng(seed).integers(shortest, longest + 1, count).tolist()


def image_url(image: Image.Image) -> str:
    """An image as a data URL of a PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return _data_url(file.getvalue(), "image/png")


def _drawn(index: int, seed: int) -> Question:
    scene, pixels = draw(index, seed=seed, split="held_out")
    asked = questions_of(scene, index, seed=seed, split="held_out", count=1)
    return Question(asked[0].text if asked else ABOUT_AN_IMAGE, image_url(Image.fromarray(pixels)))


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _kind(file: Path) -> str:
    return mimetypes.guess_type(file.name)[0] or ""
