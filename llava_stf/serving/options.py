"""What a server may be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, what it is called, and how much it takes on.

    Attributes:
        host: the address it listens at.
        port: the port it listens at.
        api_key: what a client has to send as `Authorization: Bearer KEY`; `None` lets everybody in.
        served_name: name of the model in requests and answers.
        max_batch: requests that are answered at a time.
        max_queue: requests that wait for their turn, read and decoded or being so; one more is refused with 503.
        max_new_tokens: longest answer, in tokens, where the request does not say.
        max_body_bytes: longest body of a request.
        max_image_bytes: longest file of an image, decoded from base64.
        max_image_pixels: largest image, told from its header.
        max_images: images of one request.
        max_vision_tokens: tokens of all images of one request; `None` is as many as the model has positions for.
        max_cache_bytes: keys and values of conversations, and a quarter of it tokens of images, that are kept for
            requests that begin alike or show the same image; 0 keeps none.
        allow_urls: whether images may be http and https URLs, which the server then fetches from public addresses.
        log_prompts: whether the texts of requests and answers are logged; images never are.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_name: str = "llava-stf"
    max_batch: int = 16
    max_queue: int = 64
    max_new_tokens: int = 512
    max_body_bytes: int = 64 * 2**20
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 50_000_000
    max_images: int = 8
    max_vision_tokens: int | None = None
    max_cache_bytes: int = 512 * 2**20
    allow_urls: bool = False
    log_prompts: bool = False
