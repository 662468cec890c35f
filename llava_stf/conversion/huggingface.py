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
from llava_stf.io.json import write_json
from llava_stf.io.weights import save_shards
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.keys import EMBEDDING, HEAD, HUGGING_FACE, PROJECTOR, original_table


def read_hugging_face(
    source: Source, *, fusion_layers: list[int] | None = None, adapter: Source | None = None
) -> CheckpointState:
    """Take a `llava` or `llava_stf` folder apart, its projector replaced by `adapter` if there is one.

    Raises:
        CheckpointError: the folder is damaged or incomplete, or the adapter does not fit.
    """
    config_class = LlavaStfConfig if source.format is Format.STF else LlavaConfig
    config = build_config(source.config_file, config_class, source.config)
    if config.vision_config.model_type != "clip_vision_model" or config.text_config.model_type != "llama":
        raise CheckpointError(
            f"{source.config_file}: expected a CLIP tower and a LLaMA as in LLaVA-1.5, found "
            f"{config.vision_config.model_type} and {config.text_config.model_type}."
        )
    tensors = public_tensors(source.index(), HUGGING_FACE)
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
        if state.sentencepiece is not None:
            shutil.copyfile(state.sentencepiece, folder / "tokenizer.model")
    elif state.image_processor is not None:
        state.image_processor.save_pretrained(folder)
    save_shards(folder, tensors, on_written=on_written)
