"""The measurement as a whole: every model in turn on a server of its own, under every load.

The result is a dictionary that JSON holds as it is: `machine`, `plan`, and `rows`, one for each model and load.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from llava_stf.errors import LlavaStfError
from llava_stf_eval.measurement.machine import machine, versions
from llava_stf_eval.measurement.result import begin_or_resume
from llava_stf_eval.serving import client, vllm_client
from llava_stf_eval.serving.client import Target
from llava_stf_eval.serving.metrics import Seen, watching
from llava_stf_eval.serving.models import Served, VisionTokens, prepare, prepare_shape
from llava_stf_eval.serving.outcomes import summarise
from llava_stf_eval.serving.servers import Engine, find_target, serving
from llava_stf_eval.serving.workload import Load, Question, questions
from llava_stf_eval.speed.machine import load_average

# Of what the first model reached under a fixed load: a rate that it can keep up with, but with requests that meet.
SHARE_OF_CAPACITY = 0.7
ROW_FIELDS = ("model", "vision_tokens", "load", "server", "fits")  # of every row, beside the summary of its load


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        models: `NAME` or `NAME:TOKENS` each, see `models.prepare`; the others are compared with the first.
        shape: random weights of this shape instead, at all their vision tokens and at a quarter.
        engine: what serves them.
        url: a server that runs already, instead of all these.
        clients: fixed loads: so many clients, each of which asks again when it is answered.
        rate: requests a second of the Poisson load; `None` takes 70 % of the most that the first model reached under a
            fixed load.
        requests: of each load.
        new_tokens: of each answer.
        client: `vllm bench serve`, the project's own, or vLLM's where it is installed.
        images: folder of images; drawn ones without it.
        kv_blocks: blocks of vLLM's KV cache, to see how many requests it holds.
        arguments: further ones of the server's command.
        seed: of drawn images and arrivals.
    """

    models: list[str] = field(default_factory=lambda: ["tiny-full:all", "tiny"])
    shape: str | None = None
    engine: Engine = "transformers"
    url: str | None = None
    clients: list[int] = field(default_factory=lambda: [8])
    rate: float | None = None
    requests: int = 64
    new_tokens: int = 32
    client: Literal["auto", "vllm", "own"] = "auto"
    images: Path | None = None
    kv_blocks: int | None = None
    arguments: list[str] = field(default_factory=list)
    seed: int = 0


