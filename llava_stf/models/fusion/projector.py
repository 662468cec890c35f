"""Multi-Block Token Fusion (MBTF), Spatial Token Fusion (STF) and the projector of both (arXiv 2506.07138).

Shapes: B images, N = g*g patches, K fusion layers, C tower width, k window side, M = N / k**2 tokens, H LLM width.

One worked example, LLaVA-1.5-7B at 336 px: the tower gives 24x24 = 576 patches of C = 1024. Eight states are joined
per patch (8192 channels) and MBTF squeezes them back to 1024. STF joins each 2x2 window of patches to one vector of
4 * 1024 channels and maps it to H = 4096: the LLM sees 12x12 = 144 tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.mlp import TwoLayerMlp
from llava_stf.models.fusion.weights import is_plain_layer
from llava_stf_kernels import fuse_blocks, fuse_windows, gather_windows


class MultiBlockTokenFusion(TwoLayerMlp):
    """Squeeze K hidden states [B, N, C] to one of that shape.

    The first layer's weight is [4C, K*C], its columns in the order of the states.
    """

    def __init__(self, config: FusionConfig) -> None:
        width = config.vision_config.hidden_size
        super().__init__(len(config.fusion_states) * width, config.fusion_block_hidden_size, width, config)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """States, each [B, N, C], to [B, N, C]."""
        if not self.takes_kernels():
            return self.layers(torch.cat(list(states), dim=-1))
        return self.linear_2(fuse_blocks(states, self.linear_1.weight, self.linear_1.bias, backend=self.kernels))


class NormedStates(nn.Module):
    """ViP-LLaVA's norm of K joined hidden states, each [B, N, C], in MBTF's place: [B, N, K*C].

    MBTF would have to pass K*C normed channels through a state of C, so that no start could equal the mean of the base
    projector's outputs. STF reads them as they are.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.projector_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """States joined and normed."""
        return self.projector_layernorm(torch.cat(list(states), dim=-1))


