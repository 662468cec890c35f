"""What vLLM can serve with this package, and on how many ranks: said before an engine, or vLLM itself, is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_stf.errors import FusionError
from llava_stf.models.fusion.config import FusionConfig, refuse_resampler
from llava_stf.models.registry import is_plain_config
from llava_stf.vllm_plugin import ARCHITECTURES

# The vision towers that vLLM has, by model type.
TOWERS = ("clip_vision_model", "siglip_vision_model")


def check_served(config: Any, ranks: int = 1) -> None:
    """Check that vLLM serves models with this config: those of the plugin, and a plain LLaVA, for which it has a class.

    Args:
        config: of the model, as it is saved.
        ranks: over which its tensors are spread.

    Raises:
        FusionError: vLLM has no such class, projector or vision tower, or something cannot be spread over the ranks.
    """
    kind = config.model_type
    if kind not in (*ARCHITECTURES, "llava"):
        advice = "serve it on transformers: llava-stf serve"
        if f"{kind}_stf" in ARCHITECTURES and is_plain_config(config):
            advice = "save it after apply_pooling(model, processor, window=1), which keeps all its tokens"
        raise FusionError(
            f"The plugin for vLLM knows the model types {', '.join(ARCHITECTURES)}, found {kind}; {advice}."
        )
    refuse_resampler(config, "The plugin for vLLM")
    if isinstance(config, FusionConfig) and config.vision_config.model_type not in TOWERS:
        raise FusionError(
            f"vLLM serves LLaVA-STF with the vision towers {' and '.join(TOWERS)}, found "
            f"{config.vision_config.model_type}; serve this model on transformers: llava-stf serve."
        )
    check_ranks({**language_units(config, ranks), **projector_units(config)}, ranks)


def check_ranks(units: Mapping[str, int], ranks: int) -> None:
    """Check that so many of each, by what they are, can be spread evenly.

    Raises:
        FusionError: they cannot.
    """
    for what, number in units.items():
        if number % ranks:
            raise FusionError(
                f"The {number} {what} cannot be spread over {ranks} ranks; take another tensor_parallel_size."
            )


def language_units(config: Any, ranks: int) -> dict[str, int]:
    """What of the language model is spread over ranks; a key-value head may be on several."""
    text = config.text_config
    pairs = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return {
        "attention heads": text.num_attention_heads,
        "key-value heads": ranks if ranks % pairs == 0 else pairs,
        "hidden units of the language model": text.intermediate_size,
    }


def projector_units(config: Any) -> dict[str, int]:
    """What of the projector is spread over ranks; nothing of a plain one, which is vLLM's own."""
    if not isinstance(config, FusionConfig):
        return {}
    if config.fusion != "stf":
        return {"hidden units of the projector": config.text_config.hidden_size}
    assert config.fusion_block_hidden_size is not None  # a config fills in what is not given
    assert config.fusion_hidden_size is not None
    places = spatial_places(config)
    return {
        "hidden units of MBTF": config.fusion_block_hidden_size,
        f"hidden units of STF in each of {places} places": config.fusion_hidden_size // places,
    }


def spatial_places(config: FusionConfig) -> int:
    """Into how many equal parts, the places of a window, STF's hidden units are cut before they are spread."""
    assert config.fusion_weight_window is not None  # a config fills in what is not given
    assert config.fusion_hidden_size is not None
    places = config.fusion_weight_window**2
    return places if config.fusion_hidden_size % places == 0 else 1
