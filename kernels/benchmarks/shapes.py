"""What the projector computes and moves at the widths of LLaVA-1.5, counted: FLOPs, bytes, and the floors they set.

FLOPs are two per multiply-add of the matrix products. Bytes are the least possible traffic with the GPU's memory: each
input read once, each output written once, whatever lies between kept on the chip. The floor is the larger of both
times; no implementation runs faster, and only the larger of the two says what there is to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TEXT_TOKENS = 64
# Of the path from pixels to the first token; the last is the sum of the others.
PARTS = ("tower", "projector", "prefill", "first_token")


@dataclass(frozen=True)
class Widths:
    """One projector: C tower width, K fused states, k window side, and the three widths behind them."""

    grid: int
    vision: int
    states: int
    window: int
    block_hidden: int
    hidden: int
    llm: int

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def tokens(self) -> int:
        return (self.grid // self.window) ** 2

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of MBTF's two linear layers, then of STF's two."""
        return (
            (self.states * self.vision, self.block_hidden),
            (self.block_hidden, self.vision),
            (self.vision * self.window**2, self.hidden),
            (self.hidden, self.llm),
        )


# The paper's widths: STF's hidden layer is 16C at both sizes of the LLM. "tiny" is for runs without a GPU.
WIDTHS = {
    "7b": Widths(grid=24, vision=1024, states=8, window=2, block_hidden=4096, hidden=16384, llm=4096),
    "13b": Widths(grid=24, vision=1024, states=8, window=2, block_hidden=4096, hidden=16384, llm=5120),
    "tiny": Widths(grid=4, vision=16, states=3, window=2, block_hidden=64, hidden=128, llm=32),
}


@dataclass(frozen=True)
class Rates:
    """What a card reaches: device-to-device copy (bytes read plus bytes written) and matrix product on random data."""

    copy_tb_s: float
    matmul_tflop_s: float


@dataclass(frozen=True)
class Work:
    """FLOPs and least bytes of one call."""

    flops: int
    bytes: int

    def floor_ms(self, rates: Rates) -> float:
        """Milliseconds under which no call can stay on a card of these rates."""
        return 1e3 * max(self.flops / (rates.matmul_tflop_s * 1e12), self.bytes / (rates.copy_tb_s * 1e12))


