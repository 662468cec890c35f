r"""Train projector and language model of the bundled models on drawn images, whose tower states are computed once.

Three parts follow each other, each a run that starts from the one before:

- `objects`: the language model alone learns to look up what stands in a scene and to be asked about it, the scene told
  as one token for each object in its own word embeddings, and beside it the lessons on option letters; no tower yet;
- `images`: the projector is aligned to say in word embeddings what each patch shows; then both learn all families of
  questions, the language model's lookups and lessons going on beside them;
- `tokens`: the same at fewer tokens, or without alignment at all of them. Models that are compared start from one
  folder and have the same steps; one that fuses windows starts as mean pooling of that folder's projector, or at random
  where its paper says so, and if it has weights of its own these are aligned first.

    python -m llava_stf.training.pretrain_drawn --part images --start runs/start --states runs/states \\
        --output runs/base --steps 6000
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from llava_stf.errors import DataError
from llava_stf.inference import LlavaStf
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.options import check_ranges
from llava_stf.io.runs import describe_newest, prepare_output, read_state, save_model, save_state
from llava_stf.loading import load_model
from llava_stf.models.fusion.budget import window_of_tokens
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.reduction.apply import apply_fusing, apply_stf
from llava_stf.training.alignment import align_to_patches, align_to_words
from llava_stf.training.config import Reduction
from llava_stf.training.drawn_batches import Encoder
from llava_stf.training.drawn_states import DrawnStates
from llava_stf.training.drawn_steps import PARTS, Steps
from llava_stf.training.learner import Learner
from llava_stf.training.optim import parameter_groups
from llava_stf.training.rows import DTYPES

logger = logging.getLogger(__name__)
LOGGING_STEPS = 100
LOGGED = 12  # kinds of questions
WARMUP_STEPS = 50
POOLING = ("pool", "m3")  # these keep the start's projector, which is aligned


def pretrain_drawn(
    start: Path | str,
    states: Path | None,
    output: Path,
    *,
    part: Literal["objects", "images", "tokens"],
    steps: int,
    vision_tokens: Sequence[int] | Literal["all"] = "all",
    reduction: Reduction = "stf",
    init: Literal["pool", "random"] = "pool",
    fusion_layers: Sequence[int] | None = None,
    fades: float = 0.0,
    batch_size: int = 4,
    learning_rate: float = 7e-4,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    save_steps: int = 500,
    stop_after: int | None = None,
    resume: bool = False,
) -> bool:
    """Train the LLaVA in `start` on the images in `states`; `output` gets checkpoints and in the end the model.

    A run that stopped and goes on with `resume` does the same steps as one that was never stopped.

    Args:
        start: folder of `assemble_tiny`, or of another run of this; or `tiny-full`.
        states: folder of `write_states`, by the start's tower; none for `objects`.
        output: folder of the run.
        part: what is learned.
        steps: how many updates.
        vision_tokens: of an image, in fused windows; a step has one of several. `"all"` leaves the plain projector.
        reduction: how windows are fused, as `--reduction` of `llava_stf.training.finetune`.
        init: how STF starts, as in `apply_stf`.
        fusion_layers: hidden states that MBTF joins, as in `apply_stf`; one alone leaves STF without MBTF.
        fades: share of the steps over which the learning rate falls to zero at the end, 0 for never.
        batch_size: images a step.
        learning_rate: its highest.
        dtype: of the computation; weights are float32.
        seed: of images and questions.
        save_steps: steps between two checkpoints.
        stop_after: stop with a checkpoint after so many steps of this call.
        resume: go on from the newest checkpoint, if there is one.

    Returns:
        Whether all steps are done, and the model written.

    Raises:
        LlavaStfError: the folder holds a run that is not resumed, or one with other options, or cannot be written.
        DataError: the loss is not finite, or states are missing or of another tower.
    """
    numbers = {"steps": steps, "batch_size": batch_size, "save_steps": save_steps, "stop_after": stop_after}
    check_ranges(numbers, {"at least 1": numbers})
    check_ranges({"learning_rate": learning_rate, "fades": fades}, {"at least 0": ("learning_rate", "fades")})
    check_ranges({"seed": seed}, {"at least 0 and below 2**32": ("seed",)})
    fused_by_stf = vision_tokens != "all" and reduction == "stf"
    if not fused_by_stf and (init != "pool" or fusion_layers is not None):
        raise DataError("init and fusion_layers are STF's: leave them out with all tokens or another reduction")
    if vision_tokens == "all" and reduction != "stf":
        raise DataError(f"all tokens are kept as they are: leave out reduction {reduction}, or say how many tokens")
    plan = PARTS[part]
    if (states is None) != plan.told:
        raise DataError(f"Part {part} is trained {'without' if plan.told else 'on'} states of a tower.")
    checkpoint = prepare_output(output, resume=resume)
    decided = {"start": Path(start).name, "part": part, "steps": steps, "vision_tokens": vision_tokens}
    decided |= {"reduction": reduction, "init": init, "fusion_layers": fusion_layers, "fades": fades}
    decided |= {"batch_size": batch_size, "learning_rate": learning_rate, "dtype": str(dtype), "seed": seed}
    torch.manual_seed(seed)
    llava = load_model(start, vision_tokens="all", dtype="float32")
    assert llava.processor is not None  # a start has one, see `assemble_tiny`
    plain = copy.deepcopy(llava.model.model.multi_modal_projector)
    windows = _fuse(llava, vision_tokens, reduction, init, fusion_layers, seed)
    encoder = Encoder(llava.processor.tokenizer)
    learner = Learner(llava.model, encoder, dtype)
    images = None
    if states is not None:
        images = DrawnStates(states)
        images.check(llava.model.model.vision_tower)
        decided["states"] = {"seed": images.seed, "split": images.split, "images": len(images)}
    if checkpoint is None and images is not None:
        if part == "images":
            align_to_words(learner, images, steps=plan.alignment, seed=seed)
        elif windows and reduction not in POOLING:
            align_to_patches(learner, images, plain, windows, steps=plan.alignment, seed=seed)
    learner.multi_modal_projector.requires_grad_(plan.projector > 0)
    groups = parameter_groups(learner, {"projector": plan.projector, "language_model": 1.0}, weight_decay=0.01)
    shares = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    drawn = Steps(learner, plan, images, windows, steps=steps, batch_size=batch_size, seed=seed)
    step = 0
    if checkpoint is not None:
        state = read_state(checkpoint, decided)
        learner.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        drawn.load_state(state["drawn"])
        step = state["step"]
    first, since = step, time.monotonic()
    while step < steps and (stop_after is None or step < first + stop_after):
        loss = drawn.loss(step)
        rate = learning_rate * min(1, (step + 1) / WARMUP_STEPS)
        rate *= min(1, (steps - step) / (fades * steps)) if fades else 1
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        step += 1
        if not math.isfinite(loss.item()):
            raise DataError(f"the loss is {loss.item()} at step {step}; {describe_newest(output)}")
        if step % LOGGING_STEPS == 0:
            speed = (step - first) / (time.monotonic() - since)
            least = sorted((share, name) for name, share in drawn.right.items())[:LOGGED]
            known = ", ".join(f"{name} {share:.2f}" for share, name in least)
            logger.info("step %d  loss %.3f  least right: %s  %.2f steps/s", step, loss.item(), known, speed)
        if step % save_steps == 0 or step == steps or (stop_after is not None and step == first + stop_after):
            state = {"model": learner.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_state(output, step, {**state, "drawn": drawn.state()}, decided)
    if step < steps:
        return False
    save_model(llava.model, llava.processor, output, torch.bfloat16)
    return True


def _fuse(
    llava: LlavaStf,
    vision_tokens: Sequence[int] | Literal["all"],
    reduction: str,
    init: Literal["pool", "random"],
    fusion_layers: Sequence[int] | None,
    seed: int,
) -> list[int]:
    """Bring a plain LLaVA to so many tokens; returns the sides of its windows, none where it stays plain."""
    if vision_tokens == "all":
        return []
    windows = [window_of_tokens(llava.model.config, count) for count in vision_tokens]
    window = windows if len(windows) > 1 else windows[0]
    if reduction == "stf":
        layers = None if fusion_layers is None else list(fusion_layers)
        apply_stf(llava.model, llava.processor, window=window, fusion_layers=layers, init=init, seed=seed)
    else:
        apply_fusing(llava.model, llava.processor, reduction, window=window, seed=seed)
    config = llava.model.config
    assert isinstance(config, FusionConfig)  # it fuses now
    return list(config.fusion_windows or [])


def _counts(text: str) -> list[int] | str:
    return text if text == "all" else [count(part) for part in text.split(",")]


def main() -> None:
    """Train the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--start", required=True, help="LLaVA to start from")
    parser.add_argument("--states", type=Path, help="states of drawn images by the start's tower; not for objects")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and model")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--vision-tokens", default="all", type=_counts, help="of an image: all, 16 or 16,64,4")
    kinds = get_args(Reduction)
    parser.add_argument("--reduction", choices=kinds, default="stf", help="where tokens are fewer than all")
    parser.add_argument("--init", choices=("pool", "random"), default="pool", help="how STF starts")
    parser.add_argument("--fusion-layers", type=int, nargs="+", help="hidden states that MBTF joins")
    parser.add_argument("--fades", type=float, default=0.0, help="share of steps over which the learning rate falls")
    parser.add_argument("--batch-size", type=int, default=4, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the computation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--stop-after", type=int, help="stop with a checkpoint after so many steps")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = vars(parser.parse_args())
    pretrain_drawn(**options | {"dtype": DTYPES[options["dtype"]]})


if __name__ == "__main__":
    run(main)
