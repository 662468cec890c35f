"""Time to the first token of a 7B-shaped LLaVA, and of its parts, at 576 and at 144 vision tokens.

    python kernels/benchmarks/bench_model.py                     # on a GPU; goes on where an earlier run ended
    python kernels/benchmarks/bench_model.py --shape tiny --dry-run      # on a CPU

The weights are random: times do not depend on their values. A call starts on an idle device with pixels and prompt ids
there (one image and 64 text tokens each) and ends with the ids of the first new tokens, so that launching the kernels
counts. A part is the model's own submodule, called again on what the model called it with. Without a CUDA device the
script prints the floors and measures nothing. Exit status: 0 done, 1 a case failed, 3 out of budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from cases import WrongResultError
from harness import Session, argument_parser, label, open_for, print_floors
from measuring import peak_bytes, time_calls
from records import Case, Row
from shapes import MODELS, PARTS, TEXT_TOKENS, ModelShape, Work
from targets import target_lines
from torch import Tensor
from transformers import AutoModelForImageTextToText, BatchFeature, CLIPVisionConfig, LlamaConfig, LlavaConfig

from llava_stf.inference.compiled import CompiledGeneration
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.vocabulary import suppressed_ids

MODULES = {"tower": "vision_tower", "projector": "multi_modal_projector", "prefill": "language_model"}
MODES = ("eager", "compiled")
DTYPE = torch.bfloat16
ONE_TOKEN = {"max_new_tokens": 1, "do_sample": False}
# How far below the best logit that of the chosen id may lie, in standard deviations of the logits: rounding in bfloat16
# may swap near ties, but the id of another picture or prompt lies several below.
TOLERANCE = 0.1


def build_model(shape: ModelShape, *, fused: bool, device: torch.device) -> Any:
    """A LLaVA of that shape with random weights made on `device`: LLaVA-STF, or LLaVA-1.5 with all patches."""
    projector = shape.projector
    vision = CLIPVisionConfig(
        hidden_size=projector.vision, intermediate_size=shape.tower_mlp, num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_heads, image_size=shape.image_size, patch_size=shape.patch_size,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=projector.llm, intermediate_size=shape.llm_mlp,
        num_hidden_layers=shape.llm_layers, num_attention_heads=shape.llm_heads, max_position_embeddings=4096,
    )  # fmt: skip
    common = {"vision_config": vision, "text_config": text, "image_token_index": shape.image_token}
    if fused:
        config = LlavaStfConfig(
            **common,
            fusion_window=projector.window,
            fusion_block_hidden_size=projector.block_hidden,
            fusion_hidden_size=projector.hidden,
        )
    else:
        config = LlavaConfig(**common, image_seq_length=projector.patches)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=DTYPE).eval()
    model.generation_config.pad_token_id = 0
    return model


def build_inputs(model: Any, shape: ModelShape, batch: int) -> dict[str, Tensor]:
    """Prompts of 64 text tokens with one image in their middle, and its pixels [B, 3, side, side]."""
    tokens, side = model.config.image_seq_length, shape.image_size
    ids = torch.randint(3, shape.image_token, (batch, tokens + TEXT_TOKENS), device=model.device)
    ids[:, TEXT_TOKENS // 2 : TEXT_TOKENS // 2 + tokens] = shape.image_token
    pixels = torch.randn(batch, 3, side, side, device=model.device, dtype=model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@torch.no_grad()
def part_call(model: Any, part: str, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    """A function that runs one submodule again on what the model calls it with, without gradients."""
    module = getattr(model.model, MODULES[part])
    seen: dict[str, Any] = {}

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(args=args, kwargs=kwargs)

    hook = module.register_forward_pre_hook(keep, with_kwargs=True)
    model(**inputs, logits_to_keep=1)
    hook.remove()
    return torch.no_grad()(lambda: module(*seen["args"], **seen["kwargs"]))


@torch.no_grad()
def check_first_token(model: Any, inputs: dict[str, Tensor], generated: Tensor, never: Sequence[int]) -> float:
    """How far below the best logit of ids that are not in `never` the chosen ids lie, the most, in standard deviations.

    Raises `WrongResultError` if that is more than roundings explain.
    """
    logits = model(**inputs, logits_to_keep=1).logits[:, -1].float()
    chosen = logits.gather(1, generated[:, -1:])[:, 0]
    best = logits.index_fill(1, torch.tensor(never, dtype=torch.int64, device=logits.device), -torch.inf).max(1).values
    error = float(((best - chosen) / logits.std(1)).max())
    if not error <= TOLERANCE:
        raise WrongResultError(f"the chosen ids are {error:.2f} deviations below the best, expected {TOLERANCE}")
    return error


class Bench:
    """The models of one shape, made when first needed, and the calls that are measured."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._models: dict[bool, Any] = {}
        self._compiled: dict[bool, CompiledGeneration] = {}

    def fused(self, case: Case) -> bool:
        return case["tokens"] == self.shape.projector.tokens

    def work(self, case: Case) -> Work:
        return self.shape.part_work(
            str(case["part"]), fused=self.fused(case), batch=int(case["batch"]), itemsize=DTYPE.itemsize
        )

    def call(self, case: Case) -> tuple[Callable[[], Any], float | None]:
        """What to run for a case, checked and warm, and the error found where the result can be checked."""
        fused = self.fused(case)
        if fused not in self._models:
            self._models[fused] = build_model(self.shape, fused=fused, device=self.device)
        model = self._models[fused]
        inputs = build_inputs(model, self.shape, int(case["batch"]))
        if case["part"] != PARTS[-1]:
            call = part_call(model, str(case["part"]), inputs)
            call()
            return call, None
        call = partial(model.generate, **inputs, **ONE_TOKEN)
        if case["mode"] == "compiled":  # as load_model(compile=True) does it
            if fused not in self._compiled:
                self._compiled[fused] = CompiledGeneration(model)
            call = partial(self._compiled[fused].generate, BatchFeature(inputs), ONE_TOKEN)
        for _ in range(2):  # a compiled graph computes its first calls in another way than the later, timed ones
            call()
        never = suppressed_ids(model.config) if fused else []
        return call, check_first_token(model, inputs, call(), never)

    def row(self, case: Case, seconds: float) -> Row:
        """Measured on the CUDA device. Raises `WrongResultError`."""
        call, error = self.call(case)
        peak = peak_bytes(call, ()) if case["mode"] == "eager" else None  # CUDA graphs keep memory of their own
        timing = time_calls(call, [()], seconds=seconds, latency=True)
        work = self.work(case)
        return Row(
            case=case, ms=timing.ms, spread_ms=timing.spread_ms, repeats=timing.repeats, launches=timing.launches,
            flops=work.flops, bytes=work.bytes, peak_bytes=peak, error=error,
        )  # fmt: skip


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    """Eager first, which is quick to measure; compiled only the whole."""
    projector = MODELS[options.shape].projector
    for mode, batch, tokens in product(options.modes, options.batches, (projector.patches, projector.tokens)):
        for part in PARTS if mode == "eager" else PARTS[-1:]:
            yield {"model": options.shape, "part": part, "tokens": tokens, "batch": batch, "mode": mode}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", choices=MODELS, default="7b")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], metavar="B")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    options = parser.parse_args()
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    bench = Bench(MODELS[options.shape], torch.device("cuda" if on_gpu else "cpu"))
    cases = list(cases_of(options))
    if options.dry_run:
        for case in cases:
            bench.call(case)
            print(f"{label(case)}  runs")
        return 0
    if not on_gpu:
        print_floors(((case, bench.work(case)) for case in cases if case["mode"] == options.modes[0]), options)
        return 0
    session = Session(open_for("model", DTYPE, options), options.budget)
    for case in cases:
        session.measure(case, partial(bench.row, case, options.seconds))
    print("\n".join(target_lines([session.results])))
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
