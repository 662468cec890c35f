"""PatchMix (arXiv 2306.12243): images mixed patch by patch, and the contrast of mixed and whole ones.

See docs/encoders/methods.md, PatchMix.

In mixed image i, a random M-th of the patches comes from each of the images i, i + 1, ..., i + M - 1 of the batch, each
patch at its own place. So mixed image i shares 1 / M with each of these images, and (M - |d|) / M^2 with mixed image
i + d, whatever the two layouts are; those shares are the targets.

    q1 = g f(x1)     k1, k2 = f'(x1), f'(x2)     k1m = f'(mix x1)     q2m = g f(mix x2)
    L = CE(q1, k2; identity) + CE(q2m, k1; 1/M) / 2 + CE(q2m, k1m; (M - |d|)/M^2) / 2
      + mean over local crops l of  CE(g f(l), k; identity) + CE(g f(mix l), k; 1/M),  summed over k = k1, k2

f is encoder and projector, g the predictor, f' the momentum copy of f. Letters: B images of this process, N of all
processes, M images per mix, T patches of a view, C local crops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import ViTModel

from llava_stf.encoders.heads import mlp_head
from llava_stf.encoders.objectives.base import (
    Objective,
    Progress,
    ema_momentum,
    ema_update,
    encode,
    momentum_copy,
)
from llava_stf.encoders.objectives.contrast import contrast, identity_targets
from llava_stf.encoders.objectives.patch_mixing import mix, mix_targets, mix_to_mix_targets
from llava_stf.encoders.objectives.start import xavier_start
from llava_stf.encoders.pretrain.augment import Recipe, View
from llava_stf.errors import LlavaStfError


@dataclass(frozen=True)
class PatchMixOptions:
    """Options of PatchMix; the defaults are the released code's for CIFAR, undocumented parts included.

    Sections are those of docs/encoders/methods.md, PatchMix.

    Attributes:
        images_per_mix: M (Mixing).
        temperature: of every contrast; the released warm-up of it, from 0.2 to 0.2, does nothing (One step).
        identity_smoothing: label smoothing of the losses whose target is the own image. The released loop takes 0.1
            from a mixer object that was left at its default (Mixing); meant is 0.
        mixed_smoothing: label smoothing of the losses with mixed targets (Mixing).
        momentum: m0 of the momentum encoder, rising to 1; None: no momentum encoder, keys are the encoder's own (One
            step).
        momentum_per_step: the coefficient follows the step, as meant; the released loop's variable is shadowed, and it
            changes once per epoch (Momentum).
        drop_path: stochastic depth of the query encoder (Training).
        hidden: hidden width of projector and predictor (Heads, of all methods).
        out: output width of projector and predictor (Heads, of all methods).
        crop_scale: range of the two views' share of the image; (0.35, 1) with local crops (Views).
        local_crops: number of small views beside the two; 8 on ImageNet (Views).
        local_crop_size: their side in pixels; 96 on ImageNet (Views).
        local_crop_scale: range of their share of the image (Views).
    """

    images_per_mix: int = 2
    temperature: float = 0.2
    identity_smoothing: float = 0.1
    mixed_smoothing: float = 0.0
    momentum: float | None = 0.996
    momentum_per_step: bool = False
    drop_path: float = 0.1
    hidden: int = 4096
    out: int = 256
    crop_scale: tuple[float, float] = (0.1, 1.0)
    local_crops: int = 0
    local_crop_size: int = 96
    local_crop_scale: tuple[float, float] = (0.05, 0.35)

    def __post_init__(self) -> None:
        if self.images_per_mix < 2:
            raise LlavaStfError(f"images_per_mix must be at least 2, found {self.images_per_mix}")

    @classmethod
    def corrected(cls, **changes: Any) -> PatchMixOptions:
        """What the authors evidently meant: no smoothing of the own image's target, momentum that follows the step."""
        return cls(**{"identity_smoothing": 0.0, "momentum_per_step": True, **changes})


