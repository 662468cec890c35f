"""Whatever is sent, the answer is a status and a sentence of no secrets, and the next one is answered."""

import contextlib
import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from llava_stf.inference import LlavaStf
from llava_stf.serving import body_limit
from llava_stf.serving.app import create_app
from llava_stf.serving.options import ServeOptions

from .conftest import QUESTION, Server, serving, turn, wait_for

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _the_server_lives(server: Server, llava: LlavaStf, images: list[np.ndarray]) -> Iterator[None]:
    yield
    reply = server.chat(messages=[turn(QUESTION, images[0])])
    assert reply.json()["choices"][0]["message"]["content"] == llava.ask(images[0], QUESTION)


def error_of(reply: httpx.Response) -> str:
    """The sentence of a reply in OpenAI's error shape."""
    error = reply.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert "Traceback" not in error["message"]
    assert error["message"].endswith(".")
    return error["message"]


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kilobytes, far below one byte for each of them."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"seed": 2**64}, "seed"),
        ({"stream": "perhaps"}, "stream"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"vision_tokens": 0}, "vision_tokens"),
        ({"vision_tokens": "most"}, "vision_tokens"),
        ({"mm_processor_kwargs": {"size": 3}}, None),
        ({"mm_processor_kwargs": {"vision_tokens": [16]}}, None),
        ({"vision_tokens": 16, "mm_processor_kwargs": {"vision_tokens": 4}}, None),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "hello"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages.0.content.0.image_url.url"),
        ({"messages": [{"role": "user", "content": ""}]}, None),
        ({"messages": [{"role": "user", "content": "<image> what?"}]}, None),
        ({"messages": [{"role": "system", "content": "<image>"}]}, None),
        ({"messages": [{"role": "user", "content": "Hi."}, {"role": "system", "content": "Obey."}]}, None),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, None),
        ({"messages": [{"role": "user", "content": "long " * 400_000}]}, None),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_fields_that_cannot_be_obeyed_are_refused(server: Server, fields: dict[str, object], param: str | None) -> None:
    reply = server.chat(**{"messages": [turn("Hello?")], **fields})
    assert reply.status_code == 400
    assert error_of(reply)
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no JSON", b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b"[" * 100_000,
        b'{"messages":' + b'[{"a":' * 50_000, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"top_p":Infinity}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"max_tokens":1e400}',
    ],
    ids=lambda body: body[:40],
)  # fmt: skip
def test_bodies_that_are_no_request_are_refused(server: Server, body: bytes) -> None:
    reply = server.http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert error_of(reply)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_declared_to_be_json_is_refused(server: Server, kind: str) -> None:
    reply = server.http.post(CHAT, content=json.dumps({"messages": [turn("Hi.")]}), headers={"Content-Type": kind})
    assert reply.status_code == 415
    assert "application/json" in error_of(reply)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "not empty"), ("<image>", "no images"), (["a", "b"], "found 2"), ([1, 2], "string"), (None, "string")],
)
def test_completions_that_cannot_be_given_are_refused(server: Server, prompt: object, said: str) -> None:
    for extra in ({}, {"stream": True}):
        reply = server.http.post("/v1/completions", json={"prompt": prompt, **extra})
        assert reply.status_code == 400
        assert said in error_of(reply)
    assert server.http.post("/v1/completions", json={"prompt": "a", "echo": True}).status_code == 400


def test_another_models_name_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-5' is not served here, 'tiny' is"):
        server.openai().chat.completions.create(model="gpt-5", messages=[turn("Hello?")])
    assert error_of(server.http.get("/v1/nothing"))
    assert server.http.get("/v1/nothing").status_code == 404
    assert server.http.get("/docs").status_code == 404
    assert server.http.get(CHAT).status_code == 405


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "not an image"),
        (b"GIF89a", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
        (bomb(8000), "8000x8000, more than 50,000,000 pixels"),
        (bomb(16_000), "pixels"),
    ],
    ids=["empty", "cut", "svg", "eps", "header", "64 megapixels", "256 megapixels"],
)
def test_a_broken_image_is_named_by_its_index(
    server: Server, images: list[np.ndarray], image: bytes, said: str
) -> None:
    reply = server.chat(messages=[turn("What differs?", images[0], image)])
    assert reply.status_code == 400
    assert error_of(reply).startswith("Image 1 of the request: ")
    assert said in error_of(reply)


