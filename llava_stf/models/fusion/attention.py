"""What the projectors of TokenPacker and MQT share: attention from image tokens to patches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6


class CrossAttention(nn.Module):
    """Multi-head attention between sequences of one width, all four of its layers with biases.

    Args:
        width: of queries, keys, values and outputs.
        heads: among which it is divided.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [..., M, C], keys and values [..., N, C] -> [..., M, C]; leading dimensions of 1 are for all."""
        split = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for layer, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        mixed = functional.scaled_dot_product_attention(*split)
        return self.out_proj(mixed.transpose(-2, -3).flatten(-2))


def heads_of(width: int, head_width: int) -> int:
    """As many heads of that width as fit, at least one; they must divide the width."""
    heads = max(1, width // head_width)
    return next(count for count in range(heads, 0, -1) if width % count == 0)
