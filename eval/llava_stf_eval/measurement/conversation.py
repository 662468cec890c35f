"""What a conversation that does not start over saves, against another checkout, in turns in one run.

    python -m llava_stf_eval.measurement.conversation --before ../other    # a git worktree of the build before

Random weights of the shape `medium`: LLaVA-1.5's grid, a tower of 12 blocks of width 256, an LLM of 12 of width 1,024.
The other build is measured in the precision of the files, as it loads them by itself, and in float32. Each figure is a
median.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llava_stf.io.command import run

HERE = Path(__file__).resolve().parents[3]
DTYPES = ("default", "stored", "float32", "bfloat16", "float16")
SERVE = "import sys; from llava_stf.cli import main; sys.exit(main())"


def work(folder: str, dtype: str) -> None:
    """Answers commands on stdin: the seconds to the first token of the second and third turn of a chat."""
    import numpy as np

    from llava_stf import load_model

    llava = load_model(folder, device="cpu", dtype=None if dtype == "default" else dtype)
    print("ready", flush=True)
    for line in sys.stdin:
        image = np.random.default_rng(int(line)).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        chat = llava.chat(image)
        chat.ask("What is in the image?", max_new_tokens=8)
        seconds = []
        for question in ("And to the left of it?", "Why do you think so?"):
            start = time.perf_counter()
            chat.ask(question, max_new_tokens=1)
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


def environment(checkout: Path) -> dict[str, str]:
    """What a process that runs a checkout is told."""
    paths = (checkout, checkout / "kernels", checkout / "eval")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}


def measure_chats(folder: Path, builds: dict[str, tuple[Path, str]], repeats: int) -> dict[str, float]:
    """Seconds to the first token, by what was measured."""
    workers = {}
    for name, (checkout, dtype) in builds.items():
        script, before = str(Path(__file__).resolve()), str(checkout)
        command = [sys.executable, script, "--work", str(folder), "--dtype", dtype, "--before", before]
        workers[name] = subprocess.Popen(
            command, env=environment(checkout), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert _read(workers[name]) == "ready\n"
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    for repeat in range(repeats):
        for name, worker in workers.items():
            assert worker.stdin is not None
            worker.stdin.write(f"{repeat}\n")
            worker.stdin.flush()
            seconds[name] += json.loads(_read(worker))
    for worker in workers.values():
        worker.communicate()
    return {name: statistics.median(values) for name, values in seconds.items()}


def _read(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def measure_servers(folder: Path, builds: dict[str, tuple[Path, str]], repeats: int, clients: int) -> dict[str, float]:
    """Requests a second: 20 questions about one image, another one in every round."""
    import httpx
    import numpy as np

    sys.path[:0] = [str(HERE), str(HERE / "kernels"), str(HERE / "eval")]
    import base64
    import io

    from PIL import Image

    servers, urls = [], {}
    for name, (checkout, dtype) in builds.items():
        options = ["serve", "--model", str(folder), "--port", "0", *([] if dtype == "default" else ["--dtype", dtype])]
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, *options], env=environment(checkout), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        servers.append(server)
        assert server.stdout is not None
        urls[name] = next(f"http://127.0.0.1:{m[1]}" for line in server.stdout if (m := re.search(r":(\d+)", line)))
    rates: dict[str, list[float]] = {name: [] for name in builds}
    for repeat in range(repeats):
        pixels = np.random.default_rng(100 + repeat).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        for name, address in urls.items():

            def ask(number: int, url: str = url, address: str = address) -> None:
                content = [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": f"What is at place {number}?"},
                ]
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
                httpx.post(f"{address}/v1/chat/completions", json=body, timeout=3600).raise_for_status()

            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(ask, range(20)))
            rates[name].append(20 / (time.perf_counter() - start))
    for server in servers:
        server.terminate()
        server.wait()
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--only", choices=["chat", "server"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 144])
    parser.add_argument("--before-dtypes", nargs="+", choices=DTYPES, default=["default", "float32"])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.dtype)
    sys.path[:0] = [str(HERE), str(HERE / "kernels"), str(HERE / "eval")]
    from llava_stf.io.options import check_ranges
    from llava_stf_eval.measurement.checkout import checkout
    from llava_stf_eval.serving.models import prepare_shape

    check_ranges(vars(options), {"at least 1": ("repeats", "clients")})
    before = checkout(options.before)
    builds = {f"before, {dtype}": (before, dtype) for dtype in options.before_dtypes}
    builds["now"] = (HERE, "default")
    with tempfile.TemporaryDirectory() as scratch:
        for tokens in options.tokens:
            folder = Path(scratch) / str(tokens)
            prepare_shape("medium", tokens, folder)
            if options.only != "server":
                found = measure_chats(folder, builds, options.repeats)
                print(tokens, "seconds to the first token of a later turn", found, flush=True)
            if options.only != "chat":
                found = measure_servers(folder, builds, options.repeats, options.clients)
                print(tokens, "requests a second", found, flush=True)
    return None


if __name__ == "__main__":
    run(main)
