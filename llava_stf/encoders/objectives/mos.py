"""MOS, multiple object stitching (arXiv 2506.07364): contrast of images tiled from several images.

See docs/encoders/methods.md, MOS.

A reconstruction: the authors' code was not available, and of the paper little more than the abstract; every choice that
the paper may have made otherwise is an option, or is named in `MOSOptions`.

In stitched image i, the r x r cells hold M = r * r images of the batch, scaled down: its members. Which images
two stitched ones share is known without labels; those shares are the targets.

    s1, s2 = stitch(v1), stitch(v2)                                    v1 .. v4: four views, r drawn for the batch
    L_m2s = CE(g f(s1), f'(v3); 1 / M at the members)
    L_m2m = CE(g f(s1), f'(s2); |members of s1_i and of s2_j| / M^2)
    L_s2s = CE(g f(v3), f'(v4); identity)                              L = L_m2s + L_m2m + L_s2s

f is encoder and projector, g the predictor, f' the momentum copy of f. Letters: B images of this process, N of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTModel

from llava_stf.encoders.heads import mlp_head
from llava_stf.encoders.objectives.base import ClassTokenContrast, momentum_copy
from llava_stf.encoders.objectives.contrast import contrast, identity_targets
from llava_stf.encoders.objectives.patchmix import two_views
from llava_stf.encoders.objectives.start import xavier_start
from llava_stf.encoders.pretrain.augment import View
from llava_stf.errors import LlavaStfError

Views = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MOSOptions:
    """Options of the reconstruction; sections are those of docs/encoders/methods.md, MOS.

    Known of the method are the r x r tiling with r from {1, 2}, two stitched and two single views, and the three losses
    with equal weights (Known); all else is assumed (Reconstruction). Assumed without an option: r is drawn once per
    batch, by each process for itself, and is the same for both stitched views; a cell is a whole view made smaller, not
    a crop of a cell's size; heads, initialisation and augmentations are PatchMix's, views 1 and 2 of it for the
    stitched and for the single pair.

    Attributes:
        sides: the values of r, drawn with equal probability.
        resize: how a view becomes a cell: mean of r x r pixels, or bicubic with antialiasing.
        random_members: who is stitched with whom is drawn anew for each stitched view; assumed: images i .. i + M - 1
            of the batch, as PatchMix mixes.
        shuffle_cells: the members take the cells in random order; assumed: raster order.
        average_members: the many-to-single loss is the mean over the members; otherwise their sum, as equation 10 is
            quoted, which has no visible 1 / M.
        symmetric: the losses are averaged with those of the views in exchanged roles; assumed: one way.
        temperature: of every contrast; assumed: PatchMix's.
        momentum: of the momentum encoder at the start, rising to 1 with the steps; assumed: PatchMix's.
        drop_path: stochastic depth of the query encoder; assumed: PatchMix's.
        hidden: hidden width of the heads; assumed: PatchMix's.
        out: output width of the heads; assumed: PatchMix's.
        crop_scale: range of a view's share of the image; assumed: PatchMix's for CIFAR.
    """

    sides: tuple[int, ...] = (1, 2)
    resize: Literal["area", "bicubic"] = "area"
    random_members: bool = False
    shuffle_cells: bool = False
    average_members: bool = True
    symmetric: bool = False
    temperature: float = 0.2
    momentum: float = 0.996
    drop_path: float = 0.1
    hidden: int = 4096
    out: int = 256
    crop_scale: tuple[float, float] = (0.1, 1.0)

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1:
            raise LlavaStfError(f"sides must be whole numbers of at least 1, found {list(self.sides)}")
        if self.resize not in ("area", "bicubic"):
            raise LlavaStfError(f"resize must be 'area' or 'bicubic', found '{self.resize}'")

    @classmethod
    def corrected(cls, **changes: Any) -> MOSOptions:
        """The same: of a reconstruction there is nothing to correct."""
        return cls(**changes)


def members(batch: int, side: int, *, random: bool = False, shuffle: bool = False) -> Tensor:
    """The images in each stitched image's cells, in raster order: int64 [batch, side * side].

    Each image is a member of exactly M stitched ones. Neighbours in the batch, or in a random order of it (`random`);
    `shuffle`: each stitched image has its members in random order. From torch's global generator.
    """
    neighbours = (torch.arange(batch)[:, None] + torch.arange(side * side)) % batch
    if random:
        neighbours = torch.randperm(batch)[neighbours]
    if shuffle:
        neighbours = neighbours.gather(1, torch.rand(neighbours.shape).argsort(dim=1))
    return neighbours


def stitch(images: Tensor, chosen: Tensor, *, resize: Literal["area", "bicubic"] = "area") -> Tensor:
    """Tile each image's members, made smaller: cell (a, b) of image i is the member chosen[i, a * r + b].

    Args:
        images: [B, C, H, W].
        chosen: int64 [B, r * r], as `members` gives.
        resize: how members are made smaller.

    Returns:
        [B, C, H, W].

    Raises:
        LlavaStfError: r does not divide height and width.
    """
    side = round(chosen.shape[1] ** 0.5)
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise LlavaStfError(f"{side} x {side} cells do not divide images of {height} x {width} pixels")
    if side == 1:
        return images[chosen[:, 0]]
    if resize == "area":
        small = F.avg_pool2d(images, side)
    else:
        size = height // side, width // side
        small = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
    tiles = small[chosen].unflatten(1, (side, side))  # [B, a, b, C, h, w]
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape_as(images)


def membership(chosen: Tensor) -> Tensor:
    """How often image j is a member of stitched image i: float32 [B, B]. Rows add up to M."""
    counts = torch.zeros(len(chosen), len(chosen), device=chosen.device)
    return counts.scatter_add_(1, chosen, torch.ones(chosen.shape, device=chosen.device))


def stitched_to_single_targets(chosen: Tensor) -> Tensor:
    """1 / M at the members of each stitched image, in the columns of this process: float32 [B, N]."""
    return membership(chosen) / chosen.shape[1] @ identity_targets(len(chosen), device=chosen.device)


def stitched_to_stitched_targets(chosen: Tensor, others: Tensor) -> Tensor:
    """Common members of two stitched images over M^2, in the columns of this process: float32 [B, N]."""
    common = membership(chosen) @ membership(others).T
    return common / chosen.shape[1] ** 2 @ identity_targets(len(chosen), device=chosen.device)


class MOS(ClassTokenContrast):
    """The reconstruction of MOS.

    Raises:
        LlavaStfError: sides that do not divide the encoder's image.
    """

    options_type = MOSOptions

    def __init__(self, encoder: ViTModel, options: MOSOptions) -> None:
        super().__init__()
        self.options, config = options, encoder.config
        if wrong := [side for side in options.sides if config.image_size % side]:
            raise LlavaStfError(f"sides must divide the image of {config.image_size} pixels, found {wrong}")
        self.encoder = xavier_start(encoder)
        self.projector = mlp_head(config.hidden_size, options.hidden, options.out, layers=3)
        self.predictor = mlp_head(options.out, options.hidden, options.out, layers=2)
        self.momentum_encoder, self.momentum_projector = momentum_copy(encoder), momentum_copy(self.projector)
        self.recipes = two_views(config.image_size, options.crop_scale) * 2

    def inputs(self, views: list[View]) -> list[dict[str, Any]]:
        """One step: two stitched views with their members, and two whole ones."""
        options, (view1, view2, view3, view4) = self.options, [view.pixels for view in views]
        side = options.sides[int(torch.randint(len(options.sides), ()))]
        draws = {"random": options.random_members, "shuffle": options.shuffle_cells}
        members1, members2 = (members(len(view1), side, **draws).to(view1.device) for _ in range(2))
        return [
            {
                "stitched1": stitch(view1, members1, resize=options.resize),
                "stitched2": stitch(view2, members2, resize=options.resize),
                "single1": view3,
                "single2": view4,
                "members1": members1,
                "members2": members2,
            }
        ]

    def forward(
        self,
        stitched1: Tensor,
        stitched2: Tensor,
        single1: Tensor,
        single2: Tensor,
        members1: Tensor,
        members2: Tensor,
    ) -> dict[str, Tensor]:
        """Stitched and single views [B, 3, H, W]; the members of the stitched ones, int64 [B, M].

        Returns "stitched_to_single", "stitched_to_stitched", "single_to_single", and "loss", their sum.
        """
        losses = self.one_way((stitched1, stitched2), (single1, single2), (members1, members2))
        if self.options.symmetric:
            exchanged = self.one_way((stitched2, stitched1), (single2, single1), (members2, members1))
            losses = {name: (loss + exchanged[name]) / 2 for name, loss in losses.items()}
        return losses | {"loss": torch.stack(list(losses.values())).sum()}

    def one_way(self, stitched: Views, single: Views, chosen: Views) -> dict[str, Tensor]:
        """The three losses with queries from the first of each pair of views; `chosen`: the members, int64 [B, M]."""
        temperature = self.options.temperature
        to_single = stitched_to_single_targets(chosen[0])
        if not self.options.average_members:
            to_single = to_single * chosen[0].shape[1]
        to_stitched = stitched_to_stitched_targets(*chosen)
        own = identity_targets(len(single[0]), device=single[0].device)
        query = self.query(stitched[0])
        return {
            "stitched_to_single": contrast(query, self.key(single[0]), to_single, temperature),
            "stitched_to_stitched": contrast(query, self.key(stitched[1]), to_stitched, temperature),
            "single_to_single": contrast(self.query(single[0]), self.key(single[1]), own, temperature),
        }