def _linear_flops(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _layer_work(rows: int, inputs: int, outputs: int, itemsize: int, backward: bool) -> Work:
    """One linear layer and its activation, or that and the gradients of input, weight and bias.

    Forward moves input, weight, bias and output; backward reads the output's gradient and writes the other three's.
    """
    elements = rows * inputs + outputs * inputs + outputs + rows * outputs
    flops = _linear_flops(rows, inputs, outputs)
    return Work(3 * flops, 2 * elements * itemsize) if backward else Work(flops, elements * itemsize)


def pool_tokens_work(widths: Widths, batch: int, itemsize: int, backward: bool) -> Work:
    """Patches [B, N, C] in, tokens [B, M, C] out. There is no matrix product to count; forward only."""
    return Work(0, batch * (widths.patches + widths.tokens) * widths.vision * itemsize)


def fuse_blocks_work(widths: Widths, batch: int, itemsize: int, backward: bool) -> Work:
    """MBTF's first layer, on every patch; backward includes the states' gradients."""
    return _layer_work(batch * widths.patches, *widths.layers[0], itemsize, backward)


def fuse_windows_work(widths: Widths, batch: int, itemsize: int, backward: bool) -> Work:
    """STF's first layer, on every token; backward includes the patches' gradients."""
    return _layer_work(batch * widths.tokens, *widths.layers[2], itemsize, backward)


def place_tokens_work(widths: Widths, batch: int, itemsize: int, backward: bool) -> Work:
    """Text embeddings and image tokens in, [B, M + 64, H] out, and a mask of one byte a position; forward only."""
    positions = batch * (widths.tokens + TEXT_TOKENS)
    return Work(0, 2 * positions * widths.llm * itemsize + positions)


def projector_work(widths: Widths, batch: int, itemsize: int, backward: bool) -> Work:
    """MBTF and STF, from the tower's states to the LLM's tokens.

    Backward is that of training with a frozen tower, as in the paper: every layer but the first also passes a gradient
    on; the states get none.
    """
    flops = mbtf_flops(widths, batch) + stf_flops(widths, batch)
    states = batch * widths.patches * widths.states * widths.vision
    output, parameters = batch * widths.tokens * widths.llm, projector_parameters(widths)
    if backward:
        first = _linear_flops(batch * widths.patches, *widths.layers[0])
        return Work(3 * flops - first, itemsize * (states + 2 * parameters + 2 * output))
    return Work(flops, itemsize * (states + parameters + output))


WORK: dict[str, Callable[[Widths, int, int, bool], Work]] = {
    "pool_tokens": pool_tokens_work,
    "fuse_blocks": fuse_blocks_work,
    "fuse_windows": fuse_windows_work,
    "place_tokens": place_tokens_work,
    "projector": projector_work,
}


def mbtf_flops(widths: Widths, batch: int) -> int:
    """Both layers of MBTF, forward."""
    return sum(_linear_flops(batch * widths.patches, *layer) for layer in widths.layers[:2])


def stf_flops(widths: Widths, batch: int) -> int:
    """Both layers of STF, forward."""
    return sum(_linear_flops(batch * widths.tokens, *layer) for layer in widths.layers[2:])


def projector_parameters(widths: Widths) -> int:
    """Weights and biases of MBTF and STF."""
    return sum(inputs * outputs + outputs for inputs, outputs in widths.layers)


@dataclass(frozen=True)
class ModelShape:
    """A LLaVA: its vision tower, its language model (as `transformers` names them) and its projector's widths."""

    image_size: int
    patch_size: int
    tower_layers: int
    tower_heads: int
    tower_mlp: int
    llm_layers: int
    llm_heads: int
    llm_mlp: int
    vocabulary: int
    image_token: int
    projector: Widths

    def tower_flops(self, blocks: int) -> int:
        """One image through the patch embedding and the first `blocks` blocks, the class token included."""
        width, positions = self.projector.vision, self.projector.patches + 1
        attention = 4 * positions**2 * width
        embedding = 2 * self.projector.patches * 3 * self.patch_size**2 * width
        return 2 * positions * self.tower_parameters(blocks) + blocks * attention + embedding

    def tower_parameters(self, blocks: int) -> int:
        """Of the blocks' matrix products."""
        width = self.projector.vision
        return blocks * (4 * width * width + 2 * width * self.tower_mlp)

    def prefill_flops(self, tokens: int) -> int:
        """One prompt of `tokens` positions through the decoder layers; attention counted in full, not by its mask."""
        return 2 * tokens * self.llm_parameters() + self.llm_layers * 4 * tokens**2 * self.projector.llm

    def llm_parameters(self) -> int:
        """Of the decoder layers' matrix products."""
        width = self.projector.llm
        return self.llm_layers * (4 * width * width + 3 * width * self.llm_mlp)

    def part_work(self, part: str, *, fused: bool, batch: int, itemsize: int) -> Work:
        """A part of the path to the first token, `fused` or as LLaVA-1.5. Bytes are those of the weights alone.

        The fused model does not run the tower's last block, which LLaVA-1.5 runs and does not use.
        """
        projector = self.projector
        if part == "tower":
            blocks = self.tower_layers - 1 if fused else self.tower_layers
            return Work(batch * self.tower_flops(blocks), itemsize * self.tower_parameters(blocks))
        if part == "projector":
            if fused:
                flops = mbtf_flops(projector, batch) + stf_flops(projector, batch)
                return Work(flops, itemsize * projector_parameters(projector))
            layers = ((projector.vision, projector.llm), (projector.llm, projector.llm))
            flops = sum(_linear_flops(batch * projector.patches, *layer) for layer in layers)
            return Work(flops, itemsize * sum(inputs * outputs + outputs for inputs, outputs in layers))
        if part == "prefill":
            tokens = (projector.tokens if fused else projector.patches) + TEXT_TOKENS
            return Work(batch * self.prefill_flops(tokens), itemsize * self.llm_parameters())
        parts = [self.part_work(name, fused=fused, batch=batch, itemsize=itemsize) for name in PARTS[:-1]]
        return Work(sum(part.flops for part in parts), sum(part.bytes for part in parts))


MODELS = {
    "7b": ModelShape(
        image_size=336, patch_size=14, tower_layers=24, tower_heads=16, tower_mlp=4096,
        llm_layers=32, llm_heads=32, llm_mlp=11008, vocabulary=32064, image_token=32000, projector=WIDTHS["7b"],
    ),
    "tiny": ModelShape(
        image_size=56, patch_size=14, tower_layers=9, tower_heads=2, tower_mlp=32,
        llm_layers=2, llm_heads=2, llm_mlp=64, vocabulary=128, image_token=100, projector=WIDTHS["tiny"],
    ),
}  # fmt: skip
