"""MGC, multi-grained contrast (arXiv 2407.02014): contrast of cells of three sizes that show the same place.

See docs/encoders/methods.md, MGC.

Two views overlap. For each grain, fine, middle, coarse, `correspondence` pairs up K cells of them. A cell is the mean
of its patch tokens; projector, predictor and momentum projector are the grain's own.

    q_v = g(proj(pool(f(x_v))[cells of view v])),  k_v = proj'(pool(f'(x_v))[cells of view v])          [B * K, out]
    l_grain = CE(q_1, k_2; own pair) + CE(q_2, k_1; own pair)
    L = sum of K_grain * l_grain / sum of K_grain

f is the encoder with its final LayerNorm, class token unused, f' its momentum copy. Letters as in `correspondence`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTModel

from llava_stf.encoders.heads import mlp_head
from llava_stf.encoders.objectives.aps import positive_cosine
from llava_stf.encoders.objectives.base import Objective, Progress, ema_momentum, ema_update, encode, momentum_copy
from llava_stf.encoders.objectives.contrast import contrast, identity_targets, own_index
from llava_stf.encoders.objectives.correspondence import (
    COARSE,
    FINE,
    MIDDLE,
    correspondence,
    overlapping_boxes,
)
from llava_stf.encoders.objectives.patchmix import two_views
from llava_stf.encoders.objectives.start import draw_linear, normal_start
from llava_stf.encoders.pretrain.augment import View
from llava_stf.errors import LlavaStfError

_GRAINS = {"fine": FINE, "middle": MIDDLE, "coarse": COARSE}


@dataclass(frozen=True)
class MGCOptions:
    """Options of MGC; the defaults are the released code's, undocumented parts included.

    Sections are those of docs/encoders/methods.md, MGC.

    Attributes:
        cell_patches: patches per side of a fine, middle and coarse cell; each divides the grid. Default: 1, 2 and half
            of the grid, which for the released code's 14 x 14 patches is its (1, 2, 7) (Correspondence).
        pairs: K of the three grains, and their weights in the loss (Correspondence, Loss).
        weigh_pairs: the cross-entropy of a pair counts by its weight, sum w CE / sum w, as evidently meant. In the
            released code the weights cancel out, and pairs that only fill up count like all others (Loss).
        separate_start: the linear layers of encoder and projectors are drawn anew after their momentum copies were
            made, so that the two start different, as in the released code (Training).
        temperature: tau (Loss).
        momentum: of the momentum copies at the start, rising to 1 with the steps (Training).
        drop_path: stochastic depth of the query encoder; 0.1 for ImageNet (Training).
        clip_norm: largest norm of each parameter's gradient, clipped one by one (Training).
        hidden: hidden width of the heads (Heads, of all methods).
        out: output width of the heads (Heads, of all methods).
        crop_scale: range of a view's share of the image (Views).
        min_iou: overlap of the two crops that the second one is drawn again for (Views).
    """

    cell_patches: tuple[int, int, int] | None = None
    pairs: tuple[int, int, int] = (10, 10, 2)
    weigh_pairs: bool = False
    separate_start: bool = True
    temperature: float = 0.1
    momentum: float = 0.996
    drop_path: float = 0.05
    clip_norm: float = 3.0
    hidden: int = 4096
    out: int = 128
    crop_scale: tuple[float, float] = (0.2, 1.0)
    min_iou: float = 0.2

    def __post_init__(self) -> None:
        for name in ("cell_patches", "pairs"):
            values = getattr(self, name)
            if values is not None and (len(values) != len(_GRAINS) or min(values) < 1):
                raise LlavaStfError(
                    f"{name} needs three numbers of at least 1, for fine, middle and coarse, found {list(values)}"
                )

    @classmethod
    def corrected(cls, **changes: Any) -> MGCOptions:
        """What the authors evidently meant: pairs that count by their weight, and a momentum copy that is a copy."""
        return cls(**{"weigh_pairs": True, "separate_start": False, **changes})


def pair_contrast(queries: Tensor, keys: Tensor, weight: Tensor, temperature: float, *, weigh: bool = False) -> Tensor:
    """Cross-entropy of pairs, row i against row i; a scalar (docs/encoders/methods.md, MGC, Loss).

    Args:
        queries: [B * K, D].
        keys: [B * K, D]; all other keys, of all processes, are negatives.
        temperature: tau.
        weight: [B, K], of the pairs.
        weigh: sum w CE / sum w, 0 if no pair has a weight; otherwise the mean, whatever the weights are.
    """
    if not weigh:
        return contrast(queries, keys, own_index(len(queries), device=queries.device), temperature)
    share = weight.flatten() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    targets = identity_targets(len(queries), device=queries.device) * share[:, None] * len(queries)
    return contrast(queries, keys, targets, temperature)


def pool_cells(patches: Tensor, side: int) -> Tensor:
    """Means of `side` x `side` patches: [B, N, D], a square grid in raster order -> [B, L * L, D]."""
    grid = round(patches.shape[1] ** 0.5)
    square = patches.transpose(1, 2).unflatten(2, (grid, grid))
    return F.avg_pool2d(square, side).flatten(2).transpose(1, 2)


class MGC(Objective):
    """The method: loss and momentum copies of MGC.

    Raises:
        LlavaStfError: cells that do not divide the encoder's grid.
    """

    options_type = MGCOptions

    def __init__(self, encoder: ViTModel, options: MGCOptions) -> None:
        super().__init__()
        self.options, config = options, encoder.config
        self.size = config.image_size
        grid = config.image_size // config.patch_size
        self.cell_patches = options.cell_patches or (1, 2, max(grid // 2, 1))
        if any(grid % side for side in self.cell_patches):
            divisors = [side for side in range(1, grid + 1) if grid % side == 0]
            raise LlavaStfError(
                f"cell_patches {list(self.cell_patches)} must divide the encoder's grid of {grid} x {grid} patches: "
                f"set it to three of {divisors}"
            )
        self.grains = [
            replace(grain, cell=side * config.patch_size, max_pairs=pairs)
            for grain, side, pairs in zip(_GRAINS.values(), self.cell_patches, options.pairs, strict=True)
        ]
        self.encoder = normal_start(encoder)
        self.projectors = nn.ModuleList(
            mlp_head(config.hidden_size, options.hidden, options.out, layers=3) for _ in self.grains
        )
        self.predictors = nn.ModuleList(
            mlp_head(options.out, options.hidden, options.out, layers=2) for _ in self.grains
        )
        draw_linear(self.projectors)
        draw_linear(self.predictors)
        self.momentum_encoder, self.momentum_projectors = momentum_copy(self.encoder), momentum_copy(self.projectors)
        if options.separate_start:
            draw_linear(self.encoder)
            draw_linear(self.projectors)
        self.recipes = [
            replace(recipe, interpolation="bilinear") for recipe in two_views(config.image_size, options.crop_scale)
        ]

    def views(self, images: Tensor) -> list[View]:
        """Two views whose crops overlap by `min_iou` of their union."""
        first, second = self.augmentations
        view1 = first(images)
        boxes2 = overlapping_boxes(view1.boxes, images.shape[-2:], second.recipe.scale, self.options.min_iou)
        return [view1, second(images, boxes2)]

    def inputs(self, views: list[View]) -> list[dict[str, Any]]:
        """One step: two views, the paired cells of each grain, and their weights."""
        view1, view2 = views
        found = [
            correspondence(view1.boxes, view2.boxes, view1.flipped, view2.flipped, grain, self.size)
            for grain in self.grains
        ]
        cells1, cells2, weights = zip(*found, strict=True)
        inputs = {"cells1": list(cells1), "cells2": list(cells2), "weights": list(weights)}
        return [{"view1": view1.pixels, "view2": view2.pixels, **inputs}]

    def forward(
        self, view1: Tensor, view2: Tensor, cells1: list[Tensor], cells2: list[Tensor], weights: list[Tensor]
    ) -> dict[str, Tensor]:
        """Views [B, 3, S, S]; per grain the paired cells of each, int64 [B, K], and their weights, float32 [B, K].

        Returns "fine", "middle", "coarse", "loss", their mean weighted by K, and "similarity", the pairs' mean cosine.
        """
        queries1, queries2 = self.queries(view1, cells1), self.queries(view2, cells2)
        keys1, keys2 = self.keys(view1, cells1), self.keys(view2, cells2)
        options, losses, similar = self.options, {}, []
        for number, name in enumerate(_GRAINS):
            pairs = (queries1[number], keys2[number]), (queries2[number], keys1[number])
            both = [
                pair_contrast(query, key, weights[number], options.temperature, weigh=options.weigh_pairs)
                for query, key in pairs
            ]
            losses[name] = torch.stack(both).sum()
            similar += [positive_cosine(query, key) for query, key in pairs]
        shares = zip(losses.values(), options.pairs, strict=True)
        total = torch.stack([loss * pairs for loss, pairs in shares]).sum() / sum(options.pairs)
        return losses | {"similarity": torch.stack(similar).mean(), "loss": total}

    def queries(self, images: Tensor, cells: list[Tensor]) -> list[Tensor]:
        """Queries q of each grain, [B * K, out], for images [B, 3, S, S] and cells int64 [B, K] per grain."""
        tokens = encode(self.encoder, images, drop_path=self.options.drop_path)
        heads = zip(self.predictors, self._project(tokens, cells, self.projectors), strict=True)
        return [predictor(projected) for predictor, projected in heads]

    @torch.no_grad()
    def keys(self, images: Tensor, cells: list[Tensor]) -> list[Tensor]:
        """Keys k of each grain, as `queries`; without gradient."""
        return self._project(encode(self.momentum_encoder, images), cells, self.momentum_projectors)

    def _project(self, tokens: Tensor, cells: list[Tensor], projectors: nn.ModuleList) -> list[Tensor]:
        projected = []
        for side, chosen, projector in zip(self.cell_patches, cells, projectors, strict=True):
            pooled = pool_cells(tokens[:, 1:], side)
            rows = pooled.gather(1, chosen[..., None].expand(-1, -1, pooled.shape[-1]))
            projected.append(projector(rows.flatten(0, 1)))
        return projected

    def before_step(self, progress: Progress) -> None:
        """Move the momentum copies, by a coefficient that rises to 1."""
        self.ema_update(ema_momentum(self.options.momentum, progress.fraction))

    def ema_update(self, coefficient: float) -> None:
        """Move the momentum copies by (1 - coefficient)."""
        ema_update(self.momentum_encoder, self.encoder, coefficient)
        ema_update(self.momentum_projectors, self.projectors, coefficient)

    def clip_gradients(self) -> None:
        """Each parameter's gradient by itself, at `clip_norm`."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                nn.utils.clip_grad_norm_(parameter, self.options.clip_norm)

    def trained_encoder(self) -> ViTModel:
        """The momentum encoder."""
        return self.momentum_encoder

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group: everything trained decays (docs/encoders/methods.md, Schedules)."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": weight_decay, "decayed": True}]
