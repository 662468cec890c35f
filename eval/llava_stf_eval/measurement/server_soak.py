"""A server under thousands of requests of all kinds: whether it answers right, forgets nobody, and keeps its memory.

    python -m llava_stf_eval.measurement.server_soak --requests 10000

Clients ask the bundled model in float32: whole and streamed answers, drawn ones with a seed, conversations, readers
that are slow, some that leave before or amid their answer, and bodies that are no requests. Every answer is compared
with that of the model alone. Prints the server's memory as it goes; exit code 1 if an answer was wrong or never came,
a request was left in the server, or memory grew by more than 5 % after the first thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch
from PIL import Image

from llava_stf import load_model
from llava_stf.io.arguments import count, seed
from llava_stf.io.command import run
from llava_stf.loading import bundled_folder
from llava_stf.world import draw
from llava_stf_eval.measurement.process import memory
from llava_stf_eval.serving.client import Target
from llava_stf_eval.serving.models import Served
from llava_stf_eval.serving.servers import serving
from llava_stf_eval.serving.workload import image_url

CHAT, METRICS = "/v1/chat/completions", "/metrics"
CLIENTS, STUCK_SECONDS = 24, 180
SETTLED, GROWTH = 1000, 1.05  # requests until memory is looked at, and by how much it may be more from then on
LOOKS = 500  # requests between two looks
QUESTIONS = ("How many shapes are there?", "What shape is at the top?", "Describe the picture.")
# A second turn that is about the first answer, too.
FOLLOW_UP = "Is there a red circle?"
NO_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
_NO_REQUESTS: list[Any] = [
    [],
    {"messages": "a"},
    {"messages": []},
    {"messages": [{"role": "robot", "content": "a"}]},
    {"messages": [{"role": "user", "content": "a"}], "tools": [{}]},
    {"messages": [{"role": "user", "content": [NO_IMAGE, {"type": "text", "text": "What?"}]}]},
    {"messages": [{"role": "user", "content": "long " * 3000}]},
]
MALFORMED = [b"", b"{", *(json.dumps(body).encode() for body in _NO_REQUESTS)]
KINDS = ("whole", "streamed", "slow", "leaves early", "leaves amid", "malformed", "half sent")


@dataclass(frozen=True)
class Case:
    """A body and what it is answered with."""

    body: dict[str, Any]
    answer: str


def make_cases(rng: random.Random, count: int) -> list[Case]:
    """Requests about drawn images, each with what the model alone answers."""
    llava = load_model("tiny", device="cpu", dtype="float32")
    cases = []
    for index in range(count):
        image = Image.fromarray(draw(index, split="held_out")[1])
        length, question = rng.randint(1, 48), rng.choice(QUESTIONS)
        options: dict[str, Any] = {}
        if index % 4 == 0:
            options = {"temperature": 1.5, "top_p": 0.9, "seed": index}
        content = [{"type": "image_url", "image_url": {"url": image_url(image)}}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        if index % 3 == 0:
            answer = llava.ask(image, question, max_new_tokens=length)
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": FOLLOW_UP}]
            said += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            said += [{"role": "user", "content": [{"type": "text", "text": FOLLOW_UP}]}]
        drawing = {name: options[name] for name in ("temperature", "top_p") if options}
        if drawing:
            drawing |= {"do_sample": True, "top_k": 0}
            torch.manual_seed(options["seed"])
        answer = llava.reply_batch([said], [[image]], max_new_tokens=length, **drawing)[0]
        cases.append(Case({"messages": messages, "max_tokens": length, **options}, answer))
    return cases


class Clients:
    """What asks a server.

    Args:
        client: of HTTP.
        cases: that are asked.
        rng: chooses.
    """

    def __init__(self, client: httpx.AsyncClient, cases: Sequence[Case], rng: random.Random) -> None:
        self._client = client
        self._cases = cases
        self._rng = rng
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    async def ask(self) -> None:
        """One request of some kind; what is wrong with it is a fault."""
        kind = self._rng.choices(KINDS, (4, 4, 1, 1, 1, 1, 1))[0]
        self.counts[kind] += 1
        case = self._rng.choice(self._cases)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                fault = await self._of_kind(kind, case)
        except TimeoutError:
            fault = "stuck"
        except httpx.HTTPError as error:
            fault = f"{type(error).__name__}: {error}"
        if fault is not None:
            self.faults.append(f"{kind}: {fault}")

    async def _of_kind(self, kind: str, case: Case) -> str | None:
        if kind == "whole":
            reply = await self._client.post(CHAT, json=case.body)
            return _compare(reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text, case)
        if kind in ("streamed", "slow"):
            return _compare(await self._stream(case, pause=0.02 if kind == "slow" else 0), case)
        if kind == "leaves early":
            try:
                async with asyncio.timeout(self._rng.uniform(0.001, 0.3)):
                    await self._client.post(CHAT, json=case.body)
            except TimeoutError:
                pass
            return None
        if kind == "leaves amid":
            await self._stream(case, chunks=self._rng.randint(1, 4))
            return None
        if kind == "half sent":
            await self._half(json.dumps(case.body).encode())
            return None
        headers = {"Content-Type": "application/json"}
        reply = await self._client.post(CHAT, content=self._rng.choice(MALFORMED), headers=headers)
        return None if reply.status_code == httpx.codes.BAD_REQUEST and "error" in reply.json() else reply.text

    async def _stream(self, case: Case, *, pause: float = 0, chunks: int | None = None) -> str:
        """What a stream says, or some chunks of it."""
        said, seen = "", 0
        async with self._client.stream("POST", CHAT, json={**case.body, "stream": True}) as reply:
            if not reply.is_success:
                return (await reply.aread()).decode()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                said += chunk["choices"][0]["delta"].get("content", "") if "choices" in chunk else str(chunk)
                seen += 1
                if seen == chunks:
                    break
                if pause:
                    await asyncio.sleep(pause)
        return said

    async def _half(self, body: bytes) -> None:
        """Leaves in the middle of a body."""
        url = self._client.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def left(self) -> str | None:
        """What of all requests is still in the server, when it had the time to notice that nobody waits."""
        found: list[str] = []
        for _ in range(100):
            text = (await self._client.get(METRICS)).text
            names = tuple(f"llava_stf_{name} " for name in ("running", "queue_depth", "decoding"))
            found = [line for line in text.splitlines() if line.startswith(names) and not line.endswith(" 0.0")]
            if not found:
                return None
            await asyncio.sleep(0.1)
        return ", ".join(found)


def _compare(said: str, case: Case) -> str | None:
    return None if said == case.answer else f"{said!r} for {case.answer!r}"


async def soak(target: Target, cases: Sequence[Case], count: int, rng: random.Random) -> bool:
    """Asks so many times; whether all is well."""
    held: dict[int, float] = {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=target.url, timeout=None, limits=limits, trust_env=False) as client:
        clients, number = Clients(client, cases, rng), 0

        async def ask_on() -> None:
            nonlocal number
            while number < count:
                number += 1
                if number % LOOKS == 0:
                    held[number] = memory(target.process, "VmRSS")[0] / 2**20
                    print(f"{number:,} requests, {held[number]:,.0f} MiB, {len(clients.faults)} faults", flush=True)
                await clients.ask()

        await asyncio.gather(*(ask_on() for _ in range(CLIENTS)))
        left = await clients.left()
    growth = max((held[at] / held[SETTLED] for at in held if at > SETTLED), default=1.0)
    print(f"{count:,} requests: {dict(clients.counts)}; memory {100 * (growth - 1):+.1f} % after {SETTLED:,}")
    print(f"faults: {clients.faults[:20] or 'none'}; left in the server: {left or 'nothing'}", flush=True)
    return not clients.faults and left is None and growth <= GROWTH


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=count, default=10_000, help=f"at least {SETTLED:,}")
    parser.add_argument("--cases", type=count, default=240)
    parser.add_argument("--seed", type=seed, default=0)
    options = parser.parse_args()
    if options.requests < SETTLED:
        parser.error(f"memory is looked at after {SETTLED:,} requests; ask for more")
    rng = random.Random(options.seed)
    cases = make_cases(rng, options.cases)
    model = Served("tiny", Path(bundled_folder("tiny")), 16)
    arguments = ["--dtype", "float32", "--max-cache-megabytes", "64"]
    with TemporaryDirectory(prefix="llava_stf_soak_") as folder:
        log = Path(folder) / "server.log"
        with serving("transformers", model, arguments=arguments, log=log) as target:
            well = asyncio.run(soak(target, cases, options.requests, rng))
    sys.exit(not well)


if __name__ == "__main__":
    run(main)
