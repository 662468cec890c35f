"""One key table between the three ways LLaVA weights are named on disk.

* original: the authors' and haotian-liu's LLaVA (`model.layers.0...`, `model.mm_projector_crosslayer.0...`);
* public: what this package writes, the names of `llava-hf` files (`language_model.model.layers.0...`);
* the spellings of public names that other transformers versions write (`model.language_model.layers.0...`).

Prefixes are matched by whole segments: `model.mm_projector` begins `model.mm_projector_crosslayer` as text only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LANGUAGE = {
    "model.embed_tokens": "language_model.model.embed_tokens",
    "model.layers": "language_model.model.layers",
    "model.norm": "language_model.model.norm",
    "lm_head": "language_model.lm_head",
}
NEWLINE = {"model.image_newline": "image_newline"}
TOWER = {"model.vision_tower.vision_tower.vision_model": "vision_tower.vision_model"}
STF_PROJECTOR = {
    "model.mm_projector_crosslayer.0": "multi_modal_projector.block_fusion.linear_1",
    "model.mm_projector_crosslayer.2": "multi_modal_projector.block_fusion.linear_2",
    "model.mm_projector.0": "multi_modal_projector.spatial_fusion.linear_1",
    "model.mm_projector.2": "multi_modal_projector.spatial_fusion.linear_2",
}
PLAIN_PROJECTOR = {
    "model.mm_projector.0": "multi_modal_projector.linear_1",
    "model.mm_projector.2": "multi_modal_projector.linear_2",
}
# A vision tower's own folder: with the level `vision_model` (transformers before 5.6, and openai's files) or without.
_TOWER_PARTS = ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
TOWER_FOLDER = {
    "vision_model": "vision_tower.vision_model",
    **{part: f"vision_tower.vision_model.{part}" for part in _TOWER_PARTS},
}
# In this order: the first prefix that fits is taken. The last five stand for what is in memory in transformers 5.
HUGGING_FACE = {
    "language_model.model": "language_model.model",
    "language_model.lm_head": "language_model.lm_head",
    "vision_tower.vision_model": "vision_tower.vision_model",
    "vision_tower": "vision_tower.vision_model",
    "multi_modal_projector": "multi_modal_projector",
    "model.language_model.model": "language_model.model",
    "model.language_model": "language_model.model",
    "model.vision_tower.vision_model": "vision_tower.vision_model",
    "model.vision_tower": "vision_tower.vision_model",
    "model.multi_modal_projector": "multi_modal_projector",
    "lm_head": "language_model.lm_head",
    "image_newline": "image_newline",
    **NEWLINE,
}

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
PROJECTOR = "multi_modal_projector."

# Buffers that older libraries stored.
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """`name` with the first prefix of `table` that ends at a segment replaced, or `None` if there is none."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return None


def original_table(names: Iterable[str]) -> dict[str, str]:
    """The table original -> public for a checkpoint with these original names; its MBTF weights alone tell STF."""
    fused = any(name.startswith("model.mm_projector_crosslayer.") for name in names)
    return {**LANGUAGE, **TOWER, **NEWLINE, **(STF_PROJECTOR if fused else PLAIN_PROJECTOR)}


def public_to_original(fused: bool) -> dict[str, str]:
    """The table public -> original of an STF checkpoint or a plain LLaVA-1.5."""
    table = {**LANGUAGE, **TOWER, **NEWLINE, **(STF_PROJECTOR if fused else PLAIN_PROJECTOR)}
    return {public: original for original, public in table.items()}


def is_unused(name: str, *, tiles: bool = False) -> bool:
    """Whether a stored tensor is of no use to the model and is dropped.

    LLaVA-1.5 may hold the newline of models with `tiles`, without using it.
    """
    return name.endswith(_BUFFERS) or (name.endswith("image_newline") and not tiles)


def adapter_name(name: str) -> str:
    """Original name of a projector tensor, which its file may prefix otherwise (`base_model.model.model.mm_...`).

    A name without an `mm_projector` segment is returned as it is.
    """
    segments = name.split(".")
    for index, segment in enumerate(segments):
        if segment in ("mm_projector", "mm_projector_crosslayer"):
            return ".".join(["model", *segments[index:]])
    return rename(name, public_to_original(fused=True)) or name
