"""What a frozen tower says of drawn images, computed once and kept in a file: each image is trained on many times.

python -m llava_stf.training.drawn_states --model runs/start --output runs/states --images 40000 --seed 21
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_stf.errors import DataError
from llava_stf.io.command import run
from llava_stf.io.json import parse_json
from llava_stf.io.options import check_ranges
from llava_stf.io.publish import publish
from llava_stf.loading import load_model
from llava_stf.models.vision.states import select_patch_states
from llava_stf.training.rows import DTYPES
from llava_stf.world.dataset import draw, generator
from llava_stf.world.scene import Scene, sample_scene

# What the projector reads; MBTF reads 3 beside it, and TokenPacker all of them.
LAYERS = (-2, 4, 3, 2)
_BATCH = 128
_ABOUT, _STATES = "about.json", "states.bin"


class DrawnStates:
    """The images of `write_states`, by index.

    Args:
        folder: what `write_states` wrote.

    Raises:
        DataError: it does not hold states.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = parse_json((folder / _ABOUT).read_bytes())
            self.seed, self.split, self._tower = about["seed"], about["split"], about["tower"]
            self._states = np.memmap(folder / _STATES, dtype=np.int16, mode="r", shape=tuple(about["shape"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} holds no states of drawn images: python -m llava_stf.training.drawn_states writes them"
            ) from error
        self._folder = folder
        self.scenes = [scene_of(index, self.seed, self.split) for index in range(len(self._states))]

    def __len__(self) -> int:
        return len(self.scenes)

    def check(self, tower: nn.Module) -> None:
        """Raise `DataError` if the states are those of another tower."""
        if _digest(tower) != self._tower:
            raise DataError(f"the states in {self._folder} are of another tower: write those of the start's own")

    def states(self, indices: Sequence[int] | np.ndarray) -> list[Tensor]:
        """The states [B, N, C] of these images, one tensor for each of `LAYERS`, in bfloat16."""
        return list(torch.from_numpy(self._states[np.asarray(indices)]).view(torch.bfloat16).unbind(1))


def _digest(tower: nn.Module) -> str:
    """What tells a tower's weights, as they are stored, from another's."""
    stored = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        stored.update(name.encode() + weight.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return stored.hexdigest()


def scene_of(index: int, seed: int, split: str) -> Scene:
    """The scene of image `index` without its pixels."""
    return sample_scene(generator(split, seed, index, 0))


@torch.inference_mode()
def write_states(tower: CLIPVisionModel, folder: Path, *, count: int, seed: int, split: str = "train") -> None:
    """Draw images 0 to `count` of a seed and write the tower's states of them, 64 KiB an image, to a new folder.

    The tower computes in its own dtype; what is written is bfloat16.

    Raises:
        LlavaStfError: the folder is there already, or cannot be written, or a number cannot be.
    """
    check_ranges({"images": count}, {"at least 1": ("images",)})
    check_ranges({"seed": seed}, {"at least 0 and below 2**32": ("seed",)})
    tower = tower.eval()
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    about = {"seed": seed, "split": split, "tower": _digest(tower)}
    with publish(folder) as beside:
        shape: tuple[int, ...] = ()
        with (beside / _STATES).open("wb") as file:
            for start in range(0, count, _BATCH):
                drawn = [draw(index, seed=seed, split=split)[1] for index in range(start, min(count, start + _BATCH))]
                pixels = torch.from_numpy(np.stack(drawn).transpose(0, 3, 1, 2).copy())
                states = select_patch_states(tower, ((pixels - mean) / std).to(tower.dtype), LAYERS)
                joined = torch.stack(states, dim=1).to(torch.bfloat16)
                shape = (count, *joined.shape[1:])
                file.write(joined.view(torch.int16).numpy().tobytes())
        (beside / _ABOUT).write_text(json.dumps(about | {"shape": shape}))


def main() -> None:
    """Write the states that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="LLaVA whose tower it is")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; it is created")
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the computation")
    parser.add_argument("--held-out", action="store_true", help="the split that is never trained on")
    options = parser.parse_args()
    tower = load_model(options.model, vision_tokens="all", dtype=options.dtype).model.model.vision_tower
    split = "held_out" if options.held_out else "train"
    write_states(tower, options.output, count=options.images, seed=options.seed, split=split)


if __name__ == "__main__":
    run(main)
