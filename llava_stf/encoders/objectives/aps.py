"""APS, asymmetric patch sampling (arXiv 2306.02854): contrast of two small parts of an image that hardly overlap.

    view 1 --K disjoint random subsets of its patches--> encoder, projector z1 --predictor--> p1
    view 2 --K subsets, rather from where view 1's is not--> the same networks: z2, p2
    L = CE(p1, z2; own image) + CE(p2, z1; own image)              z without gradient

The class token has no position, and every patch gets its own before the others are dropped. There is no momentum
encoder. Each of the K pairs of subsets has its own optimizer step, so a batch gives K of them. Letters as in
`sampling`; more in docs/encoders/methods.md, APS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTModel

from llava_stf.encoders.heads import mlp_head
from llava_stf.encoders.objectives.base import Objective, encode
from llava_stf.encoders.objectives.contrast import contrast, own_index
from llava_stf.encoders.objectives.sampling import sample_subsets
from llava_stf.encoders.pretrain.augment import Recipe, View
from llava_stf.models.vision.vits import CIFAR_MEAN, CIFAR_STD


@dataclass(frozen=True)
class APSOptions:
    """Options of APS; the defaults are the released code's for CIFAR, undocumented parts included.

    Sections are those of docs/encoders/methods.md, APS.

    Attributes:
        sampling_ratio: share of a view's patches in one subset (Sampling).
        subsets: K, pairs of subsets per batch, each with its own optimizer step; sampling_ratio * subsets is at most 1
            (Sampling, One batch).
        power: gamma of the selective sampling (Sampling).
        mirror_flipped: the geometry of a flipped view is mirrored, as its pixels are. The released code flips after the
            crop and leaves the geometry as it was (Sampling).
        temperature: tau (One batch).
        hidden: hidden width of projector and predictor (Heads, of all methods).
        out: output width of projector and predictor (Heads, of all methods).
        crop_scale: range of a view's share of the image (Settings).
        mean: of the images' normalisation; CIFAR's (Settings).
        std: of the images' normalisation; CIFAR's (Settings).
    """

    sampling_ratio: float = 0.25
    subsets: int = 4
    power: float = 3.0
    mirror_flipped: bool = False
    temperature: float = 0.1
    hidden: int = 512
    out: int = 128
    crop_scale: tuple[float, float] = (0.15, 1.0)
    mean: tuple[float, float, float] = CIFAR_MEAN
    std: tuple[float, float, float] = CIFAR_STD

    @classmethod
    def corrected(cls, **changes: Any) -> APSOptions:
        """What the authors evidently meant: places that follow the flips."""
        return cls(**{"mirror_flipped": True, **changes})


class APS(Objective):
    """The method: sampling and loss of APS.

    Raises:
        LlavaStfError: subsets that do not fit into a view or that leave too little of the other.
    """

    options_type = APSOptions

    def __init__(self, encoder: ViTModel, options: APSOptions) -> None:
        super().__init__()
        self.options = options
        self.encoder = initialize(encoder)
        self.grid = encoder.config.image_size // encoder.config.patch_size
        self.projector = mlp_head(encoder.config.hidden_size, options.hidden, options.out, layers=3)
        self.predictor = mlp_head(options.out, options.hidden, options.out, layers=3)
        recipe = Recipe(
            encoder.config.image_size,
            options.crop_scale,
            interpolation="bilinear",
            jitter=(0.4, 0.4, 0.4, 0.1),
            mean=options.mean,
            std=options.std,
        )
        self.recipes = [recipe, recipe]

    def inputs(self, views: list[View]) -> list[dict[str, Any]]:
        """One step per pair of subsets of the two views' patches."""
        view1, view2 = views
        keep1, keep2 = sample_subsets(
            view1.boxes,
            view2.boxes,
            self.grid,
            ratio=self.options.sampling_ratio,
            subsets=self.options.subsets,
            power=self.options.power,
        )
        if self.options.mirror_flipped:
            keep1, keep2 = mirror(keep1, view1.flipped, self.grid), mirror(keep2, view2.flipped, self.grid)
        return [
            {"view1": view1.pixels, "view2": view2.pixels, "keep1": one, "keep2": two}
            for one, two in zip(keep1.unbind(1), keep2.unbind(1), strict=True)
        ]

    def forward(self, view1: Tensor, view2: Tensor, keep1: Tensor, keep2: Tensor) -> dict[str, Tensor]:
        """Views [B, 3, H, W] and their patches that are seen, int64 [B, n].

        Returns "loss", the sum of "one_to_two" and "two_to_one", and "similarity", the two pairs' mean cosine.
        """
        options, own = self.options, own_index(len(view1), device=view1.device)
        projected1, projected2 = self.project(view1, keep1), self.project(view2, keep2)
        predicted1, predicted2 = self.predictor(projected1), self.predictor(projected2)
        one_to_two = contrast(predicted1, projected2, own, options.temperature)
        two_to_one = contrast(predicted2, projected1, own, options.temperature)
        similarity = (positive_cosine(predicted1, projected2) + positive_cosine(predicted2, projected1)) / 2
        losses = {"one_to_two": one_to_two, "two_to_one": two_to_one, "similarity": similarity}
        return losses | {"loss": one_to_two + two_to_one}

    def project(self, images: Tensor, keep: Tensor) -> Tensor:
        """z: images [B, 3, H, W], patches int64 [B, n] -> [B, out], through the encoder's class token."""
        return self.projector(encode(self.encoder, images, keep=keep)[:, 0])

    def clip_gradients(self) -> None:
        """Nothing is clipped; but the class token's row of the position table, which APS does not have, stays 0."""
        gradient = self.encoder.embeddings.position_embeddings.grad
        if gradient is not None:
            gradient[:, 0] = 0

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group: everything decays (docs/encoders/methods.md, Schedules)."""
        return [{"params": list(self.parameters()), "weight_decay": weight_decay, "decayed": True}]


def mirror(patches: Tensor, flipped: Tensor, grid: int) -> Tensor:
    """Raster numbers of patches, int64 [B, ...], columns reversed in the images that are `flipped`, bool [B]."""
    reversed_columns = patches + grid - 1 - 2 * (patches % grid)
    return torch.where(flipped.view(-1, *[1] * (patches.ndim - 1)), reversed_columns, patches)


@torch.no_grad()
def positive_cosine(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean cosine of each query and its own key, [B, D] each; a scalar to watch, without gradient."""
    return F.cosine_similarity(queries.float(), keys.float(), dim=1).mean()


@torch.no_grad()
def initialize(encoder: ViTModel) -> ViTModel:
    """APS's start (docs/encoders/methods.md, Encoder), in place.

    Layers keep torch's own; class token and positions are truncated normal.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()
    nn.init.trunc_normal_(encoder.embeddings.cls_token, std=0.02)
    nn.init.trunc_normal_(encoder.embeddings.position_embeddings, std=0.02)
    nn.init.zeros_(encoder.embeddings.position_embeddings[:, 0])
    return encoder
