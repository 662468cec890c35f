"""What every fused model with a head does alike: answers are text, and its files have a LLaVA's names.

The class stands before that of transformers among the bases of a model; beside it is `FusedImages`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from llava_stf.errors import FusionError
from llava_stf.models.carries_code import CarriesCode
from llava_stf.models.fusion.budget import num_image_tokens, num_video_tokens
from llava_stf.models.fusion.modeling import frames_of, places_of
from llava_stf.models.fusion.videos import require_videos
from llava_stf.models.llava_stf.vocabulary import tokenizer_beside, with_suppressed
from llava_stf_kernels import check_count

_Base: Any = LlavaForConditionalGeneration if TYPE_CHECKING else object


class FusedGeneration(CarriesCode, _Base):
    """Of the model with the head: `generate`, and what it needs."""

    # What the class in transformers calls the pixels of images.
    pixels_name: ClassVar[str] = "pixel_values"

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, never emitting an id that is no text (see `suppressed_ids`).

        Raises:
            ValueError: the prompt has another number of placeholders than the images have tokens.
        """
        ids, pixel_values = kwargs.get("input_ids", args[0] if args else None), kwargs.get(self.pixels_name)
        videos = kwargs.get("pixel_values_videos")
        if videos is not None:
            require_videos(self.config)
        if ids is not None and (pixel_values is not None or videos is not None):
            # Counted on the host, before any work is queued that the count would have to wait for.
            places, inner = places_of(self.config, ids.cpu()), self.model
            choices = {name: kwargs.get(name) for name in inner.image_choices}
            both = torch.stack(list(places.values())).any(0)
            count = kwargs["vision_tokens"] = inner.budget_of(both, pixel_values, videos, choices)
            if pixel_values is not None:
                sizes = inner.sizes_of_images(pixel_values, **choices)
                check_count(places["image"], sum(num_image_tokens(self.config, sizes, count)))
            if videos is not None:
                check_count(places["video"], sum(num_video_tokens(self.config, frames_of(videos), count)))
        kwargs["suppress_tokens"] = with_suppressed(kwargs, self.generation_config, self.config, tokenizer_beside(self))
        return super().generate(*args, **kwargs)

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `PeftAdapterMixin.load_adapter`, which loses the magnitudes of a DoRA.

        Args:
            peft_model_id: folder or hub id of an adapter.
            *args: as there.
            **kwargs: as there.

        Returns:
            What transformers' own returns.

        Raises:
            FusionError: the adapter is a DoRA, which PEFT's own `PeftModel.from_pretrained` reads exactly.
        """
        config = kwargs.get("peft_config")
        if config is None and peft_model_id is not None:
            from peft import PeftConfig

            config = PeftConfig.from_pretrained(peft_model_id, **kwargs.get("adapter_kwargs") or {})
        if (config if isinstance(config, dict) else vars(config or object)).get("use_dora"):
            raise FusionError(
                f"load_adapter of transformers loses the magnitudes of a DoRA, and {peft_model_id or 'this adapter'} "
                "is one; read it with peft.PeftModel.from_pretrained(model, folder)."
            )
        return super().load_adapter(peft_model_id, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        vision_tokens: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As `GenerationMixin`'s. `vision_tokens` is for versions that encode images before the first step."""
        return super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)


def register_key_names(ours: str, stock: str) -> None:
    """Let files carry a LLaVA's public key names (`language_model.model.*`, `multi_modal_projector.*`, ...).

    transformers applies its renamings to its own classes only; without this a file written by one version would not be
    read by another.

    Args:
        ours: model type or class of this package.
        stock: that of transformers which it stands for.
    """
    mapping = get_checkpoint_conversion_mapping(stock)
    if mapping is not None:
        register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)
