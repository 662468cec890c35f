"""A baseline in the style of MoCo v3 (arXiv 2104.02057): plain instance contrast of two views, both ways round.

    L = 2 tau (CE(g f(x1), f'(x2); own image) + CE(g f(x2), f'(x1); own image))

f is encoder and projector, g the predictor, f' the momentum copy of f. The patch projection stays random and frozen, as
in MoCo v3; the position table is learned, MoCo v3's is a fixed sine-cosine one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import ViTModel

from llava_stf.encoders.heads import mlp_head
from llava_stf.encoders.objectives.base import ClassTokenContrast, momentum_copy
from llava_stf.encoders.objectives.contrast import contrast, own_index
from llava_stf.encoders.objectives.patchmix import two_views
from llava_stf.encoders.objectives.start import xavier_start
from llava_stf.encoders.pretrain.augment import View


@dataclass(frozen=True)
class MoCoV3Options:
    """Options of the baseline; the defaults are the paper's.

    Attributes:
        temperature: tau.
        momentum: coefficient of the momentum encoder at the start, rising to 1 with the steps.
        freeze_patches: the patch projection is not trained.
        drop_path: stochastic depth of the query encoder.
        hidden: hidden width of projector and predictor.
        out: output width of projector and predictor.
        crop_scale: range of a view's share of the image.
    """

    temperature: float = 0.2
    momentum: float = 0.99
    freeze_patches: bool = True
    drop_path: float = 0.0
    hidden: int = 4096
    out: int = 256
    crop_scale: tuple[float, float] = (0.08, 1.0)

    @classmethod
    def corrected(cls, **changes: Any) -> MoCoV3Options:
        """The same: there is nothing to correct."""
        return cls(**changes)


class MoCoV3(ClassTokenContrast):
    """The baseline that the four methods are compared with."""

    options_type = MoCoV3Options

    def __init__(self, encoder: ViTModel, options: MoCoV3Options) -> None:
        super().__init__()
        self.options = options
        self.encoder = xavier_start(encoder)
        self.encoder.embeddings.patch_embeddings.requires_grad_(not options.freeze_patches)
        self.projector = mlp_head(encoder.config.hidden_size, options.hidden, options.out, layers=3)
        self.predictor = mlp_head(options.out, options.hidden, options.out, layers=2)
        self.momentum_encoder, self.momentum_projector = momentum_copy(encoder), momentum_copy(self.projector)
        self.recipes = two_views(encoder.config.image_size, options.crop_scale)

    def inputs(self, views: list[View]) -> list[dict[str, Any]]:
        """One step: the two views."""
        view1, view2 = views
        return [{"view1": view1.pixels, "view2": view2.pixels}]

    def forward(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        """Views [B, 3, H, W] -> {"loss"}."""
        own, temperature = own_index(len(view1), device=view1.device), self.options.temperature
        one_way = contrast(self.query(view1), self.key(view2), own, temperature)
        other_way = contrast(self.query(view2), self.key(view1), own, temperature)
        return {"loss": 2 * temperature * (one_way + other_way)}
