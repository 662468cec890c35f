"""The bytes of the images in a request: from data: URLs, and from public http and https ones where that is allowed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from llava_stf.errors import ImageError
from llava_stf.images.fetch import fetch
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.request_body import ParsedBody, decode_base64

MAX_FETCH_SECONDS = 20
MAX_FETCHES = 8  # at a time, of all requests
_DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}):")


class ImageReader:
    """Reads images of requests.

    Args:
        options: `max_image_bytes` and `allow_urls` are read.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._fetches = asyncio.Semaphore(MAX_FETCHES)

    async def read(self, urls: Sequence[str], body: ParsedBody) -> list[bytes]:
        """The files behind these URLs, not decoded.

        Args:
            urls: Of the images, in their order.
            body: In which they stand.

        Raises:
            ImageError: One may not be read; the message names it by its index, and says nothing of other files.
        """
        files = []
        for index, url in enumerate(urls):
            try:
                files.append(await self._read(url, body))
            except ImageError as error:
                raise ImageError(f"Image {index} of the request: {error}") from error
        return files

    async def _read(self, url: str, body: ParsedBody) -> bytes:
        if (cut := body.images.get(url)) is not None:
            return await asyncio.to_thread(decode_base64, cut, self._options.max_image_bytes)
        if data := _DATA.match(url):
            return decode_base64(url[data.end() :].encode(), self._options.max_image_bytes)
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