def test_images_of_all_shapes_are_answered(server: Server, llava: LlavaStf) -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 150), (700, 9)):
        image = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        reply = server.chat(messages=[turn(QUESTION, image)], max_tokens=8)
        assert reply.json()["choices"][0]["message"]["content"] == llava.ask(image, QUESTION, max_new_tokens=8)
    assert "200 times" in error_of(server.chat(messages=[turn(QUESTION, Image.new("L", (1, 900)))]))


def test_a_truncated_photograph_is_refused(server: Server, images: list[np.ndarray]) -> None:
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "JPEG")
    reply = server.chat(messages=[turn(QUESTION, file.getvalue()[:-400])])
    assert reply.status_code == 400
    assert "Image 0 of the request" in error_of(reply)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/hostname", "found a file: URL"),
        ("/etc/hostname", "found no URL"),
        ("../../etc/hostname", "found no URL"),
        ("ftp://example.com/a.png", "found a ftp: URL"),
        ("http://127.0.0.1/a.png", "fetches nothing"),
        ("https://example.com/a.png", "fetches nothing"),
        ("data:image/png;base64,@@@", "not base64"),
        ("data:image/png;base64,ÄÖÜ", "not base64"),
        ("data:image/png,abc", "found a data: URL"),
        ("data:text/html;base64,PGI+", "not an image"),
        ("x" * 10_000, "found no URL"),
    ],
    ids=lambda text: text[:30],
)
def test_addresses_that_are_not_read(server: Server, url: str, said: str) -> None:
    reply = server.chat(messages=[turn(QUESTION, url)])
    assert reply.status_code == 400
    assert said in error_of(reply)
    assert error_of(reply).startswith("Image 0 of the request: ")


def test_images_are_limited_in_number_and_bytes(server: Server, images: list[np.ndarray]) -> None:
    reply = server.chat(messages=[turn(QUESTION, *images, *images, images[0])])
    assert "may hold 8 images, found 9" in error_of(reply)
    reply = server.chat(messages=[turn(QUESTION, bytes(2**20 + 1))])
    assert reply.status_code == 400
    assert "more than 1,048,576 bytes" in error_of(reply)
    assert "not an image" in error_of(server.chat(messages=[turn(QUESTION, bytes(2**20))]))


def test_a_long_body_is_refused_before_it_is_read(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        sent = 0
        while True:
            sent += 2**16
            assert sent < 64 * 2**20, "the server goes on reading"
            yield b" " * 2**16

    headers = {"Content-Type": "application/json"}
    reply = server.http.post(CHAT, content=b" " * (4 * 2**20), headers=headers)
    assert reply.status_code == 413
    assert "3,145,728 bytes" in error_of(reply)
    with contextlib.suppress(httpx.WriteError):  # the connection is closed while it sends
        assert httpx.post(server.url + CHAT, content=endless(), headers=headers, timeout=60).status_code == 413
    wait_for(lambda: server.metric("llava_stf_requests_total", route=CHAT, status="413") >= 2)


def test_a_slow_body_is_given_up(llava: LlavaStf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "MAX_SECONDS", 0.5)
    with serving(create_app(llava, ServeOptions())) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            connection.sendall(head.encode() + b"{")
            connection.settimeout(60)
            answer = connection.recv(65536)
    assert b" 408 " in answer.partition(b"\r\n")[0]


def test_urls_that_are_allowed_still_lead_nowhere_private(llava: LlavaStf, images: list[np.ndarray]) -> None:
    with serving(create_app(llava, ServeOptions(allow_urls=True))) as server:
        for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "2130706433"):
            port = server.url.rpartition(":")[2]
            reply = server.chat(messages=[turn(QUESTION, images[0], f"http://{host}:{port}/health")])
            assert reply.status_code == 400
            assert "Image 1 of the request" in error_of(reply)
        assert server.metric("llava_stf_requests_total", route="/health", status="200") == 0
        reply = server.chat(messages=[turn(QUESTION, "file:///etc/hostname")])
        assert "found a file: URL" in error_of(reply)


def test_invented_paths_do_not_fill_the_metrics(server: Server) -> None:
    for index in range(5):
        server.http.get(f"/invented/{index}")
    assert "invented" not in server.http.get("/metrics").text
