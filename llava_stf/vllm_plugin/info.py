"""What vLLM asks about a model before there are images: which kinds it takes, and how many tokens they have at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.llava import BaseLlavaProcessingInfo, LlavaDummyInputsBuilder
from vllm.multimodal.parse import ImageSize

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import (
    budget_per_image,
    largest_image,
    num_image_tokens,
    num_video_tokens,
    token_budgets,
)
from llava_stf.models.fusion.tiles import takes_videos
from llava_stf.models.registry import family_of_config

OPTION = "vision_tokens"
MAX_FRAMES = 32  # of the videos that memory is measured with: as many as vLLM takes of a file


class FusedInfo(BaseLlavaProcessingInfo):
    """What vLLM asks about a model before there are images."""

    def get_hf_config(self) -> Any:
        """That of a family that fuses tokens."""
        return self.ctx.get_hf_config()

    def get_hf_processor(self, **kwargs: object) -> Any:
        """That of the family, whatever the options; it prepares images with Pillow, as this package does everywhere."""
        return self.ctx.get_hf_processor(family_of_config(self.get_hf_config()).processor, backend="pil")

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images, and videos where the family takes them, any number."""
        return {"image": None, "video": None} if takes_videos(self.get_hf_config()) else {"image": None}

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """At the budget that gives most: a request may ask for any."""
        config = self.get_hf_config()
        size = image_height, image_width
        return max(num_image_tokens(config, [size], budget)[0] for budget in token_budgets(config))

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of the largest image at the budget that gives most, and of a video of `longest_video` frames."""
        size = self.get_image_size_with_most_features()
        most = {"image": self.get_num_image_tokens(image_width=size.width, image_height=size.height)}
        if takes_videos(self.get_hf_config()):
            most["video"] = self.num_video_tokens(self.longest_video(seq_len))
        return most

    def longest_video(self, seq_len: int) -> int:
        """Frames of a video that fits into so many positions, at least 1 and at most `MAX_FRAMES`."""
        fitting = (count for count in range(MAX_FRAMES, 0, -1) if self.num_video_tokens(count) <= seq_len)
        return next(fitting, 1)

    def num_video_tokens(self, frames: int) -> int:
        """At the budget that gives most, as `get_num_image_tokens`."""
        config = self.get_hf_config()
        return max(num_video_tokens(config, [frames], budget)[0] for budget in token_budgets(config))

    def get_image_size_with_most_features(self) -> ImageSize:
        """The size of the largest image at the budget that gives most."""
        height, width = largest_image(self.get_hf_config(), self.largest_budget())
        return ImageSize(width=width, height=height)

    def largest_budget(self) -> int:
        """The budget at which an image may have most tokens."""
        config = self.get_hf_config()

        def most(budget: int) -> int:
            return num_image_tokens(config, [largest_image(config, budget)], budget)[0]

        return max(token_budgets(config), key=most)

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check what a request asks for besides.

        Raises:
            FusionError: a count that the model does not have, or any other option: how images are read is the model's
                alone to say.
        """
        unknown = sorted(set(options) - {OPTION})
        if unknown:
            raise FusionError(f"mm_processor_kwargs may hold {OPTION} and nothing else, found {', '.join(unknown)}.")
        self.vision_tokens(options)

    def vision_tokens(self, options: Mapping[str, object]) -> int:
        """Tokens per image, or tile, that a request's options ask for, or the server's, or by default the model's.

        Raises:
            FusionError: the model does not have that count.
        """
        count = self.ctx.get_merged_mm_kwargs(options).get(OPTION)
        if count is not None and type(count) is not int:
            raise FusionError(f"{OPTION} must be a number, found {count!r}.")
        return budget_per_image(self.get_hf_config(), count)


class FusedDummyInputs(LlavaDummyInputsBuilder[FusedInfo]):
    """The images and videos that vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """As many markers as images and videos."""
        text = super().get_dummy_text(mm_counts)
        return text + (self.info.get_hf_processor().video_token or "") * mm_counts.get("video", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """The largest image, and the longest video, as often as they are asked for."""
        data = {**super().get_dummy_mm_data(seq_len, mm_counts, mm_options)}
        if videos := mm_counts.get("video", 0):
            side = self.info.get_hf_config().vision_config.image_size
            frames, overrides = self.info.longest_video(seq_len), mm_options.get("video")
            data["video"] = self._get_dummy_videos(
                width=side, height=side, num_frames=frames, num_videos=videos, overrides=overrides
            )
        return data
