"""Images small enough to stand inside a page, as `data:` addresses, within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from llava_stf.errors import ImageError

SIDE = 256  # px of the longer side
QUALITY = 80
BUDGET = 20 * 2**20  # characters of all images of a page


def data_uri(content: bytes, kind: str) -> str:
    """`content` as an address that needs no network; `kind` is for instance "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def embed_images(paths: Iterable[Path], *, budget: int = BUDGET) -> dict[Path, str]:
    """Thumbnails of the first images that fit the budget; files that are no images are left out.

    Args:
        paths: in the order of importance; one that comes again costs nothing.
        budget: total length of the addresses, in characters.
    """
    embedded: dict[Path, str] = {}
    unreadable: set[Path] = set()
    for path in paths:
        if path in embedded or path in unreadable:
            continue
        try:
            address = data_uri(_thumbnail(path), "image/jpeg")
        except ImageError:
            unreadable.add(path)
            continue
        if len(address) > budget:
            break
        budget -= len(address)
        embedded[path] = address
    return embedded


def _thumbnail(path: Path) -> bytes:
    from llava_stf.images import load_image

    image = load_image(path)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
