"""`llava-stf serve` as it is started from a shell: what it logs, how it ends, and what it hands over to vLLM."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from llava_stf import apply_stf
from llava_stf.cli import main
from llava_stf.errors import FusionError, LlavaStfError, MissingDependencyError
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_next_video, tiny_llava_onevision
from llava_stf.serving import vllm as vllm_module
from llava_stf.serving.listening import bind
from llava_stf.serving.vllm import advice_for, vllm_command

from .conftest import DEADLINE, QUESTION, turn, wait_for


class Command:
    """A running `llava-stf serve` and what it has written."""

    def __init__(self, process: BaseProcess, written: Path) -> None:
        self.process = process
        self._written = written
        wait_for(lambda: "Serving at" in self.log or self.process.exitcode is not None)
        found = re.search(r"http://[\d.]+:\d+", self.log)
        assert found, self.log
        self.address = ("127.0.0.1", int(found[0].rpartition(":")[2]))
        self.http = httpx.Client(base_url=found[0], timeout=DEADLINE)

    @property
    def log(self) -> str:
        return self._written.read_text() if self._written.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = DEADLINE) -> int | None:
        """The exit code, once there is one; `None` if there is none in time."""
        self.process.join(seconds)
        return self.process.exitcode


@pytest.fixture
def running(start: Callable[..., BaseProcess], tmp_path: Path) -> Callable[..., Any]:
    """Starts a server with these options of the command."""

    @contextmanager
    def run(*options: str, **surroundings: Any) -> Iterator[Command]:
        written = tmp_path / "log"
        command = Command(start(["serve", "--port", "0", *options], output=written, **surroundings), written)
        try:
            yield command
        finally:
            command.process.kill()
            command.wait()

    return run


def test_it_answers_and_ends_when_the_running_answer_is_done(
    running: Callable[..., Any], images: list[np.ndarray]
) -> None:
    with running("--max-images", "1", LLAVA_STF_API_KEY="sesame") as command:
        assert command.http.get("/v1/models").status_code == 401
        body = {"model": "tiny", "messages": [turn(f"{QUESTION} My secret is 4711.", images[0])]}
        headers = {"Authorization": "Bearer sesame"}
        reply = command.http.post("/v1/chat/completions", json=body, headers=headers)
        assert reply.json()["choices"][0]["message"]["content"]
        broken = {"messages": [turn("My secret is 4711.", b"no image")]}
        assert command.http.post("/v1/chat/completions", json=broken, headers=headers).status_code == 400
        with command.http.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True, "max_tokens": 200}, headers=headers
        ) as stream:
            command.signal(signal.SIGTERM)
            assert list(stream.iter_lines())[-2] == "data: [DONE]"
        assert command.wait() == 128 + signal.SIGTERM
    assert "knows only images drawn by llava_stf itself" in command.log
    assert "answered 1 images" in command.log
    assert "POST /v1/chat/completions" in command.log
    for hidden in ("4711", "base64", "sesame", "Traceback"):
        assert hidden not in command.log


def test_two_servers_share_a_port_and_one_goes_on_without_the_other(
    start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["serve", "--port", str(port), "--share-port", "--max-images"]
    logs = [tmp_path / "one", tmp_path / "two"]
    processes = [start([*options, str(number)], output=log) for number, log in enumerate(logs)]
    try:
        commands = [Command(*each) for each in zip(processes, logs, strict=True)]

        def ask() -> str:
            body = {"messages": [turn("Hello?", b"no image")]}
            with httpx.Client(base_url=commands[0].http.base_url, timeout=DEADLINE) as client:
                return client.post("/v1/chat/completions", json=body).json()["error"]["message"]

        one, two = "may hold 0 images", "Image 0 of the request"  # what each of them says
        heard = [ask() for _ in range(40)]
        assert all(one in said or two in said for said in heard)
        assert any(one in said for said in heard)
        assert any(two in said for said in heard)
        with pytest.raises(LlavaStfError, match="with --share-port"):
            bind("127.0.0.1", port)
        commands[0].signal(signal.SIGTERM)
        assert commands[0].wait() == 128 + signal.SIGTERM
        assert all(two in ask() for _ in range(5))
    finally:
        for process in processes:
            process.kill()
            process.join()


def memory_of(process: BaseProcess, field: str) -> float:
    """MiB of a process: VmRSS now, VmHWM at most."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024


