"""Random patches: what every method that chooses patches has to beat."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.tensors import gather_tokens


def random_patches(pixel_values: Tensor, patches: int, count: int, seed: int) -> Tensor:
    """Raster indices of `count` of `patches` patches, drawn for each image from the seed and its own pixels.

    Pixels [B, 3, height, width] -> ascending int64 [B, count] on the same device. The same image in the same dtype
    has the same patches, whatever stands beside it in the batch and on whatever device.
    """
    chosen = []
    for image in pixel_values.detach().cpu().contiguous():
        pixels = image.view(torch.uint8).numpy().tobytes()
        digest = hashlib.blake2b(pixels, digest_size=7, key=str(seed).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        chosen.append(torch.randperm(patches, generator=generator)[:count].sort().values)
    return torch.stack(chosen).to(pixel_values.device)


class RandomPatches(TrainingFreeMethod):
    """Keeps patches at random, before the projector, so that it works on the chosen alone."""

    tiles = "each"  # the baseline of VisionZip

    name = "random"
    title = "random patches"
    reference = "the baseline of UniPruneBench, arXiv 2511.02650"
    needs = "Nothing; the pixels are read once on the host to draw the same patches for the same image."

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """Drawn patches, projected: [B, M, H]."""
        states = model.patch_states(pixel_values)
        return model.multi_modal_projector(gather_tokens(states, self._choose(model, pixel_values)))

    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        """The patches that are drawn for these pixels."""
        return self._choose(model.model, pixel_values)

    def _choose(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        reduction = model.reduction
        return random_patches(pixel_values, reduction.patches, reduction.vision_tokens, reduction.seed)
