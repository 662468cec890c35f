"""Every method in one run on a CPU: computing to the first token, and what choosing the tokens costs beside the model.

    python -m llava_stf_eval.measurement.methods --shape 1b --layers 8 --output docs/speed/methods-cpu.json

One prompt of 64 text tokens and one image, random weights in bfloat16, all methods in turns on the same weights. What
is counted are the seconds that the process computes, which another program on the machine does not add to.
`llava-stf bench speed` measures the time that a user waits, and is right on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.publish import refuse_unwritable, write_json
from llava_stf.reduction import METHODS
from llava_stf.reduction.layers import LayerDropping
from llava_stf_eval.speed.machine import describe_machine
from llava_stf_eval.speed.shapes import SHAPES, build_model
from llava_stf_eval.speed.variants import FULL, Variant, build_variants, settings_of

TEXT = 64
PARTS = {"tower": "vision_tower", "projector": "multi_modal_projector", "llm": "language_model"}


@contextmanager
def timed(variant: Variant, seconds: dict[str, float]) -> Iterator[None]:
    """Adds up what the model's parts compute, and of a method that prunes in the LLM its choices."""
    starts: dict[str, float] = {}
    seconds.update(dict.fromkeys((*PARTS, "choosing in the LLM"), 0.0))
    handles = []
    for part, attribute in PARTS.items():
        module = getattr(variant.model.model, attribute)

        def before(*_: Any, part: str = part) -> None:
            starts[part] = time.process_time()

        def after(*_: Any, part: str = part) -> None:
            seconds[part] += time.process_time() - starts[part]

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    reduction = getattr(variant.model.model, "reduction", None)
    choose = reduction.method.choose if reduction and isinstance(reduction.method, LayerDropping) else None
    if reduction is not None and choose is not None:

        def timed_choose(*args: Any) -> Any:
            start = time.process_time()
            found = choose(*args)
            seconds["choosing in the LLM"] += time.process_time() - start
            return found

        object.__setattr__(reduction.method, "choose", timed_choose)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if reduction is not None and choose is not None:
            object.__delattr__(reduction.method, "choose")


def first_token(variant: Variant, pixels: torch.Tensor) -> dict[str, float]:
    """Seconds of computing from pixels and ids to the first new id, in all and by part."""
    config, places = variant.model.config, variant.setting.places
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.image_token_id, (1, TEXT + places), generator=generator)
    ids[:, TEXT // 2 : TEXT // 2 + places] = config.image_token_id
    seconds: dict[str, float] = {}
    with timed(variant, seconds):
        start = time.process_time()
        variant.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, do_sample=False, max_new_tokens=1
        )
        seconds["first token"] = time.process_time() - start
    seconds["rest"] = seconds["first token"] - sum(seconds[part] for part in PARTS)
    return seconds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--layers", type=count, help="of the language model; default: all of the shape")
    parser.add_argument("--blocks", type=count, help="of the tower; default: all of the shape")
    parser.add_argument("--vision-tokens", type=count, help="tokens kept; default: a quarter")
    parser.add_argument("--rounds", type=count, default=3, help="after one that is not counted")
    parser.add_argument("--output", type=Path, default=Path("runs/methods-cpu.json"))
    options = parser.parse_args()
    refuse_unwritable(options.output.parent)
    torch.set_num_threads(1)
    vision, text = SHAPES[options.shape]
    vision["num_hidden_layers"] = options.blocks or vision["num_hidden_layers"]
    text["num_hidden_layers"] = options.layers or text["num_hidden_layers"]
    model = build_model(options.shape, device=torch.device("cpu"), dtype=torch.bfloat16)
    kept = [options.vision_tokens] if options.vision_tokens else None
    variants = build_variants(model, settings_of(model.config, [FULL, *METHODS], kept))
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).bfloat16()
    found: dict[str, list[dict[str, float]]] = {variant.setting.method: [] for variant in variants}
    for number in range(options.rounds + 1):
        for variant in variants if number % 2 else reversed(variants):
            seconds = first_token(variant, pixels)
            parts = (f"{name} {value:.3f}" for name, value in seconds.items())
            print(number, variant.setting.method, *parts, flush=True)
            if number:
                found[variant.setting.method].append(seconds)
    rows = [
        {
            "method": variant.setting.method,
            "vision_tokens": variant.setting.vision_tokens,
            "per_layer": list(variant.setting.per_layer),
            **{name: statistics.median(run[name] for run in runs) for name in runs[0]},
        }
        for variant, runs in zip(variants, found.values(), strict=True)
    ]
    result = {
        "machine": describe_machine(model.device), "shape": options.shape, "layers": text["num_hidden_layers"],
        "blocks": vision["num_hidden_layers"], "text_tokens": TEXT, "rounds": options.rounds, "rows": rows,
    }  # fmt: skip
    write_json(options.output, result)


if __name__ == "__main__":
    run(main)
