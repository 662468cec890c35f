"""The authors' format (and haotian-liu's LLaVA-1.5, of which it is a fork, LLaVA-NeXT and OneVision), taken apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, LlavaConfig, PreTrainedTokenizerBase

from llava_stf.conversion.chat_templates import template_for
from llava_stf.conversion.processors import (
    PAD_TOKEN,
    add_placeholders,
    build_image_processor,
    build_processor,
    greedy_generation,
    read_generation,
    read_tokenizer,
    tokenizer_folder,
)
from llava_stf.conversion.sources import Format, Source
from llava_stf.conversion.state import CheckpointState, build_config, fusion_fields, public_tensors
from llava_stf.conversion.tiles import (
    LANGUAGE_MODELS,
    SIGLIP,
    VIDEO_TOKEN,
    config_class,
    is_tiled,
    tiled_fields,
    tiled_image_processor,
)
from llava_stf.conversion.tower import Tower, find_tower
from llava_stf.errors import CheckpointError
from llava_stf.io.weights import StoredTensor
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE
from llava_stf.models.llava_stf.keys import EMBEDDING, adapter_name, original_table, public_to_original, rename

ROW_MULTIPLE = 64
_BOOKKEEPING = {"architectures", "dtype", "transformers_version"}
_ROPE_FIELDS = {"rope_theta", "rope_scaling"}
_SELECT_STRATEGY = {"patch": "default", "cls_patch": "full"}


def read_original(
    source: Source,
    *,
    vision_tower: str | Path | None = None,
    fusion_layers: list[int] | None = None,
    adapter: Source | None = None,
) -> CheckpointState:
    """Take an original checkpoint apart, or a LLaMA that `adapter` makes a LLaVA of.

    Args:
        source: of format `ORIGINAL`, or `LLAMA` with an adapter.
        vision_tower: folder or hub id of the tower, where it is not the one that the config names.
        fusion_layers: the states MBTF joins, where the projector's shape does not tell.
        adapter: projector weights that replace the source's own.

    Raises:
        CheckpointError: it is damaged or incomplete, or its parts do not fit.
        ModelNotFoundError: the tower is not there.
    """
    names, config = source.index(), dict(source.config)
    if source.format is Format.LLAMA and adapter is None:
        raise CheckpointError(f"{source.folder} is a language model alone; convert a projector file with it as base.")
    if adapter is not None:
        names = {name: stored for name, stored in names.items() if not name.startswith("model.mm_projector")}
        names |= adapter_tensors(adapter)
        config |= {name: value for name, value in adapter.config.items() if name.startswith(("mm_", "image_aspect"))}
    _refuse_other_llavas(source, config)
    tiles = is_tiled(config)
    tensors = public_tensors(names, original_table(names), tiles=tiles)
    inside = any(name.startswith("vision_tower.") for name in tensors)
    tower = find_tower(config, source.folder, vision_tower, weights_inside=inside)
    if not inside:
        tensors |= tower.tensors()
    if tower.config["model_type"] == SIGLIP:
        if not tiles:
            raise CheckpointError(f"{source.config_file}: a SigLIP tower is read in LLaVAs with tiles, in no other.")
        tower, tensors = _without_last_block(tower, tensors)

    notes: list[str] = []
    tokenizer = _tokenizer(source, config, notes)
    model_config = _model_config(source, config, tower, tensors, fusion_layers, tokenizer)
    table = public_to_original(isinstance(model_config, LlavaStfConfig))
    template = CHAT_TEMPLATE
    if tiles:
        image_processor = tiled_image_processor(model_config, tower.preprocessor)
        if tokenizer is not None:
            template = template_for(model_config.text_config.model_type, tokenizer)
    else:
        image_processor = build_image_processor(
            tower.preprocessor, model_config.vision_config.image_size, pad=config.get("image_aspect_ratio") == "pad"
        )
    processor = None
    if tokenizer is not None:
        processor = build_processor(model_config, image_processor, tokenizer, default=template)
    state = CheckpointState(
        source=source,
        tensors=tensors,
        config=model_config,
        stored_rows=config["vocab_size"],
        source_name=lambda name: rename(name, table) or name,
        generation=greedy_generation(read_generation(source.folder), model_config),
        processor=processor,
        image_processor=image_processor,
        sentencepiece=_sentencepiece(source.folder) if tokenizer is not None else None,
        notes=notes,
    )
    if (
        isinstance(model_config, LlavaStfConfig)
        and fusion_layers is None
        and len(model_config.fusion_states) not in (1, 8)
    ):
        state.notes.append(
            f"The checkpoint does not say which hidden states it fuses; {model_config.fusion_states} was assumed. If "
            "it was trained on others, give them as fusion_layers."
        )
    return state


def adapter_tensors(adapter: Source) -> dict[str, StoredTensor]:
    """An adapter's tensors by original name, whatever its file prefixes them with."""
    return {adapter_name(name): stored for name, stored in adapter.index().items()}


def _refuse_other_llavas(source: Source, config: dict[str, Any]) -> None:
    """Raise `CheckpointError` for what nothing here reads: marker tokens around images, other LLMs without tiles."""
    file = source.config_file
    if not is_tiled(config) and _text_type(config) != "llama":
        raise CheckpointError(f"{file}: a {config['model_type']} is read where it cuts images into tiles (anyres).")
    if config.get("mm_use_im_start_end"):
        raise CheckpointError(f"{file} wants marker tokens around images (mm_use_im_start_end); expected LLaVA-1.5.")
    if not isinstance(config.get("vocab_size"), int) or config["vocab_size"] < 1:
        raise CheckpointError(f"{file}: expected vocab_size as a positive integer, found {config.get('vocab_size')!r}.")


