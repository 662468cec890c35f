"""Connections are bounded in number and in time, and what is no HTTP is refused in OpenAI's form."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from llava_stf.serving import connections
from llava_stf.serving.listening import ConnectionLimits, bind
from llava_stf.serving.run import Server, configure

from .conftest import DEADLINE, wait_for

HALF = b"GET / HTTP/1.1\r\nHost: "
gate = threading.Event()


async def answer(request: Request) -> PlainTextResponse:
    await request.body()
    if request.url.path == "/wait":
        await asyncio.to_thread(gate.wait, DEADLINE)
    return PlainTextResponse("well")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, tuple[str, int]]]:
    """A server of at most three connections, which wait a second for a head, and its address."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1)
    gate.clear()
    sockets = bind("127.0.0.1", 0)
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    server = Server(configure(app, ConnectionLimits(3, 8)), [])  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    wait_for(lambda: server.started)
    yield server, sockets[0].getsockname()
    gate.set()
    server.should_exit = True
    thread.join()


@pytest.fixture
def address(running: tuple[Server, tuple[str, int]]) -> tuple[str, int]:
    return running[1]


def connect(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=DEADLINE)
    connection.sendall(data)
    return connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes; a reset is such an end."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


def status_and_error(said: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_head_has_to_arrive_in_time(address: tuple[str, int]) -> None:
    status, error = status_and_error(everything(connect(address, HALF)))
    assert (status, error["type"]) == (408, "invalid_request_error")
    assert everything(connect(address)) == b""  # nothing was asked, nothing is said
    second = connect(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    second.recv(1000)
    second.sendall(HALF)
    assert status_and_error(everything(second))[0] == 408


def test_what_is_no_http_is_refused_as_openai_would(address: tuple[str, int]) -> None:
    for data in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n", HALF + b"x" * 200_000):
        status, error = status_and_error(everything(connect(address, data)))
        assert (status, error["message"]) == (400, "The request is no valid HTTP.")


def test_the_one_that_waits_longest_makes_room_and_answers_are_never_cut(address: tuple[str, int]) -> None:
    slow = [connect(address, HALF) for _ in range(3)]
    asking = connect(address, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    assert everything(slow[0]) == b""
    more = [connect(address, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
    assert everything(slow[1]) == everything(slow[2]) == b""
    refused = connect(address)
    status, error = status_and_error(everything(refused))
    assert (status, error["type"]) == (503, "overloaded_error")
    gate.set()
    for connection in (asking, *more):
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert connect(address, b"GET / HTTP/1.0\r\n\r\n").recv(1000).startswith(b"HTTP/1.1 200")


def test_a_request_that_is_still_coming_does_not_hold_up_the_end(running: tuple[Server, tuple[str, int]]) -> None:
    server, address = running
    half = connect(address, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    whole = connect(address, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_for(lambda: len(server.server_state.tasks) == 2)
    server.should_exit = True
    status, error = status_and_error(everything(half))
    assert (status, error["message"]) == (503, "The server is about to stop.")
    gate.set()
    assert everything(whole).endswith(b"well")
