"""Which window, how many tokens: every question about a model's token budget is answered here.

A budget is a number of vision tokens per image, `"all"`, or `None` for what the model has by itself; a request may also
name one of the model's budgets in a word, see `llava_stf.models.fusion.detail`. A window of k x k patches gives
(grid / k)**2 tokens, so that a budget names a window and the other way round. Where images are cut into tiles (see
`llava_stf.models.fusion.tiles`) a budget is of one tile, and an image has as many as its size says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from transformers import LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.models.fusion.tiles import cells_of, has_tiles, largest_size, most_tiles, tile_tokens
from llava_stf.models.fusion.videos import require_videos, tokens_of_frames

if TYPE_CHECKING:
    from torch import Tensor

VisionTokens = int | Literal["all"] | None
ImageSizes = Sequence[tuple[int, int]]


@runtime_checkable
class FusedConfig(Protocol):
    """A config whose model fuses windows: those that it was made for, and the one that it takes by default."""

    fusion_window: int
    fusion_windows: list[int] | None


@runtime_checkable
class CountsTokens(Protocol):
    """A config that says itself how many tokens an image takes; a plain LLaVA's does not."""

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
        """As the function of that name."""
        ...


def patch_grid(config: LlavaConfig) -> int:
    """Patches per side of the image that the tower of a LLaVA, plain or fused, takes."""
    return config.vision_config.image_size // config.vision_config.patch_size


