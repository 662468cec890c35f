"""What every pre-training method is: it draws views, turns them into the inputs of its steps, and gives their losses.

The loop of one batch, for `batch` uint8 images on the device:

    objective.before_step(progress)                     momentum encoder, once per optimizer step
    for inputs in objective.inputs(objective.views(images)):
        losses = objective(**inputs)                    all that is random was drawn before: forward repeats
        losses["loss"].backward(); objective.clip_gradients(); optimizer.step()

Letters: B images of this process, N all patches of a view, D encoder width.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import ViTModel

from llava_stf.encoders.pretrain.augment import Augmentation, Recipe, View
from llava_stf.models.vision.vits import resize_positions


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` global batches are done, of `epochs` times `steps_per_epoch`."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / (self.steps_per_epoch * self.epochs)


class Objective(nn.Module, ABC):
    """A pre-training method.

    A subclass sets `options_type`, a frozen dataclass of its options, and takes `(encoder, options)`: a `ViTModel`
    without pooling layer, whose weights the subclass initialises its own way, and the options. The options' defaults
    are the released code's behaviour, undocumented parts included, so `options_type()` is the preset that reproduces
    it; options_type has a classmethod `corrected()` for what the authors evidently meant.

    Attributes:
        encoder: the encoder that learns by gradient.
        recipes: one per view.
        forward: takes what `inputs` gives; the losses by name, scalars, of which "loss" is minimised.
    """

    options_type: ClassVar[type[Any]]
    encoder: ViTModel
    recipes: Sequence[Recipe]
    forward: Callable[..., dict[str, Tensor]]

    @cached_property
    def augmentations(self) -> list[Augmentation]:
        """`recipes` as functions; needs kornia."""
        return [Augmentation(recipe) for recipe in self.recipes]

    def views(self, images: Tensor) -> list[View]:
        """One view per recipe of `images`, float [B, 3, H, W] in [0, 1].

        A method whose crops depend on each other overrides this and gives `augmentations` its boxes.
        """
        return [augmentation(images) for augmentation in self.augmentations]

    @abstractmethod
    def inputs(self, views: list[View]) -> list[dict[str, Any]]:
        """The keyword arguments of `forward`, one mapping per optimizer step. Everything random is drawn here."""

    def before_step(self, progress: Progress) -> None:
        """Called once per batch, before its first forward pass: a momentum encoder follows here."""

    def clip_gradients(self) -> None:
        """Called between backward pass and optimizer step."""

    def trained_encoder(self) -> ViTModel:
        """The encoder to save and to measure: the momentum encoder where the method has one."""
        return self.encoder

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW groups; `decayed` says which of them follow the weight decay schedule.

        By default biases and one-dimensional parameters do not decay; class token and position table do
        (docs/encoders/methods.md, Schedules).
        """
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 else free).append(parameter)
        return [
            {"params": decayed, "weight_decay": weight_decay, "decayed": True},
            {"params": free, "weight_decay": 0.0, "decayed": False},
        ]


def momentum_copy(module: nn.Module) -> Any:
    """A copy of `module` that `ema_update` moves and no gradient; it stays in train mode.

    So its BatchNorms use their own batches, as in the released codes (docs/encoders/methods.md, Heads).
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(momentum: nn.Module, query: nn.Module, coefficient: float) -> None:
    """Move the copy: parameter' <- m parameter' + (1 - m) parameter, over all parameters and no buffers."""
    for slow, fast in zip(momentum.parameters(), query.parameters(), strict=True):
        slow.lerp_(fast.to(slow.dtype), 1 - coefficient)


def ema_momentum(base: float, fraction: float) -> float:
    """The momentum coefficient: `base` at the start (fraction 0), 1 at the end, a cosine between.

    See docs/encoders/methods.md, PatchMix, Momentum.
    """
    return 1 - (1 - base) * (1 + math.cos(math.pi * fraction)) / 2


def encode(encoder: ViTModel, pixels: Tensor, *, keep: Tensor | None = None, drop_path: float = 0.0) -> Tensor:
    """The tokens after the final LayerNorm, [B, 1 + n, D], class token first; n = N, or the number of kept patches.

    Args:
        encoder: a ViT without pooling layer.
        pixels: [B, 3, H, W], any size that the patch divides; the position table is resized to its grid
            as the authors' code does (docs/encoders/methods.md, Encoder).
        keep: int64 [B, n], numbers of the patches that enter the blocks, raster order of the grid; default: all.
        drop_path: stochastic depth; the share of dropped branches rises linearly from 0 in the first block to this in
            the last. 0 in evaluation.
    """
    embeddings = encoder.embeddings
    patches = embeddings.patch_embeddings(pixels)
    side = embeddings.patch_embeddings.projection.kernel_size[0]
    grid = pixels.shape[-2] // side, pixels.shape[-1] // side
    table = resize_positions(embeddings.position_embeddings, grid)
    patches = patches + table[:, 1:]
    if keep is not None:
        patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
    class_token = (embeddings.cls_token + table[:, :1]).expand(len(pixels), -1, -1)
    states = torch.cat([class_token.to(patches.dtype), patches], dim=1)
    last = max(len(encoder.layers) - 1, 1)
    for number, layer in enumerate(encoder.layers):
        rate = drop_path * number / last if encoder.training else 0.0
        states = states + apply_drop_path(layer.attention(layer.layernorm_before(states))[0], rate)
        states = states + apply_drop_path(layer.mlp(layer.layernorm_after(states)), rate)
    return encoder.layernorm(states)


def apply_drop_path(branch: Tensor, rate: float) -> Tensor:
    """Zero whole samples of a residual branch, [B, ...], with probability `rate`; the others grow by 1 / (1 - rate)."""
    if rate == 0:
        return branch
    kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * kept / (1 - rate)


class ClassTokenContrast(Objective):
    """Queries and keys of the class token: f is encoder and projector, g the predictor, f' the momentum copy of f.

    A subclass makes `projector`, `predictor`, `momentum_encoder` and `momentum_projector` beside its encoder; its
    options have `momentum` and `drop_path`.
    """

    options: Any
    projector: nn.Module
    predictor: nn.Module
    momentum_encoder: ViTModel
    momentum_projector: nn.Module

    def query(self, images: Tensor) -> Tensor:
        """Queries g f: images [B, 3, H, W] -> [B, out]."""
        tokens = encode(self.encoder, images, drop_path=self.options.drop_path)
        return self.predictor(self.projector(tokens[:, 0]))

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        """Keys f': images [B, 3, H, W] -> [B, out], without gradient."""
        return self.momentum_projector(encode(self.momentum_encoder, images)[:, 0])

    def before_step(self, progress: Progress) -> None:
        """Move encoder and projector of the momentum copy, by a coefficient that rises to 1."""
        coefficient = ema_momentum(self.options.momentum, progress.fraction)
        ema_update(self.momentum_encoder, self.encoder, coefficient)
        ema_update(self.momentum_projector, self.projector, coefficient)

    def trained_encoder(self) -> ViTModel:
        """The momentum encoder."""
        return self.momentum_encoder
