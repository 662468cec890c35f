"""The project's own client: streams answers from OpenAI's chat route under a fixed or a Poisson load."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from llava_stf_eval.serving.outcomes import Outcome
from llava_stf_eval.serving.workload import Load, Question, arrivals

# An answer may wait for all that were asked before it.
TIMEOUT = httpx.Timeout(1800, connect=30)


@dataclass(frozen=True)
class Target:
    """A server that is asked.

    Attributes:
        url: its address, without a path.
        model: the name that it knows its model by.
        is_vllm: whether it is vLLM, which then is told not to end an answer early.
        process: its process, 0 where it was not started here.
    """

    url: str
    model: str
    is_vllm: bool = False
    process: int = 0

    def body(self, question: Question, new_tokens: int) -> dict[str, Any]:
        """What is sent for a question, decoded greedily."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": question.content}],
            "max_completion_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.further(new_tokens),
        }

    def further(self, new_tokens: int) -> dict[str, Any]:
        """What OpenAI's API does not know: vLLM chooses no end token before so many others."""
        return {"min_tokens": new_tokens} if self.is_vllm else {}


def headers() -> dict[str, str]:
    """The key of `OPENAI_API_KEY`, which vLLM's client takes, too."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def drive(
    target: Target, questions: Sequence[Question], load: Load, *, new_tokens: int | Sequence[int], seed: int
) -> list[Outcome]:
    """Sends all questions under a load and waits for the answers; outcomes in the order of the questions.

    `new_tokens` are those of every answer, or of each.
    """
    each = [new_tokens] * len(questions) if isinstance(new_tokens, int) else new_tokens
    return asyncio.run(_drive(target, questions, load, each, seed))


async def _drive(
    target: Target, questions: Sequence[Question], load: Load, new_tokens: Sequence[int], seed: int
) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=target.url, headers=headers(), timeout=TIMEOUT, limits=limits, trust_env=False
    ) as client:
        begin = time.perf_counter()
        places = asyncio.Semaphore(load.clients or len(questions))
        times = [0.0] * len(questions) if load.rate is None else arrivals(len(questions), load.rate, seed)

        async def ask(question: Question, at: float, length: int) -> Outcome:
            await asyncio.sleep(begin + at - time.perf_counter())
            async with places:
                return await _ask(client, target.body(question, length), begin)

        return await asyncio.gather(*(ask(*each) for each in zip(questions, times, new_tokens, strict=True)))


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], begin: float) -> Outcome:
    """One request; what goes wrong with it is its outcome."""
    start = time.perf_counter()
    moments: list[float] = []
    usage: dict[str, int] = {}
    error = None
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                error = f"{response.status_code}: {_message(await response.aread())}"
            else:
                error = await _read(response, moments, usage)
    except httpx.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    if error is not None:
        return Outcome(start - begin, None, (), time.perf_counter() - start, 0, 0, error)
    gaps = tuple(after - before for before, after in itertools.pairwise(moments))
    prompt, output = usage.get("prompt_tokens", 0), usage.get("completion_tokens", len(moments))
    return Outcome(start - begin, moments[0] - start, gaps, moments[-1] - start, prompt, output)


async def _read(response: httpx.Response, moments: list[float], usage: dict[str, int]) -> str | None:
    """Notes when pieces of the answer come, and the server's count of tokens; returns what went wrong."""
    ended = False
    async for line in response.aiter_lines():
        if not line.startswith("data:") or line == "data: [DONE]":
            continue
        chunk = json.loads(line.removeprefix("data:"))
        if "error" in chunk:
            return str(chunk["error"].get("message", chunk["error"]))
        usage.update(chunk.get("usage") or {})
        for choice in chunk["choices"]:
            ended = ended or choice["finish_reason"] is not None
            # A chunk without text that only says whose turn it is may be sent before there is any token.
            if choice["delta"].get("content") or ended:
                moments.append(time.perf_counter())
    return None if ended else "The answer broke off."


def _message(body: bytes) -> str:
    """The sentence in an error of OpenAI's form, or the beginning of another body."""
    try:
        found = json.loads(body)
    except ValueError:
        return body[:200].decode(errors="replace")
    error = found.get("error") if isinstance(found, dict) else None
    return str(error["message"]) if isinstance(error, dict) and "message" in error else str(found)[:200]
