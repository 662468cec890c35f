"""`llava-stf serve` as it is started from a shell: what it logs, how it ends, and what it hands over to vLLM."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from llava_stf.cli import main
from llava_stf.errors import LlavaStfError, MissingDependencyError
from llava_stf.serving import vllm as vllm_module
from llava_stf.serving.vllm import advice_for, vllm_command

from .conftest import DEADLINE, QUESTION, turn, wait_for


class Command:
    """A running `llava-stf serve` and what it has written."""

    def __init__(self, *options: str, **environment: str) -> None:
        command = [sys.executable, "-c", "import sys; from llava_stf.cli import main; sys.exit(main())", "serve"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: "Uvicorn running" in self.log or self.process.poll() is not None)
        found = re.search(r"http://[\d.]+:\d+", self.log)
        assert found, self.log
        self.http = httpx.Client(base_url=found[0], timeout=DEADLINE)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)


@contextmanager
def running(*options: str, **environment: str) -> Iterator[Command]:
    command = Command(*options, **environment)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()


def test_it_answers_and_ends_when_the_running_answer_is_done(images: list[np.ndarray]) -> None:
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
            command.process.send_signal(signal.SIGTERM)
            assert list(stream.iter_lines())[-2] == "data: [DONE]"
        assert command.process.wait(DEADLINE) in (0, -signal.SIGTERM)
    assert "knows only images drawn by llava_stf itself" in command.log
    assert "answered 1 images" in command.log
    assert "POST /v1/chat/completions" in command.log
    for hidden in ("4711", "base64", "sesame", "Traceback"):
        assert hidden not in command.log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vision-tokens", "many"], "expected counts"),
        (["--max-batch", "0"], "max-batch"),
        (["--max-image-megapixels", "500"], "max-image-megapixels"),
        (["--max-image-megabytes", "100"], "beyond --max-body-megabytes"),
        (["--compare-model", "tiny-full"], "add --ui"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--engine", "vllm", "--ui"], "nothing for --ui"),
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


def test_a_plain_llava_that_vllm_may_refuse_comes_with_advice(stf_folder: Path) -> None:
    bundled = Path(vllm_module.__file__).parents[1] / "assets"
    assert "apply_pooling(model, processor, window=1)" in advice_for(bundled / "tiny-full")
    assert advice_for(bundled / "tiny") is None
    assert advice_for(stf_folder) is None


def test_without_vllm_the_pip_line_is_given(stf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_stf.serving.vllm.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llava-stf\[vllm\]'"):
        vllm_command(str(stf_folder), {})
