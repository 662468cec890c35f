"""What every fused model does alike inside: image tokens enter the prompt without waiting for a GPU.

The class stands before that of transformers among the bases of an inner model; beside it is `FusedGeneration`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens, budget_of_prompt, resolve_window
from llava_stf.models.fusion.tiles import takes_videos
from llava_stf.models.fusion.videos import require_videos
from llava_stf.models.vision.states import select_patch_states
from llava_stf_kernels import place_tokens

# What forward passes and outputs call the key-value cache; the other name is translated for callers until 5.40.
CACHE = "cache" if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"
# Since 5.24 outputs hold what `get_image_features` gave, and before that the tokens alone.
_HOLDS_IMAGE_OUTPUTS = "image_outputs" in LlavaModelOutputWithPast.__dataclass_fields__


class FusedImages:
    """Of the inner model: places the tokens of images, and of videos where a class takes them, in the prompt."""

    # What the processor gives beside pixel values that tells how an image is shown.
    image_choices: ClassVar[tuple[str, ...]] = ("image_sizes",)

    if TYPE_CHECKING:
        config: Any
        multi_modal_projector: Any
        get_input_embeddings: Any

    def get_image_features(self, pixel_values: Tensor, **choices: Any) -> Any:
        """Fused image tokens for the LLM, in `pooler_output`: one [M, H] tensor per image."""
        raise NotImplementedError

    def get_video_features(self, pixel_values_videos: Tensor, **choices: Any) -> Any:
        """Fused tokens of videos [videos, frames, 3, height, width], in `pooler_output`: one [M, H] tensor per video.

        Raises:
            FusionError: the model takes images alone.
        """
        require_videos(self.config)
        raise NotImplementedError

    def fused_squares(
        self, tower: PreTrainedModel, pixel_values: Tensor, vision_tokens: VisionTokens
    ) -> BaseModelOutputWithPooling:
        """What `get_image_features` gives where every image is one square: [images, 3, height, width].

        Args:
            tower: that sees the images.
            pixel_values: of its size.
            vision_tokens: M, by default the config's `image_seq_length`.

        Raises:
            FusionError: the model was not made for that number of tokens.
        """
        window = resolve_window(self.config, vision_tokens)
        states = select_patch_states(tower, pixel_values, self.config.fusion_states)
        features = self.multi_modal_projector(states, window)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=list(features))

    def check_choices(self, layers: int | list[int] | None, strategy: str | None) -> None:
        """Check that the hidden states asked for are those that the weights are made for.

        Raises:
            FusionError: they are not.
        """
        if layers not in (None, self.config.vision_feature_layer):
            raise FusionError(
                f"This model fuses the layers {self.config.vision_feature_layer}; it cannot take {layers}."
            )
        if strategy not in (None, "default"):
            raise FusionError(f"This model drops the class token; it has no select strategy '{strategy}'.")

    def sizes_of_images(self, pixel_values: Tensor, **choices: Any) -> ImageSizes:
        """Height and width of each image as `num_image_tokens` takes them.

        Args:
            pixel_values: of the images.
            **choices: what the processor gave under the names of `image_choices`.

        Raises:
            PromptError: it gave none, or another number than there are images.
        """
        return [(pixel_values.shape[-2], pixel_values.shape[-1])] * len(pixel_values)

    def images_of(self, features: Tensor, sizes: ImageSizes) -> list[Tensor]:
        """The tokens of each image, [tokens, H], of what the projector gives of all squares: [squares, M, H].

        Args:
            features: of the images, or of their tiles, in whatever windows.
            sizes: as `sizes_of_images` gives them.
        """
        return list(features)

    def budget_of(self, places: Tensor, pixel_values: Tensor | None, videos: Tensor | None, choices: Any) -> int:
        """The budget that a prompt has places for, see `budget_of_prompt`.

        Args:
            places: bool [B, T], of images and videos.
            pixel_values: of the images, or `None`.
            videos: [videos, frames, ...] or `None`.
            choices: see `image_choices`.
        """
        sizes = [] if pixel_values is None else self.sizes_of_images(pixel_values, **choices)
        return budget_of_prompt(self.config, places, sizes, frames_of(videos))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        pixel_values_videos: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As that of the class in transformers, without waiting for a GPU when the image tokens enter the prompt.

        Images may come encoded in `mm_encoder_outputs`, as `generate` gives them since transformers 5.23 or so. A model
        for several windows takes the one whose tokens the prompt has placeholders for; counting them waits for a GPU.

        Raises:
            ValueError: the number of image tokens in `input_ids` [B, T] is not that of the image tokens; on a GPU that
                is a failed device assertion, while `generate` raises before it starts.
            FusionError: the model takes no videos.
        """
        layers: dict[str, Any] = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
        }
        choices = {name: kwargs.pop(name, None) for name in self.image_choices}
        pixels = {"image": pixel_values, "video": pixel_values_videos}
        kwargs["return_dict"] = True
        features = dict(kwargs.get("mm_encoder_outputs") or {})
        given = [kind for kind in pixels if pixels[kind] is not None]
        twice = any(features.get(kind) is not None for kind in given)
        nothing = not given and all(features.get(kind) is None for kind in pixels)
        if input_ids is None or inputs_embeds is not None or twice or nothing:
            named = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos, **choices, **layers}
            named = {name: value for name, value in named.items() if value is not None}  # some versions know not all
            return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **named, **kwargs)  # type: ignore[misc]
        kwargs.pop("mm_encoder_outputs", None)
        embeddings = self.get_input_embeddings()(input_ids)
        places = places_of(self.config, input_ids)
        if given:
            layers["vision_tokens"] = self.budget_of(
                torch.stack(list(places.values())).any(0), pixel_values, pixel_values_videos, choices
            )
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, **choices, **layers)
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(pixel_values_videos, **layers)
        tokens = {}
        for kind, outputs in features.items():
            if outputs is not None:
                joined = torch.cat(list(outputs.pooler_output)).to(embeddings.device, embeddings.dtype)
                backend = self.multi_modal_projector.kernels
                embeddings = place_tokens(embeddings, joined, places[kind], backend=backend)
                tokens[kind] = joined
        outputs = super().forward(inputs_embeds=embeddings, **kwargs)  # type: ignore[misc]
        for kind, joined in tokens.items():
            if _HOLDS_IMAGE_OUTPUTS:
                setattr(outputs, f"{kind}_outputs", features[kind])
            else:
                setattr(outputs, f"{kind}_hidden_states", joined)
        return outputs


def places_of(config: Any, input_ids: Tensor) -> dict[str, Tensor]:
    """Where images, and videos if the model takes them, have their places in a prompt: bool [B, T] by kind."""
    places = {"image": input_ids == config.image_token_id}
    if takes_videos(config):
        places["video"] = input_ids == config.video_token_id
    return places


def frames_of(videos: Tensor | None) -> list[int]:
    """How many frames each of the videos [videos, frames, ...] has."""
    return [] if videos is None else [videos.shape[1]] * len(videos)


def image_tokens_of(outputs: ModelOutput) -> Tensor:
    """The image tokens [R, H] that went into the prompt, all images in a row, from a forward pass with images."""
    if _HOLDS_IMAGE_OUTPUTS:
        return torch.cat(list(outputs.image_outputs.pooler_output))
    return outputs.image_hidden_states
