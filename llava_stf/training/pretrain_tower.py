"""Train the bundled model's vision tower on drawn images, with a dense target for every patch.

It plays the part that CLIP's pre-training plays for LLaVA: afterwards the tower's states say, linearly and patch by
patch, what is there. The targets are those of `world.patch_labels`, read by one linear layer from the state that the
projector selects. Most images have texts on all their free places, since characters take longest to learn.

    python -m llava_stf.training.pretrain_tower --output runs/tower --images 100000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPVisionConfig, CLIPVisionModel, get_cosine_schedule_with_warmup
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_stf.errors import LlavaStfError
from llava_stf.io.command import run
from llava_stf.io.options import check_ranges
from llava_stf.io.runs import prepare_output, read_state, save_model, save_state
from llava_stf.models.vision.states import select_hidden_states, skip_unused_blocks
from llava_stf.training.rows import DTYPES
from llava_stf.world.dataset import draw, generator
from llava_stf.world.drawing import render
from llava_stf.world.labels import patch_labels
from llava_stf.world.scene import CHARACTERS, COLOURS, PLACES, SHAPES, SIDE, SIZES, WORDS, with_more_texts

SELECT_LAYER = -2
CROWDED = 0.7  # of the images
CLASSES = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "size": len(SIZES) + 1,
    "place": len(PLACES) + 1,
    "centre": 2,
    "char_left": len(CHARACTERS) + 1,
    "char_right": len(CHARACTERS) + 1,
    "order": max(map(len, WORDS)) + 1,
}


def tower_config() -> CLIPVisionConfig:
    """The bundled model's tower: CLIP's architecture, 6 blocks of width 128, 112 px in 8x8 patches of 14 px."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
        projection_dim=128,
    )


class DrawnImages(IterableDataset[dict[str, Tensor]]):
    """The images `start` to `count` of a seed: uint8 pixels [3, 112, 112] and one label map [64] per class.

    `crowded` is the share of images that have texts on all their free places.
    """

    def __init__(self, count: int, seed: int, split: str = "train", crowded: float = 0.0, start: int = 0) -> None:
        self.count, self.seed, self.split, self.crowded, self.start = count, seed, split, crowded, start

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(self.start + first, self.count, step):
            scene, pixels = draw(index, seed=self.seed, split=self.split)
            rng = generator(self.split, self.seed, index, 2)
            if rng.random() < self.crowded:
                scene = with_more_texts(scene, rng)
                pixels = render(scene, rng)
            labels = patch_labels(scene)
            sample = {name: torch.from_numpy(labels[name].reshape(-1)) for name in CLASSES}
            yield sample | {"pixels": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}


class DenseReader(nn.Module):
    """A tower and one linear layer that reads all targets of a patch from the selected state."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.config.hidden_size, sum(CLASSES.values()))
        self.mean = 255 * torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
        self.std = 255 * torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, 112, 112] -> logits [B, 64, classes] per target."""
        (state,) = select_hidden_states(self.tower, (pixels - self.mean) / self.std, [SELECT_LAYER])
        parts = self.head(state[:, 1:]).split(list(CLASSES.values()), dim=-1)
        return dict(zip(CLASSES, parts, strict=True))


def pretrain_tower(
    output: Path,
    *,
    images: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    save_steps: int = 1000,
    stop_after: int | None = None,
    resume: bool = False,
) -> bool:
    """Train a tower on drawn images; `output` gets checkpoints and in the end the tower, `CLIPVisionModel` format.

    A run that stopped and goes on with `resume` does the same steps as one that was never stopped.

    Args:
        output: folder of the run.
        images: to train on, each once.
        batch_size: images a step.
        learning_rate: its highest.
        dtype: of the computation; weights are float32.
        seed: of images and weights.
        save_steps: steps between two checkpoints.
        stop_after: stop with a checkpoint after so many steps of this call.
        resume: go on from the newest checkpoint, if there is one.

    Returns:
        Whether all images were seen, and the tower written.

    Raises:
        LlavaStfError: the folder holds a run that is not resumed, or one with other options, or cannot be written; or
            there are fewer images than a step takes.
    """
    numbers = {"batch_size": batch_size, "save_steps": save_steps, "stop_after": stop_after}
    check_ranges(numbers, {"at least 1": numbers})
    check_ranges({"learning_rate": learning_rate}, {"at least 0": ("learning_rate",)})
    check_ranges({"seed": seed}, {"at least 0 and below 2**32": ("seed",)})
    if images < batch_size:
        raise LlavaStfError(f"a step takes {batch_size} images, found {images}: nothing would be trained")
    checkpoint = prepare_output(output, resume=resume)
    decided: dict[str, object] = {"images": images, "batch_size": batch_size, "learning_rate": learning_rate}
    decided |= {"dtype": str(dtype), "seed": seed}
    torch.manual_seed(seed)
    # On a CPU in bfloat16 the fused attention has a backward pass that takes half of the step.
    reader = DenseReader(CLIPVisionModel._from_config(tower_config(), attn_implementation="eager"))
    skip_unused_blocks(reader.tower, [SELECT_LAYER])
    optimizer = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=0.01)
    steps = images // batch_size
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 30, steps)
    first = 0
    if checkpoint is not None:
        state = read_state(checkpoint, decided)
        reader.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    last = steps if stop_after is None else min(steps, first + stop_after)
    drawn = DrawnImages(last * batch_size, seed, crowded=CROWDED, start=first * batch_size)
    loader = DataLoader(drawn, batch_size=batch_size, num_workers=1)
    started = time.monotonic()
    for step, batch in enumerate(loader, first + 1):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            logits = reader(batch["pixels"])
        losses = [F.cross_entropy(logits[name].float().flatten(0, 1), batch[name].flatten()) for name in CLASSES]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            speed = (step - first) * batch_size / (time.monotonic() - started)
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {speed:.0f} images/s", flush=True)
        if step % save_steps == 0 or step == last:
            state = {"model": reader.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_state(output, step, {**state, "schedule": schedule.state_dict()}, decided)
            print(accuracy(reader), flush=True)
    if last < steps:
        return False
    save_model(reader.tower, None, output, torch.float32)
    return True


@torch.inference_mode()
def accuracy(reader: DenseReader, images: int = 512) -> dict[str, float]:
    """Share of right patches per target on held-out images, among the patches where something is."""
    right = dict.fromkeys(CLASSES, 0)
    total = dict.fromkeys(CLASSES, 0)
    for batch in DataLoader(DrawnImages(images, 0, "held_out"), batch_size=64):
        logits = reader(batch["pixels"])
        for name in CLASSES:
            there = batch[name] > 0
            right[name] += int((logits[name].argmax(-1) == batch[name])[there].sum())
            total[name] += int(there.sum())
    return {name: round(right[name] / total[name], 4) for name in CLASSES}


def main() -> None:
    """Train the tower that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tower")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the computation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=1000)
    parser.add_argument("--stop-after", type=int, help="stop with a checkpoint after so many steps")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    options = vars(parser.parse_args())
    pretrain_tower(**options | {"dtype": DTYPES[options["dtype"]]})


if __name__ == "__main__":
    run(main)
