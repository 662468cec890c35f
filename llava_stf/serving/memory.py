"""The memory that large requests take: a bound over all of them, and its return to the system."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llava_stf.errors import ImageError
from llava_stf.images import ImageHeader
from llava_stf.serving.errors import BusyError

# For the images that are being decoded and prepared, of all requests: one of 50 megapixels fits.
DECODING_BYTES = 300 * 2**20
WAIT_SECONDS = 30  # for room
TRIM_SECONDS = 1.0  # between looks whether memory is to be given back
_LARGE = 8 * 2**20
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other allocators give memory back by themselves


# What the image processor takes for a pixel of the square around an image (measured: 10 to 16).
PREPARING_BYTES = 16


def needed(header: ImageHeader) -> int:
    """Bytes that it takes to decode an image and, when that is done, to prepare it for a model."""
    width, height = header.size
    return max(header.decoding_bytes, 4 * width * height + PREPARING_BYTES * max(width, height) ** 2)


class Memory:
    """Room for what is decoded, shared by all threads of a server.

    Args:
        room: Bytes that may be held at a time.
    """

    def __init__(self, room: int = DECODING_BYTES) -> None:
        self._room = room
        self._held = 0
        self._changed = threading.Condition()
        self._trims = 0

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Waits for room for `count` bytes, and has it inside the context.

        Raises:
            ImageError: There is never so much.
            BusyError: There was none in time.
        """
        if count > self._room:
            raise ImageError(
                f"it takes {count // 10**6:,} MB to decode, and this server has {self._room // 10**6:,} MB for that; "
                "make it smaller, or send it as PNG or JPEG."
            )
        with self._changed:
            if not self._changed.wait_for(lambda: self._held + count <= self._room, WAIT_SECONDS):
                raise BusyError("Too many large images are being read; try again in a moment.")
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()
            self.note_freed(count)

    def note_freed(self, count: int) -> None:
        """Takes note that so many bytes are free again, or will be with the reply."""
        if count >= _LARGE:
            self._trims = 3

    async def give_back(self) -> None:
        """Gives freed memory back to the system for as long as it runs; the allocator would keep it."""
        while _trim is not None:
            await asyncio.sleep(TRIM_SECONDS)
            if self._trims:
                self._trims -= 1
                await asyncio.to_thread(_trim, 0)
