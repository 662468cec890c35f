"""A server of either engine in a process of its own, for as long as it is measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import httpx

from llava_stf.errors import LlavaStfError
from llava_stf_eval.serving.client import Target, headers
from llava_stf_eval.serving.models import Served
from llava_stf_eval.serving.vllm_client import VLLM

Engine = Literal["transformers", "vllm"]
READY_SECONDS = 900  # vLLM compiles before it is ready
STOP_SECONDS = 30
_KEPT_OF_LOG = 1500  # characters
_COMMAND = [sys.executable, "-c", "import sys; from llava_stf.cli import main; sys.exit(main())"]


@contextmanager
def serving(
    engine: Engine,
    model: Served,
    *,
    kv_blocks: int | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    log: Path,
) -> Iterator[Target]:
    """Starts a server, waits until it is ready, and ends it behind the `with` block.

    Args:
        engine: what answers.
        model: what is served.
        kv_blocks: blocks of vLLM's KV cache, in place of as many as fit.
        arguments: further ones of its command.
        environment: of its process, beside that of this one.
        log: file for what it prints.

    Raises:
        LlavaStfError: it ends before it is ready, or is not ready in time; it holds the end of the log.
    """
    port = _free_port()
    command = _command(engine, model, port, kv_blocks) + list(arguments)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **environment}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield Target(url, model.name, is_vllm=engine == "vllm", process=process.pid)
    finally:
        _stop(process)


def find_target(url: str) -> Target:
    """A server that runs already, with the first of its models.

    Raises:
        LlavaStfError: none answers at `url`.
    """
    url = url.rstrip("/").removesuffix("/v1")
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers(), timeout=30, trust_env=False)
        response.raise_for_status()
        model = response.json()["data"][0]
        return Target(url, model["id"], is_vllm=model.get("owned_by") == "vllm")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
        raise LlavaStfError(f"No server with OpenAI's routes answers at {url}: {error}") from error


def _command(engine: Engine, model: Served, port: int, kv_blocks: int | None) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if engine == "transformers":
        tokens = ["--vision-tokens", str(model.vision_tokens)]
        return [*_COMMAND, "serve", "--model", str(model.folder), "--served-name", model.name, *tokens, *where]
    blocks = [] if kv_blocks is None else ["--num-gpu-blocks-override", str(kv_blocks)]
    return [*VLLM, "serve", str(model.folder), "--served-model-name", model.name, *where, *blocks]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LlavaStfError(f"The server ended with code {process.returncode}; {log} ends: {_tail(log)}")
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:  # not yet
            pass
        time.sleep(0.2)
    raise LlavaStfError(f"The server was not ready after {READY_SECONDS} s; {log} ends: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_bytes()[-_KEPT_OF_LOG:].decode(errors="replace").strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and what it has started."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