def _model_config(
    source: Source,
    config: dict[str, Any],
    tower: Tower,
    tensors: dict[str, StoredTensor],
    fusion_layers: list[int] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> LlavaConfig:
    """The config of the model to be written; its vocabulary has both placeholders and is rounded up."""
    vocab_size = config["vocab_size"]
    image_id, pad_id = vocab_size, vocab_size + 1
    if tokenizer is not None:
        image_id, pad_id = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, PAD_TOKEN])
    padded = -(-max(vocab_size, image_id + 1, pad_id + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    text_type, tower_type = _text_type(config), tower.config["model_type"]
    text = {name: config[name] for name in _fields(text_type) if config.get(name) is not None}
    if "sliding_window" in config and "sliding_window" in _fields(text_type):
        text["sliding_window"] = config["sliding_window"]  # which may be none
    vision = {name: tower.config[name] for name in _fields(tower_type) if tower.config.get(name) is not None}
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in _SELECT_STRATEGY:
        raise CheckpointError(f"{source.config_file}: mm_vision_select_feature must be 'patch', found {feature!r}.")
    fields: dict[str, Any] = {
        "text_config": {**text, "model_type": text_type, "vocab_size": padded, "pad_token_id": pad_id},
        "vision_config": {**vision, "model_type": tower_type},
        "image_token_index": image_id,
        "pad_token_id": pad_id,
        "image_seq_length": (tower.config["image_size"] // tower.config["patch_size"]) ** 2,
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _SELECT_STRATEGY[feature],
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }
    if EMBEDDING in tensors:
        fields["dtype"] = str(tensors[EMBEDDING].dtype).removeprefix("torch.")
    if is_tiled(config):
        return _tiled_config(source, config, tower, tokenizer, fields)
    plain = build_config(source.config_file, LlavaConfig, fields)
    if not any(".block_fusion." in name for name in tensors):
        plain.architectures = ["LlavaForConditionalGeneration"]
        return plain
    fields |= fusion_fields(
        tensors,
        width=plain.vision_config.hidden_size,
        depth=plain.vision_config.num_hidden_layers,
        select_layer=fields["vision_feature_layer"],
        layers=fusion_layers,
    )
    fused = build_config(source.config_file, LlavaStfConfig, fields)
    fused.architectures = ["LlavaStfForConditionalGeneration"]
    return fused


def _tiled_config(
    source: Source,
    config: dict[str, Any],
    tower: Tower,
    tokenizer: PreTrainedTokenizerBase | None,
    fields: dict[str, Any],
) -> Any:
    """The config of a LLaVA-NeXT or LLaVA-OneVision, from the fields that it has in common with LLaVA-1.5."""
    kind, tower_type = config_class(tower.config["model_type"]), tower.config["model_type"]
    fields |= tiled_fields(source.config_file, config, tower_type, tower.config["image_size"])
    if tower_type == SIGLIP:
        del fields["image_seq_length"]
        fields["vision_config"]["vision_use_head"] = False
        video_id = None if tokenizer is None else tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        fields["video_token_index"] = fields["pad_token_id"] + 1 if video_id is None else video_id
        rows = -(-(fields["video_token_index"] + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        fields["text_config"]["vocab_size"] = max(rows, fields["text_config"]["vocab_size"])
    plain = build_config(source.config_file, kind, fields)
    plain.architectures = [kind.__name__.replace("Config", "ForConditionalGeneration")]
    return plain


def _without_last_block(tower: Tower, tensors: dict[str, StoredTensor]) -> tuple[Tower, dict[str, StoredTensor]]:
    """A SigLIP as LLaVA-OneVision has it: all blocks but the last, and no pooling head."""
    depth = tower.config["num_hidden_layers"] - 1
    gone = (f"vision_tower.vision_model.encoder.layers.{depth}.", "vision_tower.vision_model.head.")
    kept = {name: stored for name, stored in tensors.items() if not name.startswith(gone)}
    return dataclasses.replace(tower, config={**tower.config, "num_hidden_layers": depth}), kept


def _text_type(config: dict[str, Any]) -> str:
    """Model type of the language model."""
    return LANGUAGE_MODELS.get(str(config.get("model_type")), "llama")


def _fields(model_type: str) -> set[str]:
    """The fields of a config of that model type which tell what the model is."""
    names = {field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type])}
    return names - _BOOKKEEPING | _ROPE_FIELDS


def _tokenizer(source: Source, config: dict[str, Any], notes: list[str]) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer with the placeholders; `None`, and a note why, where none fits."""
    folder = tokenizer_folder(source.folder)
    if folder is None:
        notes.append(
            f"{source.folder} has no tokenizer files: the model is converted alone and cannot be asked in words."
        )
        return None
    tokenizer, vocab_size = read_tokenizer(folder), config["vocab_size"]
    if len(tokenizer) > vocab_size:
        notes.append(
            f"The tokenizer in {folder} was not taken: it has {len(tokenizer)} tokens and the model {vocab_size}. The "
            "model is converted alone and cannot be asked in words."
        )
        return None
    videos = [VIDEO_TOKEN] if str(config.get("image_aspect_ratio")).startswith("anyres_max") else []
    names = (IMAGE_TOKEN, PAD_TOKEN, *videos)
    return add_placeholders(tokenizer, vocab_size, config.get("tokenizer_model_max_length"), names)


def _sentencepiece(folder: Path) -> Path | None:
    place = tokenizer_folder(folder)
    file = None if place is None else place / "tokenizer.model"
    return file if file is not None and file.is_file() else None
