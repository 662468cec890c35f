"""The fusion fields of a config: which hidden states are fused, how large a window is, how wide the two modules are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import (
    ImageSizes,
    VisionTokens,
    patch_grid,
    resolve_window,
    token_budgets,
    tokens_in_window,
    window_sides,
)
from llava_stf.models.fusion.tiles import cells_of, refuse_tiles
from llava_stf.models.vision.layers import default_fusion_layers, state_index, tokenpacker_layers

# Kinds of projectors, and what the title of each resampler of other papers is.
FUSIONS = ("stf", "pool", "tokenpacker", "mqt")
RESAMPLERS = {"tokenpacker": "TokenPacker", "mqt": "MQT"}
_DEFAULT_LAYERS = {"stf": default_fusion_layers, "tokenpacker": tokenpacker_layers}


@dataclass
class FusionConfig:
    """What a config of transformers is given for a projector that fuses tokens; stands before it among the bases.

    Args:
        fusion: `"stf"` for MBTF and STF (the paper), `"pool"` for the baseline that averages the stock projector's
            output over each window; `"tokenpacker"` and `"mqt"` for the projectors of these papers.
        fusion_layers: hidden states joined by MBTF, in the order of their channels; another name of
            `vision_feature_layer`. `None` takes `default_fusion_layers` of the tower's depth, or `tokenpacker_layers`;
            `"pool"` and `"mqt"` keep the one select layer.
        fusion_window: side k of a window; k*k patches become one token. Must divide the patch grid. Of a model for
            several windows the one that is taken where nothing else is asked for.
        fusion_windows: every window that the model was made for; default `fusion_window` alone.
        fusion_weight_window: side of the window that STF's weights are laid out for (see `SpatialTokenFusion`); default
            `fusion_window`.
        fusion_block_hidden_size: hidden width of MBTF; default 4C, C being the tower's width.
        fusion_hidden_size: hidden width of STF; default k*k*H, k being the weights' window and H the LLM's width (16C
            for 7B, 20C for 13B).

    `image_seq_length` (tokens per image, or tile, that the LLM sees by default) is derived: (grid / k) squared.

    Raises:
        FusionError: a window does not divide the grid, a fusion layer does not exist, or no projector has that name or
            these states; it is a `ValueError`, too.
    """

    fusion: Literal["stf", "pool", "tokenpacker", "mqt"] = "stf"
    fusion_layers: int | list[int] | None = None
    fusion_window: int = 2
    fusion_windows: list[int] | None = None
    fusion_weight_window: int | None = None
    fusion_block_hidden_size: int | None = None
    fusion_hidden_size: int | None = None

    if TYPE_CHECKING:  # of the config that this stands before
        vision_config: Any = None
        text_config: Any = None
        vision_feature_layer: Any = None
        vision_feature_select_strategy: Any = None
        image_seq_length: int = 0
        multimodal_projector_bias: bool = True
        projector_hidden_act: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of the config that this stands before
        vision = self.vision_config
        if self.vision_feature_select_strategy != "default":
            raise FusionError(
                f"vision_feature_select_strategy must be 'default', found '{self.vision_feature_select_strategy}': "
                "windows need the patch grid alone, without the class token."
            )
        if self.fusion not in FUSIONS:
            raise FusionError(f"fusion must be {', '.join(FUSIONS[:-1])} or {FUSIONS[-1]}, found '{self.fusion}'.")
        if self.fusion in RESAMPLERS:
            refuse_tiles(self, RESAMPLERS[self.fusion])
        self.fusion_windows = [self.fusion_window] if self.fusion_windows is None else list(self.fusion_windows)
        for window in {*self.fusion_windows, self.fusion_window}:
            self._check_window(window)
        if self.fusion_layers is None:
            layers = self.vision_feature_layer
            if self.fusion in _DEFAULT_LAYERS and isinstance(layers, int):
                layers = _DEFAULT_LAYERS[self.fusion](vision.num_hidden_layers, layers)
            self.fusion_layers = layers
        if not self.fusion_states or any(type(layer) is not int for layer in self.fusion_states):
            raise FusionError(f"fusion_layers must be whole numbers of hidden states, found {self.fusion_layers!r}.")
        if self.fusion == "mqt" and (len(self.fusion_states) != 1 or vision.hidden_size % 4):
            raise FusionError(
                "MQT reads one state of a tower whose width is a multiple of 4, found the states "
                f"{self.fusion_states} of width {vision.hidden_size}."
            )
        for layer in self.fusion_states:
            state_index(layer, vision.num_hidden_layers)
        if not isinstance(self.fusion_layers, int):
            self.fusion_layers = self.fusion_states
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
        if type(window) is not int or window not in window_sides(self):
            vision = self.vision_config
            raise FusionError(
                f"fusion_window {window} does not divide the grid of {self.grid}x{self.grid} patches "
                f"({vision.image_size} px in patches of {vision.patch_size} px); take one of "
                f"{', '.join(map(str, window_sides(self)))}."
            )

    def use_window(self, window: int) -> None:
        """Make `window` the default, and with it `image_seq_length`.

        Raises:
            FusionError: the model has no such.
        """
        if window not in (self.fusion_windows or []):
            raise FusionError(f"fusion_window {window} is none of the model's fusion_windows {self.fusion_windows}.")
        self.fusion_window = window
        self.image_seq_length = cells_of(self.grid, window) ** 2

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
        """LLM tokens of each image of a prompt, see `llava_stf.models.fusion.budget`."""
        return tokens_in_window(self, image_sizes, resolve_window(self, vision_tokens))

    @property
    def vision_token_counts(self) -> list[int]:
        """Tokens per image in each of `fusion_windows`, in their order."""
        return token_budgets(self)

    @property
    def grid(self) -> int:
        """Patches per side of the image."""
        return patch_grid(self)

    @property
    def fusion_states(self) -> list[int]:
        """The fusion layers as a list, in channel order."""
        return [self.fusion_layers] if isinstance(self.fusion_layers, int) else list(self.fusion_layers or [])


@dataclass
class VideoFusionConfig(FusionConfig):
    """As `FusionConfig`, of a class that pools the frames of videos.

    Args:
        fusion_pool_frames: whether frames keep the pooling that their class has for them, by two along each side,
            beside the windows that are fused; without it, windows stand in its place.
    """

    fusion_pool_frames: bool = True


def refuse_resampler(config: Any, what: str) -> None:
    """Check that the projector of a model with this config is a plain LLaVA's, that of STF, or pooling.

    Raises:
        FusionError: it is that of another paper.
    """
    title = RESAMPLERS.get(getattr(config, "fusion", ""))
    if title is not None:
        raise FusionError(f"{what} knows the projectors of STF and pooling, and this model has {title}'s.")