class SpatialTokenFusion(TwoLayerMlp):
    """Fuse each k x k window of patches into one LLM token: [B, N, C] -> [B, N / k**2, H].

    The weights are laid out for one window, the paper's 2x2 say, and serve others without a parameter more. Every
    hidden unit has a place of that window for its own, in equal parts: the first quarter of the units the upper left
    one, and so on. In a larger or smaller window a place is the region that covers the same share of the window. A unit
    then sees the patches of its own region one by one, and of each other region the mean; what it answers is averaged
    over its region. In the weights' own window each region is one patch, and this is the paper's STF; after a warm
    start it is the mean of the base projector's outputs in every window.

    The first layer's weight is read in the checkpoint's channel-major order, and the patches are regrouped to it.

    Args:
        config: for windows and widths.
        width: C, the channels of a patch.
    """

    def __init__(self, config: FusionConfig, width: int) -> None:
        assert config.fusion_weight_window is not None  # a config fills it in
        joined = width * config.fusion_weight_window**2
        super().__init__(joined, config.fusion_hidden_size, config.text_config.hidden_size, config)
        self.window = config.fusion_weight_window

    def forward(self, x: Tensor, window: int | None = None) -> Tensor:
        """Patches [B, N, C] to tokens [B, M, H]; `window` is by default the weights' own."""
        if window not in (None, self.window):
            return self.linear_2(self._hidden_of_regions(x, window))
        if not self.takes_kernels():
            return self.layers(gather_windows(x, self.window))
        layer = self.linear_1
        return self.linear_2(fuse_windows(x, layer.weight, layer.bias, self.window, backend=self.kernels))

    def _hidden_of_regions(self, x: Tensor, window: int) -> Tensor:
        """Hidden layer in windows of another side than the weights', averaged over regions: [B, M, hidden]."""
        side, size = self.window, (window / self.window) ** 2
        patches = gather_windows(x, window).unflatten(-1, (-1, window, window))  # [B, M, C, k, k]
        regions, areas, means = [], [], []
        for upper, left in itertools.product(range(side), repeat=2):
            (rows, heights), (columns, widths) = region(upper, window, side), region(left, window, side)
            area = torch.outer(torch.tensor(heights), torch.tensor(widths)).flatten().to(patches)
            inside = patches[..., rows, columns].flatten(3)  # [B, M, C, P]
            regions.append(inside.transpose(2, 3))
            areas.append(area)
            means.append(inside @ area / size)
        see = self._see_by_weight if is_plain_layer(self.linear_1) else self._see_by_layer
        hidden = []
        for area, preactivations in zip(areas, see(regions, torch.stack(means, dim=-1)), strict=True):
            activations = self.act(preactivations)
            hidden.append(area.to(activations) @ activations / size)
        return torch.cat(hidden, dim=-1)

    def _see_by_weight(self, regions: list[Tensor], means: Tensor) -> Iterator[Tensor]:
        """What the units of each place answer to each patch of their region, before the activation.

        The layer runs once, on the means; then each patch of a unit's own region takes the place of the mean.

        Args:
            regions: of each place the patches [B, M, P, C].
            means: [B, M, C, places].

        Yields:
            [B, M, P, hidden / places], place by place.
        """
        places = len(regions)
        of_means = self.linear_1(means.flatten(2)).chunk(places, dim=-1)
        weights = self.linear_1.weight.unflatten(-1, (-1, places)).chunk(places)
        for place, inside in enumerate(regions):
            difference = inside - means[..., place].unsqueeze(2)
            yield of_means[place].unsqueeze(2) + functional.linear(difference, weights[place][..., place])

    def _see_by_layer(self, regions: list[Tensor], means: Tensor) -> Iterator[Tensor]:
        """As `_see_by_weight`, for a layer whose weight is not all there is to it: quantized, adapted, offloaded.

        The layer runs on every patch with the other places' means, and the units of other places are thrown away.
        """
        places = len(regions)
        for place, inside in enumerate(regions):
            seen = means.unsqueeze(2).repeat(1, 1, inside.shape[2], 1, 1)  # [B, M, P, C, places]
            seen[..., place] = inside
            answers = self.linear_1(seen.flatten(3).flatten(1, 2)).chunk(places, dim=-1)[place]
            yield answers.unflatten(1, inside.shape[1:3])


class LlavaStfProjector(nn.Module):
    """The projector of LLaVA-STF: MBTF, then STF. K hidden states [B, N, C] -> [B, N / k**2, H].

    `window` is k, by default the one that the weights are laid out for. Where the config names the epsilon of
    ViP-LLaVA's norm, that norm stands in MBTF's place.
    """

    kernels = "auto"

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, eps = config.vision_config.hidden_size, getattr(config, "projector_layernorm_eps", None)
        self.block_fusion: MultiBlockTokenFusion | NormedStates
        if eps is None:
            self.block_fusion = MultiBlockTokenFusion(config)
        else:
            width *= len(config.fusion_states)
            self.block_fusion = NormedStates(width, eps)
        self.spatial_fusion = SpatialTokenFusion(config, width)

    def forward(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        """States, each [B, N, C], to tokens [B, M, H]."""
        return self.spatial_fusion(self.block_fusion(states), window)


def region(place: int, window: int, places: int) -> tuple[slice, list[float]]:
    """Patches along one side of a window that lie in the region of one of its places, and how much of each does.

    The side of `window` patches is cut into `places` equal parts: 3 patches in 2 parts are (1, 1/2) and (1/2, 1).
    """
    start, end = place * window, (place + 1) * window  # in units of which a patch has `places`
    patches = range(start // places, -(-end // places))
    overlaps = [(min((patch + 1) * places, end) - max(patch * places, start)) / places for patch in patches]
    return slice(patches.start, patches.stop), overlaps