def tokens_of_pixels(height: int, width: int, patch_size: int, window: int) -> int:
    """Tokens of an image of so many pixels whose patches are fused in windows; all in pixels but `window`."""
    return cells_of(height // patch_size, window) * cells_of(width // patch_size, window)


def tokens_in_window(config: LlavaConfig, image_sizes: ImageSizes, window: int) -> list[int]:
    """LLM tokens of each image of a prompt if every `window` x `window` patches are fused, see `num_image_tokens`."""
    side = config.vision_config.image_size
    if has_tiles(config):
        grid, pinpoints = patch_grid(config), config.image_grid_pinpoints
        most = most_tiles(getattr(config, "vision_aspect_ratio", None))
        return [tile_tokens(size, pinpoints, side, grid, window, most) for size in image_sizes]
    return [tokens_of_pixels(side, side, config.vision_config.patch_size, window)] * len(image_sizes)


def largest_image(config: LlavaConfig, vision_tokens: VisionTokens = None) -> tuple[int, int]:
    """Height and width in pixels of an image that has as many tokens as any, of a model with this config as it is.

    Raises:
        FusionError: the model cannot give that number of tokens per image, or tile.
    """
    side = config.vision_config.image_size
    if not has_tiles(config):
        return side, side
    window = resolve_window(config, vision_tokens) if isinstance(config, FusedConfig) else 1
    most = most_tiles(getattr(config, "vision_aspect_ratio", None))
    return largest_size(config.image_grid_pinpoints, side, patch_grid(config), window, most)


def window_sides(config: LlavaConfig) -> list[int]:
    """Sides of the windows that images of a model with this config can be fused in.

    Those that divide the patch grid. Where images come in tiles also 2 of an odd grid, in which the last window of a
    row or column is of one patch less: 27x27 patches are 14x14 windows.
    """
    grid = patch_grid(config)
    odd = has_tiles(config) and grid % 2 == 1 and grid > 1
    return sorted([k for k in range(1, grid + 1) if grid % k == 0] + [2] * odd)


def window_of_tokens(config: LlavaConfig, vision_tokens: int | Literal["all"]) -> int:
    """Side of the windows that leave `vision_tokens` of the patches of a square image, or tile.

    Raises:
        FusionError: no window leaves that count.
    """
    grid = patch_grid(config)
    windows = {cells_of(grid, k) ** 2: k for k in window_sides(config)}
    wanted = grid**2 if vision_tokens == "all" else vision_tokens
    if type(wanted) is not int or wanted not in windows:
        raise FusionError(
            f"No window of the {grid}x{grid} patches gives {vision_tokens} vision tokens; possible are "
            f"{', '.join(map(str, windows))}, or 'all'."
        )
    return windows[wanted]


def resolve_window(config: LlavaConfig, vision_tokens: VisionTokens = None) -> int:
    """Side of the windows that a model of this config has, or is brought to, at a budget.

    Args:
        config: a fused model has the windows that it was made for and takes its default one for `None`; a plain LLaVA
            can be brought to every window of its grid and is brought to 2x2, a quarter of the tokens, for `None`.
        vision_tokens: the budget.

    Returns:
        The side in patches; 1 keeps every patch.

    Raises:
        FusionError: no window gives that count, or the model was not made for it.
    """
    fused = isinstance(config, FusedConfig)
    if vision_tokens is None:
        return config.fusion_window if fused else 2
    window = window_of_tokens(config, vision_tokens)
    if fused and window not in (config.fusion_windows or []):
        counts = " or ".join(map(str, token_budgets(config)))
        raise FusionError(
            f"This model was trained for {counts} vision tokens and cannot give {vision_tokens}; take a plain LLaVA "
            "for another number."
        )
    return window


def resolve_windows(config: LlavaConfig, vision_tokens: VisionTokens | Sequence[int] = None) -> int | list[int]:
    """As `resolve_window`; a list of budgets gives the list of their windows in its order, the first being the default.

    Raises:
        FusionError: as `resolve_window`, and for a list where the model is fused or the list is empty.
    """
    if isinstance(vision_tokens, Sequence) and not isinstance(vision_tokens, str):
        if isinstance(config, FusedConfig):
            raise FusionError("A list of vision_tokens is for a plain LLaVA; a fused one has its windows already.")
        if not vision_tokens:
            raise FusionError("Expected at least one number of vision tokens, found an empty list.")
        return [resolve_window(config, count) for count in vision_tokens]
    return resolve_window(config, vision_tokens)


def token_budgets(config: LlavaConfig) -> list[int]:
    """The budgets that a model of this config can be asked for, the order being that of its windows."""
    if isinstance(config, FusedConfig):
        return [_window_tokens(config, window) for window in config.fusion_windows or []]
    return [budget_per_image(config)]


def num_image_tokens(config: LlavaConfig, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
    """LLM tokens of each image of a prompt, on a model as it is: plain, fused or reduced.

    Args:
        config: of the model.
        image_sizes: height and width of each image in pixels. LLaVA-1.5 brings every image to one size, so that its
            images have one number; in a family that cuts images into tiles they differ.
        vision_tokens: the budget that is asked for.

    Raises:
        FusionError: the model cannot give that number.
    """
    if isinstance(config, CountsTokens):
        return config.num_image_tokens(image_sizes, vision_tokens)
    _require_plain(config, vision_tokens)
    return tokens_in_window(config, image_sizes, 1)


def num_video_tokens(config: LlavaConfig, frames: Sequence[int], vision_tokens: VisionTokens = None) -> list[int]:
    """LLM tokens of each video of a prompt, on a model as it is: plain or fused.

    Args:
        config: of the model.
        frames: how many each video has.
        vision_tokens: the budget of an image, or tile, that is asked for; frames have the same windows.

    Raises:
        FusionError: the model takes no videos, or cannot give that number.
    """
    require_videos(config)
    if isinstance(config, FusedConfig):
        window = resolve_window(config, vision_tokens)
    else:
        _require_plain(config, vision_tokens)
        window = 1
    return tokens_of_frames(config, frames, patch_grid(config), window)


def _require_plain(config: LlavaConfig, vision_tokens: VisionTokens) -> None:
    """Check that a budget is that of a plain model. Raises `FusionError` if not."""
    grid = patch_grid(config)
    if vision_tokens is not None and window_of_tokens(config, vision_tokens) != 1:
        raise FusionError(
            f"This model is a plain LLaVA with {grid**2} vision tokens and cannot give {vision_tokens}; load it with "
            f"vision_tokens={vision_tokens}."
        )


def tokens_per_image(config: LlavaConfig, vision_tokens: VisionTokens = None) -> int:
    """LLM tokens of an image of the tower's own size, see `num_image_tokens`."""
    side = config.vision_config.image_size
    return num_image_tokens(config, [(side, side)], vision_tokens)[0]


def budget_per_image(config: LlavaConfig, vision_tokens: VisionTokens = None) -> int:
    """A budget as a number: of the tokens of an image, or of one tile of it.

    Raises:
        FusionError: the model cannot give that number.
    """
    if isinstance(config, FusedConfig):
        return _window_tokens(config, resolve_window(config, vision_tokens))
    if has_tiles(config):
        own = getattr(config, "prompt_tokens", patch_grid(config) ** 2)  # of a reduced model
        if vision_tokens in (None, own) or (vision_tokens == "all" and own == patch_grid(config) ** 2):
            return own
    return tokens_per_image(config, vision_tokens)


def budget_of_prompt(config: LlavaConfig, places: Tensor, image_sizes: ImageSizes, frames: Sequence[int] = ()) -> int:
    """The budget that a prompt asks a fused model for, told from how many places it has for images and videos.

    Args:
        config: of the fused model.
        places: bool [B, T]; counted, which waits for a GPU, only where the model has several budgets.
        image_sizes: as in `num_image_tokens`.
        frames: as in `num_video_tokens`.

    Returns:
        Tokens per image: the model's default where it has no other, or where the places fit none.
    """
    counts = token_budgets(config)
    if len(counts) > 1:
        found = int(places.sum())
        for count in counts:
            if tokens_of_prompt(config, image_sizes, frames, count) == found:
                return count
    return _window_tokens(config, resolve_window(config))


def tokens_of_prompt(
    config: LlavaConfig, image_sizes: ImageSizes, frames: Sequence[int] = (), vision_tokens: VisionTokens = None
) -> int:
    """LLM tokens of all images and videos of a prompt, see `num_image_tokens` and `num_video_tokens`."""
    tokens = sum(num_image_tokens(config, image_sizes, vision_tokens))
    return tokens + sum(num_video_tokens(config, frames, vision_tokens)) if frames else tokens


def _window_tokens(config: LlavaConfig, window: int) -> int:
    return cells_of(patch_grid(config), window) ** 2