class PatchMix(Objective):
    """PatchMix with or without momentum encoder.

    Raises:
        LlavaStfError: crops that the patch does not divide.
    """

    options_type = PatchMixOptions
    options: PatchMixOptions

    def __init__(self, encoder: ViTModel, options: PatchMixOptions) -> None:
        super().__init__()
        self.options = options
        self.patch_size = encoder.config.patch_size
        width = encoder.config.hidden_size
        self.encoder = xavier_start(encoder)
        self.projector = mlp_head(width, options.hidden, options.out, layers=3)
        self.predictor = mlp_head(options.out, options.hidden, options.out, layers=2)
        self.momentum_encoder = self.momentum_projector = None
        if options.momentum is not None:
            self.momentum_encoder, self.momentum_projector = momentum_copy(encoder), momentum_copy(self.projector)
        self.recipes = two_views(encoder.config.image_size, options.crop_scale)
        if options.local_crops:
            if options.local_crop_size % self.patch_size:
                raise LlavaStfError(
                    f"local_crop_size {options.local_crop_size} is no multiple of the patch size {self.patch_size}"
                )
            local = replace(self.recipes[0], size=options.local_crop_size, scale=options.local_crop_scale, blur_p=0.5)
            self.recipes += [local] * options.local_crops

    def inputs(self, views: list[View]) -> list[dict[str, Any]]:
        """One step: two views and local crops, whole and mixed; the batch must be at least 2 M - 1 images."""
        view1, view2, *crops = [view.pixels for view in views]
        if len(view1) < (fewest := 2 * self.options.images_per_mix - 1):
            raise LlavaStfError(
                f"mixes of {self.options.images_per_mix} images need batches of at least {fewest}, found "
                f"{len(view1)}: take a larger per_device_batch_size"
            )
        inputs = {"view1": view1, "view2": view2, "mixed1": self.mixed(view1), "mixed2": self.mixed(view2)}
        if crops:
            inputs["crops"] = torch.cat(crops)
            inputs["mixed_crops"] = torch.cat([self.mixed(crop) for crop in crops])
        return [inputs]

    def mixed(self, images: Tensor) -> Tensor:
        """`mix` with one random layout for the batch."""
        patches = images.shape[-2] // self.patch_size * (images.shape[-1] // self.patch_size)
        permutation = torch.randperm(patches, device=images.device)
        return mix(images, self.patch_size, self.options.images_per_mix, permutation)

    def forward(
        self,
        view1: Tensor,
        view2: Tensor,
        mixed1: Tensor,
        mixed2: Tensor,
        crops: Tensor | None = None,
        mixed_crops: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Views and their mixes [B, 3, H, W]; local crops and their mixes [C * B, 3, h, w], crop by crop.

        Returns the losses "source", "mix", "mix_to_mix", with crops "crop" and "crop_mix", and "loss", their sum.
        """
        options, batch, device = self.options, len(view1), view1.device
        place = {"device": device}
        own = identity_targets(batch, options.identity_smoothing, **place)
        mixed = mix_targets(batch, options.images_per_mix, options.mixed_smoothing, **place)
        both_mixed = mix_to_mix_targets(batch, options.images_per_mix, options.mixed_smoothing, **place)

        projected1 = self.project(view1)
        query1 = self.predictor(projected1)
        # Without momentum encoder these passes share running statistics, so their order is part of the method.
        key1 = projected1 if self.momentum_encoder is None else self.key(view1)
        key2, key1_mixed = self.key(view2), self.key(mixed1)
        query2_mixed = self.predictor(self.project(mixed2))

        losses = {
            "source": contrast(query1, key2, own, options.temperature),
            "mix": contrast(query2_mixed, key1, mixed, options.temperature) / 2,
            "mix_to_mix": contrast(query2_mixed, key1_mixed, both_mixed, options.temperature) / 2,
        }
        for name, images, target in (("crop", crops, own), ("crop_mix", mixed_crops, mixed)):
            if images is not None:
                queries = self.predictor(self.project(images)).split(batch)
                pairs = [contrast(query, key, target, options.temperature) for query in queries for key in (key1, key2)]
                losses[name] = torch.stack(pairs).sum() / len(queries)
        return losses | {"loss": torch.stack(list(losses.values())).sum()}

    def project(self, images: Tensor) -> Tensor:
        """f: images [B, 3, H, W] -> [B, out], through the encoder's class token."""
        tokens = encode(self.encoder, images, drop_path=self.options.drop_path)
        return self.projector(tokens[:, 0])

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        """f': as `project`, through the momentum copies where there are any; without gradient."""
        if self.momentum_encoder is None or self.momentum_projector is None:
            return self.project(images)
        return self.momentum_projector(encode(self.momentum_encoder, images)[:, 0])

    def before_step(self, progress: Progress) -> None:
        """Move the momentum encoder, if there is one, by step or, as the released code does, by epoch."""
        if self.options.momentum is None or self.momentum_encoder is None or self.momentum_projector is None:
            return
        fraction = progress.fraction
        if not self.options.momentum_per_step:
            fraction = (progress.epoch + 1 / progress.steps_per_epoch) / progress.epochs
        coefficient = ema_momentum(self.options.momentum, fraction)
        ema_update(self.momentum_encoder, self.encoder, coefficient)
        ema_update(self.momentum_projector, self.projector, coefficient)

    def trained_encoder(self) -> ViTModel:
        """The momentum encoder, or the encoder itself where there is none."""
        return self.encoder if self.momentum_encoder is None else self.momentum_encoder


def two_views(size: int, scale: tuple[float, float]) -> list[Recipe]:
    """The recipes of view 1, always blurred, and view 2, seldom blurred and at times solarised.

    See docs/encoders/methods.md, PatchMix, Views.
    """
    return [Recipe(size, scale, blur_p=1.0), Recipe(size, scale, blur_p=0.1, solarize_p=0.2)]
