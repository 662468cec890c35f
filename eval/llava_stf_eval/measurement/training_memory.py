"""What a training step keeps for its backward pass, at all tokens of an image in tiles and at a quarter of them.

    python -m llava_stf_eval.measurement.training_memory --model-type llava_next --image-size 672x672

Stage `instruct`: projector and LLM are trained, the vision tower is frozen. Counted are the bytes of all tensors that
autograd keeps, weights aside, each storage once; their sum is in memory when the backward pass begins, which is when a
step needs most. The tensors themselves are let go, so that the count needs no more memory than an answer. Random
weights of the shape `medium`: a tower of 12 blocks of width 256, an LLM of 12 of width 1,024.
"""

import argparse

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.training.optim import train_only
from llava_stf_eval.speed.shapes import MODEL_TYPES, SHAPES, build_model, shape_config, shape_image_processor
from llava_stf_eval.speed.shown import Shown
from llava_stf_eval.speed.variants import Variant, build_variants, settings_of


def kept_bytes(variant: Variant, shown: Shown, text_tokens: int) -> int:
    """Bytes that a step of one prompt keeps for its backward pass."""
    model = variant.model
    train_only(model, ("projector", "language_model"))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, StorageWeakRef] = {}
    total = 0

    def keep(tensor: torch.Tensor) -> None:
        nonlocal total
        storage = tensor.untyped_storage()
        known = seen.get(storage._cdata)
        if storage._cdata not in weights and (known is None or known.expired()):
            seen[storage._cdata] = StorageWeakRef(storage)
            total += storage.nbytes()

    generator = np.random.default_rng(0)
    inputs = shown.prepare(shape_image_processor(model.config), shown.draw(generator, 1))
    ids = torch.from_numpy(generator.integers(3, model.config.image_token_id, (1, text_tokens)))
    marker = model.config.image_token_id if shown.frames is None else model.config.video_token_id
    ids = torch.cat([torch.full((1, variant.setting.places), marker), ids], dim=1)
    labels = torch.where(ids == marker, -100, ids)
    with saved_tensors_hooks(keep, lambda kept: kept):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False, **inputs)
    return total


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected height x width such as 672x672, found '{text}'")
    return int(height), int(width)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="medium")
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="llava_next")
    parser.add_argument("--image-size", type=_size, default=(672, 672), metavar="HxW", help="672x672 by default")
    parser.add_argument("--frames", type=count, help="of a video in place of the image")
    parser.add_argument("--text-tokens", type=count, default=64)
    options = parser.parse_args()
    shown = Shown(options.image_size, options.frames)
    shown.check(shape_config(options.shape, options.model_type))
    model = build_model(options.shape, device=torch.device("cpu"), dtype=torch.float32, model_type=options.model_type)
    first = None
    for variant in build_variants(model, settings_of(model.config, ["full", "stf"], None, shown=shown)):
        kept = kept_bytes(variant, shown, options.text_tokens)
        first = first or kept
        print(
            f"{variant.setting.method}: {variant.setting.places} image tokens, {kept / 2**20:,.0f} MiB "
            f"({kept / first:.3f} of the first)",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
