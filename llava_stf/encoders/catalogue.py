"""The image encoders that are known as towers, with what stands in their published configs and on their pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownEncoder:
    """One published encoder.

    Args:
        name: of the family and size.
        model_type: of its transformers config, of the vision model alone.
        config: the fields of that config that differ from its class's defaults, sizes always among them.
        image_size: side in pixels that it is used at.
        parameters: of the tower as transformers builds it, without the pooling layer, which LLaVA does not read.
        licence: of the released weights.
        source: a hub id, which `assemble` takes as it is, or where the file for `convert` is.
        encoder: what `convert --encoder` is given; `None` where transformers loads it as it is.
        special: tokens before the patches.
    """

    name: str
    model_type: str
    config: Mapping[str, Any] = field(repr=False)
    image_size: int
    parameters: int
    licence: str
    source: str
    encoder: str | None = None
    special: int = 1

    @property
    def width(self) -> int:
        """Channels of its states."""
        return int(self.config["hidden_size"])

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.config["num_hidden_layers"])

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.config["patch_size"])

    @property
    def grid(self) -> int:
        """Patches per side of an image."""
        return self.image_size // self.patch


def _sizes(width: int, depth: int, heads: int, patch: int, image: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": image,
        **others,
    }


def _method(
    name: str, encoder: str, width: int, heads: int, parameters: int, source: str, **others: Any
) -> KnownEncoder:
    """A ViT/16 for 224 px of one of the four methods."""
    config = _sizes(width, 12, heads, 16, 224, intermediate_size=4 * width, **others)
    licence = "not known" if encoder == "mos" else "CC BY-NC 4.0 (non-commercial)"
    return KnownEncoder(name, "vit", config, 224, parameters, licence, source, encoder)


_HUB = "hub: visresearch/"
ENCODERS = (
    KnownEncoder(
        "clip-large-336",
        "clip_vision_model",
        _sizes(1024, 24, 16, 14, 336, intermediate_size=4096),
        336,
        303_507_456,
        "MIT (its repository)",
        "openai/clip-vit-large-patch14-336",
    ),
    KnownEncoder(
        "siglip-so400m-384",
        "siglip_vision_model",
        _sizes(1152, 27, 16, 14, 384, intermediate_size=4304),
        384,
        412_987_248,
        "Apache-2.0",
        "google/siglip-so400m-patch14-384",
        special=0,
    ),
    KnownEncoder(
        "siglip2-so400m-384",
        "siglip_vision_model",
        _sizes(1152, 27, 16, 14, 384, intermediate_size=4304),
        384,
        412_987_248,
        "Apache-2.0",
        "google/siglip2-so400m-patch14-384",
        special=0,
    ),
    KnownEncoder(
        "dinov2-large",
        "dinov2",
        _sizes(1024, 24, 16, 14, 518),
        224,
        304_368_640,
        "Apache-2.0",
        "facebook/dinov2-large",
    ),
    KnownEncoder(
        "dinov2-large-registers",
        "dinov2_with_registers",
        _sizes(1024, 24, 16, 14, 518, num_register_tokens=4),
        224,
        304_372_736,
        "Apache-2.0",
        "facebook/dinov2-with-registers-large",
        special=5,
    ),
    KnownEncoder(
        "dinov3-large",
        "dinov3_vit",
        _sizes(1024, 24, 16, 16, 224, intermediate_size=4096, num_register_tokens=4),
        224,
        303_129_600,
        "DINOv3 licence (on request)",
        "facebook/dinov3-vitl16-pretrain-lvd1689m",
        special=5,
    ),
    KnownEncoder(
        "mlcd-large-336",
        "clip_vision_model",
        _sizes(1024, 24, 16, 14, 336, intermediate_size=4096),
        336,
        303_507_456,
        "Apache-2.0",
        "DeepGlint-AI/mlcd-vit-large-patch14-336",
    ),
    KnownEncoder(
        "mlcd-bigG-336",
        "mlcd_vision_model",
        _sizes(1664, 48, 16, 14, 336, intermediate_size=8192),
        336,
        1_842_349_748,
        "MIT",
        "DeepGlint-AI/mlcd-vit-bigG-patch14-336",
    ),
    KnownEncoder(
        "aimv2-large-224",
        "aimv2_vision_model",
        _sizes(1024, 24, 8, 14, 224, intermediate_size=2816),
        224,
        309_197_824,
        "see its page",
        "apple/aimv2-large-patch14-224",
        special=0,
    ),
    KnownEncoder(
        "vit-large-224",
        "vit",
        _sizes(1024, 24, 16, 16, 224, intermediate_size=4096),
        224,
        303_301_632,
        "Apache-2.0",
        "google/vit-large-patch16-224-in21k",
    ),
    _method("patchmix-small", "patchmix", 384, 12, 21_665_664, f"{_HUB}PatchMix, pretrain/imagenet1k"),
    _method("patchmix-base", "patchmix", 768, 12, 85_798_656, f"{_HUB}PatchMix, pretrain/imagenet1k"),
    _method("aps-small", "aps", 384, 6, 21_651_840, f"{_HUB}aps", qkv_bias=False),
    _method("aps-base", "aps", 768, 12, 85_771_008, f"{_HUB}aps", qkv_bias=False),
    _method("mgc-small", "mgc", 384, 8, 21_665_664, "linked in the repository visresearch/mgc"),
    _method("mos-small", "mos", 384, 12, 21_665_664, "not known to be public"),
)
