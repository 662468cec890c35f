"""A server and engines on the embedded model, and what transformers answers to the same questions.

These tests run where vLLM is installed, in the environment that `make test-serving` builds, and nowhere else.
"""

import base64
import contextlib
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from PIL import Image

from llava_stf import Video

collect_ignore_glob = ["test_*.py"] if find_spec("vllm") is None else []

# Engines of these tests run in the tests' own process; its cache is small.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

ANSWER_TOKENS = 12
START_SECONDS = 1800  # many times what a start takes on an idle machine


class Reference:
    """What transformers answers to conversations, greedily and in float32."""

    def __init__(self, folder):
        from llava_stf import load_model

        self.model, self.processor = load_model(folder, dtype="float32", device="cpu")

    def prompt(self, question, images=1, history=(), videos=0):
        seen = [{"type": "image"}] * images + [{"type": "video"}] * videos
        content = [*seen, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [*history, {"role": "user", "content": content}], add_generation_prompt=True
        )

    def ids(self, prompt, images, vision_tokens=None, max_new_tokens=ANSWER_TOKENS, videos=()):
        """The prompt's ids, and those that follow them."""
        options = {} if vision_tokens is None else {"vision_tokens": vision_tokens}
        if videos:
            options["videos"] = [Video(video, frames=len(video)) for video in videos]
        inputs = self.processor(images=images or None, text=prompt, return_tensors="pt", **options)
        length = inputs["input_ids"].shape[1]
        whole = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[0].tolist()
        return whole[:length], whole[length:]


class Server:
    """`vllm serve` on the embedded model, as a user starts it."""

    def __init__(self, process, port, log):
        self.process, self.log = process, log
        self.url = f"http://127.0.0.1:{port}"

    def metric(self, name):
        """Sum of a Prometheus metric over its labels; `name` may end within them."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="session")
def tiny_folder():
    import llava_stf

    return Path(llava_stf.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="session")
def reference(tiny_folder):
    return Reference(tiny_folder)


@pytest.fixture(scope="session")
def pictures():
    from llava_stf.world import draw

    return [Image.fromarray(draw(number, split="held_out")[1]) for number in range(32)]


@pytest.fixture(scope="session")
def server(tiny_folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    options += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "32", "--block-size", "32"]
    options += ["--allowed-media-domains", "pictures.example", "--trust-request-mm-kwargs"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "vllm", "serve", str(tiny_folder), *options],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )  # fmt: skip
    running = Server(process, port, log)
    try:
        wait_for(lambda: process.poll() is not None or is_healthy(running.url), START_SECONDS, "the server's start")
        assert process.poll() is None, log.read_text()[-4000:]
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()


def is_healthy(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=10).status_code == 200
    return False


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.2)


def data_url(picture):
    """A PIL image, or the bytes of a file, as a data URL."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        picture = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


@contextlib.contextmanager
def engine(folder, **options):
    """An engine in this process, gone afterwards."""
    from vllm import LLM

    settings = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True, **options}
    llm = LLM(str(folder), **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        release_engines()


def release_engines():
    """Frees what engines of this process, which nobody holds any more, have left behind."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def answers(llm, requests, **sampling):
    """(prompt ids, answer ids) of each request, all given at once."""
    from vllm import SamplingParams

    params = SamplingParams(**{"temperature": 0, "max_tokens": ANSWER_TOKENS, **sampling})
    outputs = llm.generate(requests, params, use_tqdm=False)
    return [(list(output.prompt_token_ids), list(output.outputs[0].token_ids)) for output in outputs]


def request(prompt, images, **options):
    return {"prompt": prompt, "multi_modal_data": {"image": images}, **options}
