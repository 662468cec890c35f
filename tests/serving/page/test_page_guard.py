"""Requests that the page itself never makes: files of the machine, URLs to fetch, gradio's other routes, no key."""

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from llava_stf.serving.app import create_app
from llava_stf.serving.page import mount_page
from llava_stf.serving.page_login import COOKIE

from .conftest import DEADLINE, OPTIONS, serving

SECRET = "not to be read"
KEY = "a key with % & + in it"


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=f"{server}/ui", timeout=DEADLINE) as client:
        yield client


@pytest.fixture
def secret_file(tmp_path):
    file = tmp_path / "secret.png"
    file.write_text(SECRET)
    return file


@pytest.fixture
def listener():
    """A server on this machine that counts who asks it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/image.png", asked
    server.shutdown()
    server.server_close()


def image(path: str) -> dict:
    return {"path": path, "url": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}


def answering(config: dict) -> dict:
    """The page's call that answers: the one with three inputs."""
    return next(call for call in config["dependencies"] if len(call["inputs"]) == 3)


def join(client: httpx.Client, data: list, session: str = "session") -> httpx.Response:
    call = answering(client.get("/config").json())["id"]
    return client.post("/gradio_api/queue/join", json={"data": data, "fn_index": call, "session_hash": session})


def upload(client: httpx.Client, data: bytes, name: str = "a.png") -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def result(client: httpx.Client, session: str) -> str:
    """Everything that the server says about a call."""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        return events.read().decode()


@pytest.mark.parametrize("form", ["{}", "/{}", "../../../../../../../..{}", "file://{}", "%2e%2e%2f%2e%2e{}"])
def test_no_file_of_the_machine_is_sent(client, secret_file, form):
    for path in (secret_file, "/etc/passwd"):
        answer = client.get(f"/gradio_api/file={form.format(path)}")
        assert answer.status_code in (403, 404)
        assert SECRET not in answer.text
        assert "root:" not in answer.text


def test_an_uploaded_file_is_sent_back_and_its_neighbours_are_not(client):
    path = upload(client, b"mine").json()[0]
    assert client.get(f"/gradio_api/file={path}").content == b"mine"
    outside = Path(path).parents[1].with_name("elsewhere")
    assert client.get(f"/gradio_api/file={outside}").status_code == 403
    assert client.get(f"/gradio_api/file={path}/../../../../../etc/passwd").status_code in (403, 404)


def test_a_call_reads_no_file_and_fetches_no_url(client, secret_file, listener):
    url, asked = listener
    for path in (str(secret_file), "/etc/passwd", url, url.replace("http", "HTTP"), f"file://{secret_file}", 7, None):
        for data in (
            [image(path), "What?", "25 %"],
            ["", image(path), "25 %"],
            [[{"deep": image(path)}], "", ""],
        ):
            answer = join(client, data)
            assert answer.status_code == 403, answer.text
            assert "uploaded to this page" in answer.json()["detail"]
    assert client.get(f"/gradio_api/file={url}").status_code == 403
    assert client.get(f"/gradio_api/proxy={url}").status_code == 404
    assert asked == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/heartbeat/x"),
        ("GET", "/monitoring"),
        ("GET", "/assets/../../../../../etc/passwd"),
        ("GET", "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/call/answer"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/run-history/connect"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/"),
    ],
)
def test_gradios_other_routes_are_shut(client, method, path):
    answer = client.request(method, path, json={"data": []} if method == "POST" else None)
    assert answer.status_code in (403, 404, 405)
    assert "root:" not in answer.text


def test_uploads_and_calls_have_a_largest_size(client):
    assert upload(client, bytes(OPTIONS.max_image_bytes + 10_000)).status_code == 413
    assert upload(client, bytes(OPTIONS.max_image_bytes - 10_000)).status_code == 200
    assert join(client, [None, "x" * 1_000_000, "25 %"]).status_code == 413
    unsized = client.post("/gradio_api/upload", content=iter([b"a", b"b"]))
    assert unsized.status_code == 411


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 50_000, b"null", b"[]", b'{"data": 1}'])
def test_a_call_that_is_none_is_an_error_and_not_the_end(client, body):
    answer = client.post("/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert client.get("/config").status_code == 200


@pytest.mark.parametrize("data", [[None, None, None], [7, 7, 7], ["a", [], {}], [[], {"a": 1}, "no such budget"]])
def test_values_of_other_kinds_end_in_a_sentence(client, data):
    session = json.dumps(data)
    assert join(client, data, session).status_code == 200
    said = result(client, session)
    assert "process_completed" in said
    assert "Traceback" not in said


def test_nothing_is_shown_without_the_key(models):
    options = dataclasses.replace(OPTIONS, api_key=KEY)
    app = create_app(models[0], options)
    with (
        serving(mount_page(app, app.state.engine, options)) as address,
        httpx.Client(base_url=f"{address}/ui", timeout=DEADLINE) as client,
    ):
        form = client.get("/")
        assert 'type="password"' in form.text
        assert "gradio" not in form.text
        for path in ("/config", "/theme.css", "/gradio_api/queue/data", "/gradio_api/file=/etc/passwd"):
            assert client.get(path).status_code == 401
        assert upload(client, b"mine").status_code == 401
        client.cookies.set(COOKIE, "guessed")
        assert client.get("/config").status_code == 401
        client.cookies.clear()
        for wrong in ({"key": "wrong"}, {"key": ""}, {"other": KEY}, {"key": KEY + " "}, {"key": "x" * 100_000}):
            answer = client.post("/login", data=wrong)
            assert answer.status_code == 401
            assert "not the key" in answer.text
        assert client.post("/login", data={"key": KEY}).status_code == 303
        assert client.get("/config").status_code == 200
        assert KEY not in client.cookies.get(COOKIE)
        assert upload(client, b"mine").status_code == 200