def measure(
    plan: Plan,
    folder: Path,
    *,
    before: dict[str, Any] | None = None,
    on_row: Callable[[dict[str, Any]], object] = lambda result: None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures the plan; logs of the servers go to `folder`.

    `before` is the result of the same plan that was broken off: loads that it has are not given again. `on_row` is
    called with the result so far, before the first load and after each, `progress` with a line about what comes next.

    Raises:
        LlavaStfError: the plan is at fault, a server does not start or answers nothing; may be one of its kinds.
    """
    _check(plan)
    drive = vllm_client.drive if _takes_vllm(plan) else client.drive
    fresh: dict[str, Any] = {
        "machine": {**machine(), "versions": versions(), "load_average": load_average()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": "vllm bench serve" if _takes_vllm(plan) else "llava-stf",
        "plan": {**asdict(plan), "images": str(plan.images) if plan.images else None},
        "rows": [],
    }
    result = begin_or_resume(fresh, before, row_fields=ROW_FIELDS)
    rows, loads = result["rows"], len(plan.clients) + 1
    on_row(result)
    with closing(_targets(plan, folder, progress, first=len(rows) // loads)) as targets:
        for target, model in targets:
            asked = questions(plan.images, plan.seed, _images(plan))
            progress(f"{target.model}: warming up")
            _warm_up(target, list(itertools.islice(asked, max(plan.clients))), plan)
            done = len(rows) % loads
            for number, load in enumerate(_loads(plan, rows)):
                batch = list(itertools.islice(asked, plan.requests))
                if number < done:
                    continue
                progress(f"{target.model}: {load.name}, {plan.requests} requests")
                with watching(target.url) as seen:
                    outcomes = drive(target, batch, load, new_tokens=plan.new_tokens, seed=plan.seed)
                summary = summarise(outcomes)
                rows.append(
                    {
                        "model": target.model,
                        "vision_tokens": model.vision_tokens if model else None,
                        "load": {**asdict(load), "name": load.name},
                        **summary,
                        "server": asdict(seen),
                        "fits": fits(seen, summary["longest_prompt_tokens"], plan.new_tokens),
                    }
                )
                on_row(result)
    result["complete"] = True
    return result


def _check(plan: Plan) -> None:
    least = {"requests": plan.requests, "new_tokens": plan.new_tokens, "clients": min(plan.clients, default=0)}
    for name, value in least.items():
        if value < 1:
            raise LlavaStfError(f"{name} must be at least 1, found {value}.")
    if plan.rate is not None and not (plan.rate > 0 and math.isfinite(plan.rate)):
        raise LlavaStfError(f"rate must be above 0 requests a second, found {plan.rate}.")
    if plan.kv_blocks is not None and (plan.engine != "vllm" or plan.url is not None):
        raise LlavaStfError("kv_blocks are of a vLLM that is started here; take engine 'vllm' and no url.")
    if plan.client == "vllm" or (plan.engine == "vllm" and plan.url is None):
        vllm_client.require_vllm()
    if not plan.models and plan.shape is None and plan.url is None:
        raise LlavaStfError("Expected a model, a shape or the url of a server to measure.")
    questions(plan.images, plan.seed, _images(plan))


def _loads(plan: Plan, rows: list[dict[str, Any]]) -> Iterator[Load]:
    """The loads of one model; `rows` are read when the Poisson load comes, and then hold the first model's others."""
    for clients in plan.clients:
        yield Load(clients=clients)
    rate = plan.rate or SHARE_OF_CAPACITY * max(row["requests_per_second"] for row in rows[: len(plan.clients)])
    if not rate:
        raise LlavaStfError("No request of the fixed load was answered, so there is no rate to take 70 % of; give one.")
    yield Load(rate=rate)


def _takes_vllm(plan: Plan) -> bool:
    return plan.client == "vllm" or (plan.client == "auto" and vllm_client.has_vllm())


def _images(plan: Plan) -> int:
    return max(plan.clients) + plan.requests * (len(plan.clients) + 1)


def _targets(
    plan: Plan, folder: Path, progress: Callable[[str], None], *, first: int
) -> Generator[tuple[Target, Served | None], None, None]:
    """The servers of the plan from the `first` on while they run, one after the other."""
    if plan.url is not None:
        if not first:
            yield find_target(plan.url), None
        return
    shapes: list[VisionTokens] = ["all", None]
    named = [(plan.shape, tokens) for tokens in shapes] if plan.shape else [(name, None) for name in plan.models]
    for number, (name, tokens) in list(enumerate(named))[first:]:
        with TemporaryDirectory(prefix="llava_stf_bench_") as work:
            progress(f"Preparing {name}")
            if plan.shape:
                model = prepare_shape(str(name), tokens, Path(work) / "model")
            else:
                model = prepare(str(name), Path(work) / "model")
            progress(f"{model.name}: starting {plan.engine}")
            log = folder / f"server-{number}.log"
            with serving(plan.engine, model, kv_blocks=plan.kv_blocks, arguments=plan.arguments, log=log) as target:
                yield target, model


def _warm_up(target: Target, first: list[Question], plan: Plan) -> None:
    """A request of every client at once. Raises `LlavaStfError` if none is answered."""
    outcomes = client.drive(target, first, Load(clients=len(first)), new_tokens=plan.new_tokens, seed=plan.seed)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) == len(outcomes):
        raise LlavaStfError(f"The server answers none of {len(errors)} requests: {errors[0]}")


def fits(seen: Seen, prompt: int | None, new_tokens: int) -> dict[str, int] | None:
    """KV blocks of the longest request and how many such requests the cache holds; `None` without vLLM's blocks.

    The last token of an answer is never read again and has no place; one block is vLLM's own.
    """
    if seen.kv_blocks is None or seen.kv_block_size is None or prompt is None:
        return None
    blocks = math.ceil((prompt + new_tokens - 1) / seen.kv_block_size)
    return {"blocks_of_a_request": blocks, "requests": (seen.kv_blocks - 1) // blocks}