def test_a_server_under_attack_answers_health_and_stays_small(
    running: Callable[..., Any], images: list[np.ndarray]
) -> None:
    """Half-sent heads beyond the files it may open, bodies of the greatest length, and images of 25 megapixels."""
    with running(files=128) as command:
        body = {"messages": [turn(QUESTION, images[0])], "max_tokens": 3}
        request_id = command.http.post("/v1/chat/completions", json=body).headers["x-request-id"]
        wait_for(lambda: f"[{request_id}]" in command.log)
        idle = memory_of(command.process, "VmRSS")

        slow = [socket.create_connection(command.address) for _ in range(200)]
        for connection in slow:
            with contextlib.suppress(OSError):  # its place went to a later one
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: ")
        for _ in range(5):
            assert httpx.get(f"{command.http.base_url}/health", timeout=DEADLINE).status_code == 200
        for connection in slow:
            connection.close()

        worst, ended = [], threading.Event()

        def look() -> None:
            while not ended.is_set():
                start = time.monotonic()
                assert httpx.get(f"{command.http.base_url}/health", timeout=DEADLINE).status_code == 200
                worst.append(time.monotonic() - start)

        looking = threading.Thread(target=look)
        looking.start()
        message = b'{"role":"user","content":"hi"}'
        many = b'{"messages":[' + b",".join([message] * 2_000_000) + b"]}"
        refused = command.http.post("/v1/chat/completions", content=many, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        ended.set()
        looking.join()
        # Over 35 s when every message was parsed; 0.1 s on two idle cores, and 3 s leave room for a busy machine.
        assert max(worst) < 3

        large = Image.new("RGB", (5000, 5000), "teal")
        reply = command.http.post("/v1/chat/completions", json={**body, "messages": [turn("Same?", *[large] * 4)]})
        assert reply.status_code == 200
        # 550 MiB when four were held at a time; one takes 95 MiB, its quarter 24 more, and to prepare that 95.
        assert memory_of(command.process, "VmHWM") < idle + 300
        wait_for(lambda: memory_of(command.process, "VmRSS") < idle + 80)
    assert "Traceback" not in command.log
    assert len(command.log) < 200_000


@pytest.mark.parametrize(("signals", "code"), [("I", 130), ("II", 130), ("TT", 143)])
def test_signals_end_it_gently_once_and_at_once_twice(running: Callable[..., Any], signals: str, code: int) -> None:
    with running() as command:
        body = {"messages": [turn("Tell me a long story.")], "stream": True, "max_tokens": 900}
        numbers = [{"I": signal.SIGINT, "T": signal.SIGTERM}[letter] for letter in signals]
        asking = command.http.stream("POST", "/v1/chat/completions", json=body)
        with contextlib.suppress(httpx.RemoteProtocolError), asking as stream:
            lines = stream.iter_lines()
            next(lines)
            for number in numbers:
                command.signal(number)
                wait_for(lambda: "Shutting down" in command.log)
            if len(numbers) == 2:
                assert command.wait(5) == code
            list(lines)
        assert command.wait() == code
    assert "Traceback" not in command.log
    assert ("second signal" in command.log) == (len(signals) == 2)


def test_a_taken_port_and_an_unreadable_model_are_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_stf.loading.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
        assert f"Cannot listen at 127.0.0.1, port {port} (Address already in use)" in capsys.readouterr().err
    assert main(["serve", "--port", "0", "--host", "no-such-host.invalid"]) == 2
    assert "no-such-host.invalid" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{ no config")
    for options in (["--model", str(tmp_path)], ["--ui", "--compare-model", str(tmp_path)]):
        assert main(["serve", "--port", "0", *options]) == 2
        error = capsys.readouterr().err.strip()
        assert str(tmp_path) in error
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vision-tokens", "many"], "expected counts"),
        (["--max-batch", "0"], "max-batch"),
        (["--max-image-megapixels", "500"], "max-image-megapixels"),
        (["--max-image-megabytes", "100"], "beyond --max-body-megabytes"),
        (["--compare-model", "tiny-full"], "add --ui"),
        (["--share-port", "--port", "0"], "--share-port needs a --port"),
        (["--engine", "vllm", "--share-port"], "nothing for --share-port"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--engine", "vllm", "--ui"], "nothing for --ui"),
        (["--engine", "vllm", "--dtype", "stored"], "nothing for --dtype stored"),
        (["--", "--enforce-eager"], "'--enforce-eager' is for vLLM"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error


def test_vllm_gets_what_it_knows(stf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_stf.serving.vllm.find_spec", lambda name: object())
    given = {"host": "0.0.0.0", "port": 81, "api_key": "sesame", "max_batch": 3, "max_images": 2, "served_name": "mine"}
    command, environment = vllm_command(str(stf_folder), given)
    assert command[3:5] == ["serve", str(stf_folder)]
    options = dict(zip(command[5::2], command[6::2], strict=True))
    assert json.loads(options.pop("--limit-mm-per-prompt")) == {"image": 2}
    assert json.loads(options.pop("--override-generation-config")) == {"temperature": 0.0}
    assert options == {
        "--served-model-name": "mine", "--host": "0.0.0.0", "--port": "81", "--max-num-seqs": "3",
        "--allowed-media-domains": "none.invalid",
    }  # fmt: skip
    assert environment == {"VLLM_API_KEY": "sesame", "VLLM_MAX_IMAGE_PIXELS": "50000000"}
    assert "sesame" not in command
    assert Path(vllm_command("tiny", {})[0][4], "config.json").is_file()


def test_vllm_gets_nothing_that_it_does_not_know(stf_folder: Path, tmp_path: Path) -> None:
    for option, value in (("quantization", "4bit"), ("allow_urls", True), ("max_queue", 3)):
        with pytest.raises(LlavaStfError, match=f"nothing for --{option.replace('_', '-')}"):
            vllm_command(str(stf_folder), {option: value})
    with pytest.raises(LlavaStfError, match="llava-stf convert 'owner/model'"):
        vllm_command("owner/model", {})


def test_what_the_plugin_for_vllm_does_not_know_is_refused_before_it_starts(stf_folder: Path, tmp_path: Path) -> None:
    for model, processor in (tiny_llava_next(), tiny_llava_next_video()):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        with pytest.raises(FusionError, match=f"found {model.config.model_type}; s"):
            vllm_command(str(tmp_path), {})
    for option in (["-tp", "3"], ["--tensor-parallel-size=3"], ["--block-size", "32", "--tensor-parallel-size", "3"]):
        with pytest.raises(FusionError, match="The 2 attention heads cannot be spread over 3 ranks"):
            vllm_command(str(stf_folder), {}, option)


def test_vllm_serves_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_stf.serving.vllm.find_spec", lambda name: object())
    limits = {"image": 8}, {"image": 8, "video": 1}
    for (model, processor), limit in zip((tiny_llava_next(), tiny_llava_onevision()), limits, strict=True):
        apply_stf(model, processor)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        command, _ = vllm_command(str(tmp_path), {}, ["-tp", "2"])
        assert command[3:5] == ["serve", str(tmp_path)]
        assert command[-2:] == ["-tp", "2"]
        assert json.loads(command[command.index("--limit-mm-per-prompt") + 1]) == limit


def test_a_plain_llava_that_vllm_may_refuse_comes_with_advice(stf_folder: Path) -> None:
    bundled = Path(vllm_module.__file__).parents[1] / "assets"
    assert "apply_pooling(model, processor, window=1)" in advice_for(bundled / "tiny-full")
    assert advice_for(bundled / "tiny") is None
    assert advice_for(stf_folder) is None


def test_without_vllm_the_pip_line_is_given(stf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_stf.serving.vllm.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llava-stf\[vllm\]'"):
        vllm_command(str(stf_folder), {})
