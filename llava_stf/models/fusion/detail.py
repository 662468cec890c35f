"""Budgets that are asked for in a word: `"low"`, `"high"`, and `"auto"`, which goes by the size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers import LlavaConfig

from llava_stf.models.fusion.budget import (
    ImageSizes,
    VisionTokens,
    budget_per_image,
    num_image_tokens,
    token_budgets,
)

Detail = Literal["low", "high", "auto"]
DETAILS = ("low", "high", "auto")
ANSWER_ROOM = 128  # positions that "auto" leaves for an answer, of short contexts a quarter


def choose_budgets(
    config: LlavaConfig,
    asked: Sequence[VisionTokens | Detail],
    image_sizes: ImageSizes,
    *,
    room: int,
) -> list[int]:
    """The budget of each image of a prompt; those asked for in words are of the budgets that the model has.

    `"low"` is the smallest, `"high"` the largest. `"auto"` is the smallest at which a token covers no more of the
    image's own pixels than a patch has, or the largest: a small image, which is enlarged for the tower, shows nothing
    more at more tokens. If the images do not fit into `room` then, those on `"auto"` are brought down, from the largest
    budget on and the last image first, as far as it takes or goes. A model of one budget has that one for all words.

    Args:
        config: of the model.
        asked: for each image a word, or a budget as elsewhere.
        image_sizes: height and width of each in pixels, before it is resized.
        room: tokens that all images have together.

    Raises:
        FusionError: the model cannot give a number that is asked for.
    """
    counts = sorted(token_budgets(config))
    words = {"low": counts[0], "high": counts[-1]}
    chosen = [
        _budget_of_size(config, counts, size)
        if one == "auto"
        else words[one]
        if one in DETAILS
        else budget_per_image(config, one)  # type: ignore[arg-type]  # no word
        for one, size in zip(asked, image_sizes, strict=True)
    ]
    while True:
        used = (num_image_tokens(config, [size], one)[0] for size, one in zip(image_sizes, chosen, strict=True))
        larger = [(chosen[at], at) for at, one in enumerate(asked) if one == "auto" and chosen[at] > counts[0]]
        if sum(used) <= room or not larger:
            return chosen
        budget, at = max(larger)
        chosen[at] = counts[counts.index(budget) - 1]


def _budget_of_size(config: LlavaConfig, counts: list[int], image_size: tuple[int, int]) -> int:
    cells = -(-max(image_size) // config.vision_config.patch_size)
    return next((count for count in counts if count >= cells**2), counts[-1])
