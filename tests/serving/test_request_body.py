"""A body is cut, bounded and parsed in little time and memory, and images come out of it as they went in."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from llava_stf.errors import ImageError, LlavaStfError, PromptError
from llava_stf.serving.errors import RequestError
from llava_stf.serving.protocol import ChatRequest, CompletionRequest, parse
from llava_stf.serving.request_body import Bounds, decode_base64, parse_body

BOUNDS = Bounds(tokens=512, characters=10_000, images=3)
FILE = bytes(range(256)) * 40


def url(file: bytes = FILE) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def image(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def asking(*parts: Any, **fields: Any) -> bytearray:
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return bytearray(json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode())


def read(body: bytearray) -> list[bytes]:
    asked, parsed = parse(ChatRequest, body, BOUNDS)
    return [decode_base64(parsed.images[address], 2**20) for address in asked.urls()]


@pytest.mark.parametrize("indent", [None, 2])
def test_images_come_out_as_they_went_in(indent: int | None) -> None:
    files = [FILE, FILE[::-1], bytes(5000)]
    body = json.loads(asking(*(image(url(file)) for file in files)))
    assert read(bytearray(json.dumps(body, indent=indent).encode())) == files
    assert read(bytearray(json.dumps(body).replace("/", "\\/").encode())) == files  # as PHP writes it
    assert read(bytearray(b"\xef\xbb\xbf" + json.dumps(body).encode())) == files


def test_a_short_image_and_a_plain_string_for_an_address_stay_in_the_text() -> None:
    asked, parsed = parse(ChatRequest, asking({"type": "image_url", "image_url": url(b"short")}), BOUNDS)
    assert asked.urls() == [url(b"short")]
    assert parsed.images == {}


@pytest.mark.parametrize(
    "text",
    ['say "data:image/png;base64,' + "A" * 2000 + '" twice', 'a "data: b', '\\"data:image/png;base64,' + "A" * 2000],
)
def test_text_that_quotes_an_image_stays_text(text: str) -> None:
    body = bytearray(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
    asked, _ = parse(ChatRequest, body, BOUNDS)
    assert asked.messages[0].content == text


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * 513}, PromptError, "513 messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 513}]}, PromptError, "513 parts"),
        ({"messages": [{"role": "user", "content": "a" * 9_000}] * 2}, PromptError, "18,000 characters"),
        ({"messages": [{"role": "user", "content": "é" * 200_000}]}, RequestError, "1,200,0.* bytes beside its images"),
        ({"messages": [{"role": "user", "content": [image(url())] * 4}]}, ImageError, "3 images, found 4"),
        ({"messages": [{"role": "user", "content": url()}]}, RequestError, "stands where none is read"),
        ({"messages": [{"role": "user", "content": "a"}], "user": url()}, RequestError, "stands where none is read"),
        ({"messages": [{"role": "user", "content": "a", "images": [url()]}]}, RequestError, "stands where none is"),
        ({"messages": [{"role": "user", "content": [image("A" * 10**6)]}]}, RequestError, "beside its images"),
        (["messages"], RequestError, "JSON object"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_fit_is_refused(fields: Any, error: type[LlavaStfError], said: str) -> None:
    with pytest.raises(error, match=said):
        parse(ChatRequest, bytearray(json.dumps(fields).encode()), BOUNDS)


MEGABYTE = 2**20
MESSAGE = b'{"role":"user","content":"hi"}'
LARGE = {
    "messages": b'{"messages":[' + b",".join([MESSAGE] * 1_000_000) + b"]}",
    "text": b'{"messages":[{"role":"user","content":"' + b"a" * (40 * MEGABYTE) + b'"}]}',
    "escapes": b'{"messages":[{"role":"user","content":"' + b"\\u00e9" * (7 * MEGABYTE) + b'"}]}',
    "lists": b'{"x":[' + b"[]," * (13 * MEGABYTE) + b"1]}",
    "keys": b"{" + b",".join(b'"%d":1' % index for index in range(3_000_000)) + b"}",
    "quotes": b'{"x":"' + b'"data:' * (7 * MEGABYTE) + b'"}',
    "open": b'{"x":"data:image/png;base64,' + b"A" * (40 * MEGABYTE),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_that_cannot_be_answered_is_refused_at_once(name: str) -> None:
    """40 MB of messages took 5 s of the event loop when everything was parsed; 1 s leaves room for a busy machine."""
    body = bytearray(LARGE[name])
    start = time.process_time()
    with pytest.raises(LlavaStfError):
        parse(ChatRequest, body, BOUNDS)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("item", [b"{}", b"1", b"[]", b'"a"', b'{"role":1,"content":[1]}'])
def test_as_many_wrong_values_as_fit_make_no_long_list_of_errors(item: bytes) -> None:
    """Vicuna's context lets 2 MB of JSON through, and 83,000 values with brackets."""
    bounds = Bounds(tokens=4096, characters=200_000, images=3)
    count = 80_000 // (item.count(b"[") + item.count(b"{") or 1)
    for kind, body in (
        (ChatRequest, b'{"messages":[' + b",".join([item] * 4096) + b"]}"),
        (ChatRequest, b'{"messages":[{"role":"user","content":[' + b",".join([item] * 4096) + b"]}]}"),
        (ChatRequest, b'{"messages":[],"stop":[' + b",".join([item] * count) + b"]}"),
        (ChatRequest, b'{"messages":[],"x":[' + b",".join([item] * count) + b"]}"),
        (CompletionRequest, b'{"prompt":[' + b",".join([item] * count) + b",1]}"),
    ):
        start = time.process_time()
        with pytest.raises(LlavaStfError):
            parse(kind, bytearray(body), bounds)
        assert time.process_time() - start < 1


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3 * MEGABYTE - 1, 3 * MEGABYTE, 3 * MEGABYTE + 1, 7 * MEGABYTE])
def test_base64_is_decoded_in_slices_as_in_one(size: int) -> None:
    file = bytes(size)
    assert decode_base64(base64.b64encode(file), 8 * MEGABYTE) == file
    with pytest.raises(ImageError, match="more than"):
        decode_base64(base64.b64encode(file + b"123"), size)


@pytest.mark.parametrize(
    "data", [b"A", b"AA=", b"AAAA=AAA", b"AA AA", b"\xff\xff", b"AA==" + b"A" * (5 * MEGABYTE), b"A" * 4_194_303 + b"="
             + b"A" * 8]
)  # fmt: skip
def test_what_is_no_base64_is_said(data: bytes) -> None:
    with pytest.raises(ImageError, match="not base64"):
        decode_base64(data, 8 * MEGABYTE)


def test_a_body_keeps_no_second_copy_of_its_images(tmp_path: Path) -> None:
    body = asking(image(url(bytes(2 * MEGABYTE))))
    parsed = parse_body(body, BOUNDS)
    (cut,) = parsed.images.values()
    assert isinstance(cut, memoryview)
    assert cut.obj is body
