"""The bytes of the images in a request: from data: URLs, and from public http and https ones where that is allowed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence

from llava_stf.errors import ImageError
from llava_stf.images.fetch import fetch
from llava_stf.serving.options import ServeOptions

MAX_FETCH_SECONDS = 20
MAX_FETCHES = 8  # at a time, of all requests
_DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}):")


class ImageReader:
    """Reads images of requests.

    Args:
        options: `max_images`, `max_image_bytes` and `allow_urls` are read.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._fetches = asyncio.Semaphore(MAX_FETCHES)

    async def read(self, urls: Sequence[str]) -> list[bytes]:
        """The files behind these URLs, not decoded.

        Raises `ImageError` for one that may not be read, names it by its index, and says nothing of other files.
        """
        if len(urls) > self._options.max_images:
            raise ImageError(f"A request may hold {self._options.max_images} images, found {len(urls)}.")
        files = []
        for index, url in enumerate(urls):
            try:
                files.append(await self._read(url))
            except ImageError as error:
                raise ImageError(f"Image {index} of the request: {error}") from error
        return files

    async def _read(self, url: str) -> bytes:
        if data := _DATA.match(url):
            return await asyncio.to_thread(self._decode, url, data.end())
        found = _SCHEME.match(url)
        scheme = found[1].lower() if found else ""
        if scheme not in ("http", "https"):
            kind = f"a {scheme}: URL" if scheme else "no URL"
            raise ImageError(f"expected data:image/...;base64,..., found {kind}.")
        if not self._options.allow_urls:
            raise ImageError("this server fetches nothing; send the image itself as data:image/...;base64,...")
        async with self._fetches:
            return await fetch(
                url, max_bytes=self._options.max_image_bytes, max_seconds=MAX_FETCH_SECONDS, public_only=True
            )

    def _decode(self, url: str, start: int) -> bytes:
        try:
            data = base64.b64decode(url[start:], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError("its data: URL is not base64.") from error
        if len(data) > self._options.max_image_bytes:
            raise ImageError(f"it has more than {self._options.max_image_bytes:,} bytes.")
        return data
