"""Configuration of LLaVA-STF: which tower states are fused, how large a window is, and how wide the two modules are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import LlavaConfig

from llava_stf.errors import FusionError


def default_fusion_layers(num_blocks: int, select_layer: int = -2) -> list[int]:
    """Tower states that MBTF joins by default: the select layer, then every third block downwards, deepest first.

    `num_blocks` is the depth of the vision tower. 24 blocks give [-2, 21, 18, 15, 12, 9, 6, 3], the list of the paper
    (arXiv 2506.07138, section on Multi-Block Token Fusion).
    """
    selected = state_index(select_layer, num_blocks)
    return [select_layer, *range((selected - 1) // 3 * 3, 0, -3)]


def state_index(layer: int, num_blocks: int) -> int:
    """Index of a hidden state counted from the front: 0 is the embedding, i the output of block i, -1 the last one.

    Raises `FusionError` if the tower has no such state.
    """
    index = layer + num_blocks + 1 if layer < 0 else layer
    if not 0 <= index <= num_blocks:
        raise FusionError(
            f"Fusion layer {layer} does not exist: a vision tower of {num_blocks} blocks has states 0 to {num_blocks} "
            f"(or -{num_blocks + 1} to -1)."
        )
    return index


def patch_grid(config: LlavaConfig) -> int:
    """Patches per side of the image that the tower of a LLaVA, plain or fused, takes."""
    return config.vision_config.image_size // config.vision_config.patch_size


def window_for(grid: int, vision_tokens: int | Literal["all"] | None) -> int:
    """Side of the windows that leave `vision_tokens` of `grid` x `grid` patches; `None` asks for a quarter.

    Raises `FusionError` if no window leaves that count.
    """
    windows = {(grid // k) ** 2: k for k in range(1, grid + 1) if grid % k == 0}
    if vision_tokens is None:
        return 2
    wanted = grid**2 if vision_tokens == "all" else vision_tokens
    if wanted not in windows:
        raise FusionError(
            f"No window of the {grid}x{grid} patches gives {vision_tokens} vision tokens; possible are "
            f"{', '.join(map(str, windows))}, or 'all'."
        )
    return windows[wanted]


def windows_for(grid: int, vision_tokens: int | Literal["all"] | Sequence[int] | None) -> int | list[int]:
    """As `window_for`; a sequence of counts gives a list of windows in its order. Raises `FusionError` as it does."""
    if isinstance(vision_tokens, Sequence) and not isinstance(vision_tokens, str):
        return [window_for(grid, count) for count in vision_tokens]
    return window_for(grid, vision_tokens)


class LlavaStfConfig(LlavaConfig):
    """A `LlavaConfig` whose projector fuses tokens.

    Args:
        fusion: `"stf"` for MBTF and STF (the paper), `"pool"` for the baseline that averages the stock projector's
            output over each window.
        fusion_layers: tower states joined by MBTF, in the order of their channels; another name of
            `vision_feature_layer`. `None` takes `default_fusion_layers` of the tower's depth; `"pool"` keeps the one
            select layer.
        fusion_window: side k of a window; k*k patches become one token. Must divide the patch grid. Of a model for
            several windows the one that is taken where nothing else is asked for.
        fusion_windows: every window that the model was made for; default `fusion_window` alone.
        fusion_weight_window: side of the window that STF's weights are laid out for (see `SpatialTokenFusion`); default
            `fusion_window`.
        fusion_block_hidden_size: hidden width of MBTF; default 4C, C being the tower's width.
        fusion_hidden_size: hidden width of STF; default k*k*H, k being the weights' window and H the LLM's width (16C
            for 7B, 20C for 13B).

    `image_seq_length` (tokens per image that the LLM sees by default) is derived: (grid / k) squared.

    Raises `FusionError` (a `ValueError`) if a window does not divide the grid or a fusion layer does not exist.
    """

    model_type = "llava_stf"

    vision_feature_layer: int | list[int] = -2
    fusion: Literal["stf", "pool"] = "stf"
    fusion_layers: int | list[int] | None = None
    fusion_window: int = 2
    fusion_windows: list[int] | None = None
    fusion_weight_window: int | None = None
    fusion_block_hidden_size: int | None = None
    fusion_hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        vision = self.vision_config
        if self.vision_feature_select_strategy != "default":
            raise FusionError(
                f"vision_feature_select_strategy must be 'default', found '{self.vision_feature_select_strategy}': "
                "windows need the patch grid alone, without the class token."
            )
        self.fusion_windows = [self.fusion_window] if self.fusion_windows is None else list(self.fusion_windows)
        for window in {*self.fusion_windows, self.fusion_window}:
            self._check_window(window)
        if self.fusion_layers is None:
            layers = self.vision_feature_layer
            if self.fusion == "stf" and isinstance(layers, int):
                layers = default_fusion_layers(vision.num_hidden_layers, layers)
            self.fusion_layers = layers
        for layer in self.fusion_states:
            state_index(layer, vision.num_hidden_layers)
        self.vision_feature_layer = self.fusion_layers
        if self.fusion_weight_window is None:
            self.fusion_weight_window = self.fusion_window
        if self.fusion_block_hidden_size is None:
            self.fusion_block_hidden_size = 4 * vision.hidden_size
        places = self.fusion_weight_window**2
        if self.fusion_hidden_size is None:
            self.fusion_hidden_size = places * self.text_config.hidden_size
        if self.fusion_windows != [self.fusion_weight_window] and self.fusion_hidden_size % places:
            raise FusionError(
                f"Weights for {self.fusion_weight_window}x{self.fusion_weight_window} windows serve other windows if "
                f"fusion_hidden_size is a multiple of {places}, found {self.fusion_hidden_size}."
            )
        self.use_window(self.fusion_window)

    def _check_window(self, window: int) -> None:
        if window < 1 or self.grid % window:
            vision = self.vision_config
            raise FusionError(
                f"fusion_window {window} does not divide the grid of {self.grid}x{self.grid} patches "
                f"({vision.image_size} px in patches of {vision.patch_size} px); take a divisor of {self.grid}."
            )

    def use_window(self, window: int) -> None:
        """Make `window` the default, and with it `image_seq_length`. Raises `FusionError` if the model has no such."""
        if window not in (self.fusion_windows or []):
            raise FusionError(f"fusion_window {window} is none of the model's fusion_windows {self.fusion_windows}.")
        self.fusion_window = window
        self.image_seq_length = (self.grid // window) ** 2

    def window_of(self, vision_tokens: int | Literal["all"] | None) -> int:
        """The window that gives this many tokens per image; `None` is the default one.

        Raises `FusionError` if the model was not made for that count.
        """
        if vision_tokens is None:
            return self.fusion_window
        window = window_for(self.grid, vision_tokens)
        if window not in (self.fusion_windows or []):
            counts = " or ".join(map(str, self.vision_token_counts))
            raise FusionError(
                f"This model was trained for {counts} vision tokens and cannot give {vision_tokens}; take a plain "
                "LLaVA for another number."
            )
        return window

    @property
    def vision_token_counts(self) -> list[int]:
        """Tokens per image in each of `fusion_windows`, in their order."""
        return [(self.grid // window) ** 2 for window in self.fusion_windows or []]

    @property
    def grid(self) -> int:
        """Patches per side of the image."""
        return patch_grid(self)

    @property
    def fusion_states(self) -> list[int]:
        """The fusion layers as a list, in channel order."""
        return [self.fusion_layers] if isinstance(self.fusion_layers, int) else list(self.fusion_layers or [])
