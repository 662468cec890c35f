"""Checkpoints in Hugging Face's layout, plain LLaVA and LLaVA-STF: taken apart and written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import LlavaConfig

from llava_stf.conversion.original import adapter_tensors
from llava_stf.conversion.processors import build_processor, read_generation, read_processor
from llava_stf.conversion.sources import Format, Source
from llava_stf.conversion.state import CheckpointState, build_config, fusion_fields, public_tensors
from llava_stf.errors import CheckpointError
from llava_stf.io.json import read_json, write_json
from llava_stf.io.weights import save_shards
from llava_stf.models.fusion.budget import patch_grid
from llava_stf.models.fusion.tiles import has_tiles, takes_videos
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.keys import EMBEDDING, HEAD, HUGGING_FACE, PROJECTOR, original_table
from llava_stf.models.registry import CONFIGS, family_of_config


def read_hugging_face(
    source: Source, *, fusion_layers: list[int] | None = None, adapter: Source | None = None
) -> CheckpointState:
    """Take a Hugging Face folder apart, its projector replaced by `adapter` if there is one.

    Raises:
        CheckpointError: the folder is damaged or incomplete, or the adapter does not fit.
    """
    config = build_config(source.config_file, CONFIGS[source.config["model_type"]], source.config)
    tiles = source.format is Format.TILES
    if tiles and adapter is not None:
        raise CheckpointError(f"{source.folder} is a {config.model_type}; a projector file is for LLaVA-1.5.")
    parts = config.vision_config.model_type, config.text_config.model_type
    if not tiles and parts != ("clip_vision_model", "llama"):
        raise CheckpointError(
            f"{source.config_file}: expected a CLIP tower and a LLaMA as in LLaVA-1.5, found "
            f"{config.vision_config.model_type} and {config.text_config.model_type}."
        )
    tensors = public_tensors(source.index(), HUGGING_FACE, tiles=has_tiles(config))
    processor, image_processor = read_processor(source.folder, config)
    if adapter is not None:
        tensors = {name: stored for name, stored in tensors.items() if not name.startswith(PROJECTOR)}
        named = adapter_tensors(adapter)
        tensors |= public_tensors(named, original_table(named))
        config = _with_adapter(source, config, tensors, adapter, fusion_layers)
        if processor is not None:
            processor = build_processor(config, image_processor, processor.tokenizer, processor.chat_template)
    sentencepiece = source.folder / "tokenizer.model"
    return CheckpointState(
        source=source,
        tensors=tensors,
        config=config,
        stored_rows=config.text_config.vocab_size,
        source_name=lambda name: name,
        generation=read_generation(source.folder),
        processor=processor,
        image_processor=image_processor,
        sentencepiece=sentencepiece if sentencepiece.is_file() else None,
    )


def _with_adapter(
    source: Source, config: LlavaConfig, tensors: dict, adapter: Source, fusion_layers: list[int] | None
) -> LlavaConfig:
    """The base's config with the fusion that the adapter's tensors show."""
    layer = config.vision_feature_layer
    select_layer = adapter.config.get("mm_vision_select_layer", layer if isinstance(layer, int) else layer[0])
    fields = {name: value for name, value in source.config.items() if not name.startswith("fusion_")}
    fields |= {"vision_feature_layer": select_layer}
    if not any(".block_fusion." in name for name in tensors):
        return build_config(source.config_file, LlavaConfig, fields | {"model_type": "llava"})
    fields |= fusion_fields(
        tensors,
        width=config.vision_config.hidden_size,
        depth=config.vision_config.num_hidden_layers,
        select_layer=select_layer,
        layers=fusion_layers,
    )
    fields |= {"model_type": "llava_stf", "architectures": ["LlavaStfForConditionalGeneration"], "fusion": "stf"}
    return build_config(source.config_file, LlavaStfConfig, fields)


def write_hugging_face(state: CheckpointState, folder: Path, *, on_written: Callable[[int], None]) -> None:
    """Write `state` into the empty `folder`: config, weights under public names, processor files.

    The vocabulary's new rows are the mean of the old ones, whose logits are never the largest.
    """
    rows = state.config.text_config.vocab_size
    tensors = {
        name: stored.with_rows(rows) if name in (EMBEDDING, HEAD) else stored for name, stored in state.tensors.items()
    }
    state.config.save_pretrained(folder)
    write_json(folder / "generation_config.json", state.generation)
    if state.processor is not None:
        state.processor.save_pretrained(folder)
        if takes_videos(state.config) and not state.fused:
            _as_stock_processor(state, folder / "processor_config.json")
        if state.sentencepiece is not None:
            shutil.copyfile(state.sentencepiece, folder / "tokenizer.model")
    elif state.image_processor is not None:
        state.image_processor.save_pretrained(folder)
    save_shards(folder, tensors, on_written=on_written)


def _as_stock_processor(state: CheckpointState, file: Path) -> None:
    """Make of what this package's processor of a plain LLaVA-OneVision wrote one of transformers' own."""
    name = family_of_config(state.config).plain_processor.__name__
    values, grid = read_json(file), patch_grid(state.config)
    images = values["image_processor"]
    frames = {field: images[field] for field in ("size", "image_mean", "image_std", "resample") if field in images}
    values |= {
        "processor_class": name,
        "num_image_tokens": grid**2,
        "vision_feature_select_strategy": state.config.vision_feature_select_strategy,
        "video_processor": {**frames, "video_processor_type": name.replace("Processor", "VideoProcessor")},
    }
    write_json(file, {field: value for field, value in values.items() if not field.startswith("fusion_")})
