"""What is measured, loaded and ready: in this process, or each in one of its own, so that its memory is its own."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from llava_stf.analysis.counting import llm_parameters
from llava_stf.errors import LlavaStfError
from llava_stf.io.exports import read_manifest
from llava_stf.loading import load_model
from llava_stf_eval.speed.machine import describe_machine
from llava_stf_eval.speed.measuring import Case, Measured, Request, measure_once
from llava_stf_eval.speed.plan import Plan, Subject, device_of
from llava_stf_eval.speed.shapes import build_model, shape_image_processor
from llava_stf_eval.speed.variants import Variant, build_variants


class Bench(Protocol):
    """A subject that is ready; `index` is of its settings."""

    subject: Subject
    facts: dict[str, Any]  # `machine`, and `model`: name, what runs it, precision, bytes and parameters

    def measure(self, case: Case, index: int) -> Measured:
        """Runs and times one request."""
        ...

    def count(self, case: Case, index: int) -> dict[str, Any]:
        """What a prompt costs, counted."""
        ...

    def close(self) -> None:
        """Ends its process, if it has one."""
        ...


class Here:
    """A subject in this process, see `Bench`."""

    def __init__(self, plan: Plan, subject: Subject) -> None:
        self.subject = subject
        self._plan = plan
        model, self._image_processor, weights_bytes = _load(plan, subject)
        if subject.dtype is None:
            self._variants = [Variant(subject.settings[0], model)]
        else:
            self._variants = build_variants(model, subject.settings, seed=plan.seed)
        self._request: tuple[Case, Request] | None = None
        self.facts = {
            "machine": describe_machine(model.device),
            "model": {
                "name": subject.name,
                "type": subject.config.model_type,
                "run_by": _run_by(plan, subject, model),
                "weights": "random" if plan.shape else "trained",
                "dtype": str(model.dtype).removeprefix("torch."),
                "weights_bytes": weights_bytes,
                "llm_parameters": llm_parameters(subject.config),
            },
        }

    def measure(self, case: Case, index: int) -> Measured:
        """As `Bench` says."""
        if self._request is None or self._request[0] != case:
            self._request = case, self._make_request(case)
            for variant in self._variants if self.subject.dtype is not None else ():
                variant.model.set_attn_implementation(case.attention)
        try:
            return measure_once(self._variants[index], self._request[1], case)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise

    def count(self, case: Case, index: int) -> dict[str, Any]:
        """As `Bench` says; the projector of an export is not known, it is in the graph of its tower."""
        variant = self._variants[index]
        counted = variant.count(self._plan.shown, text_tokens=case.text_tokens)
        return {
            "llm_tokens": list(counted.llm_tokens),
            "kv_bytes": counted.kv_bytes,
            "tower_flops": counted.tower_flops,
            "projector_flops": None if self.subject.dtype is None else counted.projector_flops,
            "prefill_flops": counted.prefill_flops,
            "decode_flops": counted.decode_flops,
        }

    def close(self) -> None:
        """As `Bench` says."""

    def _make_request(self, case: Case) -> Request:
        generator = np.random.default_rng(self._plan.seed)
        images = self._plan.shown.draw(generator, case.batch_size)
        ids = generator.integers(3, self.subject.config.image_token_id, (case.batch_size, case.text_tokens))
        return Request(images, torch.from_numpy(ids), self._image_processor, self._plan.shown, self._plan.clock)


class Elsewhere:
    """A subject in a process of its own, see `Bench`; it computes with as many threads as this one would.

    Raises:
        LlavaStfError: it cannot be loaded, or its process ended.
    """

    def __init__(self, plan: Plan, subject: Subject) -> None:
        self.subject = subject
        # Not forked: a process that has computed with several threads has none of them in its forks.
        context: Any = multiprocessing.get_context("spawn")
        self._wire, there = context.Pipe()
        options = (there, plan, subject, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=options, daemon=True)
        self._process.start()
        there.close()
        self.facts = self._receive()

    def measure(self, case: Case, index: int) -> Measured:
        """As `Bench` says."""
        return self._call("measure", case, index)

    def count(self, case: Case, index: int) -> dict[str, Any]:
        """As `Bench` says."""
        return self._call("count", case, index)

    def close(self) -> None:
        """As `Bench` says."""
        self._wire.close()
        self._process.join()

    def _call(self, *message: Any) -> Any:
        try:
            self._wire.send(message)
        except OSError:
            self._ended()
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._wire.recv()
        except (EOFError, OSError):
            self._ended()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self) -> None:
        self._process.join()
        raise LlavaStfError(
            f"The process that measures {self.subject.name} ended with {self._process.exitcode}; where that is -9, the "
            "machine had no memory left for all models at once: measure fewer beside each other."
        )


def _serve(wire: Connection, plan: Plan, subject: Subject, threads: int) -> None:
    """Answers what `Elsewhere` asks until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is interrupted, and hangs up
    torch.set_num_threads(threads)
    try:
        bench = Here(plan, subject)
        wire.send(bench.facts)
        while True:
            name, case, index = wire.recv()
            try:
                wire.send(getattr(bench, name)(case, index))
            except torch.OutOfMemoryError as error:
                wire.send(error)
    except (EOFError, ConnectionError):  # it hung up, or is gone
        return
    except LlavaStfError as error:
        wire.send(error)


def _load(plan: Plan, subject: Subject) -> tuple[LlavaForConditionalGeneration, Any, int]:
    """Model, image processor, and bytes of the weights."""
    if subject.dtype is None:
        model, processor = load_model(Path(subject.name))
        return model, processor.image_processor, read_manifest(Path(subject.name)).weight_bytes
    device, processor = device_of(plan, subject.dtype), None
    if plan.shape is None:
        model, processor = load_model(
            subject.name, vision_tokens="all", dtype=subject.dtype, quantization=plan.quantization, device=device
        )
    else:
        dtype = {"auto": None, "stored": torch.bfloat16}.get(subject.dtype, getattr(torch, subject.dtype, None))
        model = build_model(
            plan.shape, device=device, dtype=dtype, quantization=plan.quantization, model_type=plan.model_type
        )
    size = sum(parameter.nbytes for parameter in model.parameters())
    if processor is not None:
        return model, processor.image_processor, size
    return model, shape_image_processor(model.config), size


def _run_by(plan: Plan, subject: Subject, model: LlavaForConditionalGeneration) -> str:
    if subject.dtype is None:
        manifest = read_manifest(Path(subject.name))
        cache = "" if manifest.kv_cache == "f32" else f", cache {manifest.kv_cache}"
        return f"{manifest.format} {manifest.weights}{cache}"
    return f"pytorch {plan.quantization or str(model.dtype).removeprefix('torch.')}"
