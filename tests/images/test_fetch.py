"""What a server fetches for strangers comes from the public internet or not at all."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llava_stf.errors import ImageError
from llava_stf.images import fetch as fetching
from llava_stf.images.fetch import fetch, is_public

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
OTHERS = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::",
    "2001:0:7f00:1::", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", OTHERS)
def test_private_local_reserved_and_wrapped_addresses(address: str) -> None:
    assert not is_public(address)


class _Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012 - one list for the whole server

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"an image")

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[int]:
    """Port of a server on this machine that redirects to where the path says."""
    _Handler.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host names and their addresses; "127.0.0.1" counts as public as far as `is_public` is asked for it."""
    known: dict[str, list[str]] = {"good.example": ["127.0.0.1"]}
    resolve = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: object, **options: object) -> list[object]:
        if host in known:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]
        return resolve(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


@pytest.fixture
def local_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test's own server stand for one on the internet."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1" or is_public(address))


def get(url: str, max_bytes: int = 100) -> bytes:
    return asyncio.run(fetch(url, max_bytes=max_bytes, max_seconds=20, public_only=True))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a", "http://localhost:{port}/a", "http://[::1]:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a", "http://0.0.0.0:{port}/a", "http://2130706433:{port}/a",
        "http://127.1:{port}/a", "http://0x7f.1:{port}/a", "http://user:pass@127.0.0.1:{port}/a",
        "http://169.254.169.254/latest/meta-data/",
    ],
)  # fmt: skip
def test_this_machine_is_not_asked_however_it_is_written(url: str, server: int) -> None:
    with pytest.raises(ImageError, match=r"not on the public internet|is not known|cannot be fetched"):
        get(url.format(port=server))
    assert _Handler.seen == []


def test_a_host_with_one_private_address_is_refused(server: int, names: dict[str, list[str]]) -> None:
    names["mixed.example"] = ["8.8.8.8", "10.0.0.1"]
    with pytest.raises(ImageError, match=r"mixed\.example is not on the public internet"):
        get(f"http://mixed.example:{server}/a")


@pytest.mark.usefixtures("local_is_public")
def test_a_public_host_is_fetched_by_its_own_name(server: int, names: dict[str, list[str]]) -> None:
    assert get(f"http://good.example:{server}/a?b=c") == b"an image"
    assert _Handler.seen == [("/a?b=c", f"good.example:{server}")]


@pytest.mark.usefixtures("local_is_public")
def test_the_address_that_was_looked_at_is_the_one_that_is_asked(
    server: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers otherwise when it is asked again leads nowhere else."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    resolve = socket.getaddrinfo

    def rebinding(host: str, *rest: object, **options: object) -> list[object]:
        if host == "good.example":
            names[host] = next(answers)
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert get(f"http://good.example:{server}/a") == b"an image"
    assert next(answers) == ["10.0.0.1"]


@pytest.mark.usefixtures("local_is_public")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://10.0.0.1/a", "not on the public internet"),
        ("http://[::1]/a", "not on the public internet"),
        ("//192.168.0.1/a", "not on the public internet"),
        ("file:///etc/hostname", "no http or https URL"),
        ("gopher://good.example/", "no http or https URL"),
    ],
)
def test_redirects_are_looked_at_too(target: str, said: str, server: int, names: dict[str, list[str]]) -> None:
    with pytest.raises(ImageError, match=said):
        get(f"http://good.example:{server}/to/{target}")
    assert len(_Handler.seen) == 1


@pytest.mark.usefixtures("local_is_public")
def test_redirects_are_followed_but_not_for_ever(server: int, names: dict[str, list[str]]) -> None:
    assert get(f"http://good.example:{server}/to//to//b") == b"an image"
    loop = f"http://good.example:{server}/to/" + "/to/" * 20
    with pytest.raises(ImageError, match="more than 5 times"):
        get(loop)


@pytest.mark.usefixtures("local_is_public")
def test_what_is_too_large_is_left(server: int, names: dict[str, list[str]]) -> None:
    with pytest.raises(ImageError, match="is larger than"):
        get(f"http://good.example:{server}/a", max_bytes=3)


@pytest.mark.usefixtures("local_is_public")
def test_a_proxy_is_not_asked(server: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert get(f"http://good.example:{server}/a") == b"an image"


@pytest.mark.parametrize(
    "url", ["http://", "http:///a", "http://no-such-host.invalid/a", "http://\udcff/", "ftp://x/a"]
)
def test_what_is_no_address_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ImageError):
        get(url)
