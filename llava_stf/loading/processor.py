"""The processor of a checkpoint, tokenising as in training also for a plain LLaVA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import LlavaConfig, LlavaProcessor

from llava_stf.conversion.processors import check_processor, read_processor, tokenizers_template
from llava_stf.errors import CheckpointError
from llava_stf.export.load import read_export_processor
from llava_stf.io.exports import is_export
from llava_stf.loading.checkpoint import config_of, loadable, locate_checkpoint, window_to_patch
from llava_stf.loading.lora import is_lora_folder, read_lora_folder
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.tiles import takes_videos
from llava_stf.models.fusion.videos import frame_fields
from llava_stf.models.registry import family_of_config
from llava_stf.models.vision.layers import select_strategy


def load_processor(
    name_or_path: str | Path = "tiny", *, vision_tokens: int | Literal["all"] | Sequence[int] | None = None
) -> LlavaProcessor:
    """The processor that `load_model` gives with the model, without loading the model.

    Raises:
        LlavaStfError: as `load_model`.
    """
    path = locate_checkpoint(name_or_path)
    if is_export(path):
        return read_export_processor(path)
    if is_lora_folder(path):
        lora = read_lora_folder(path)
        folder, config = lora.folder, lora.config
    else:
        source = loadable(path)
        folder, config = source.folder, config_of(source)
    window = window_to_patch(config, name_or_path, vision_tokens)
    processor = processor_of(folder, config)
    if processor is None:
        raise CheckpointError(f"{folder} has no tokenizer, and nothing can be counted in tokens.")
    if window is not None:
        processor.fusion_window = window if isinstance(window, int) else window[0]
    return processor


def processor_of(folder: Path, config: LlavaConfig) -> LlavaProcessor | None:
    """The processor of a folder; `None` where there is no tokenizer.

    Raises:
        CheckpointError: its files are damaged, or do not fit the config.
    """
    processor, _ = read_processor(folder, config)
    if processor is None:
        return None
    if processor.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{folder}: the tokenizer has {processor.image_token} as id {processor.image_token_id}, config.json "
            f"says {config.image_token_id}."
        )
    family = family_of_config(config)
    processor.chat_template = processor.chat_template or tokenizers_template(processor) or family.chat_template
    if takes_videos(config):
        fields = {"patch_size": config.vision_config.patch_size, **frame_fields(config)}
        vars(processor).update(fields)
        if not isinstance(config, FusionConfig):
            processor.fusion_window = 1
    elif type(processor) is family.plain_processor and select_strategy(config) == "default":
        processor = family.processor(
            image_processor=processor.image_processor,
            tokenizer=processor.tokenizer,
            patch_size=config.vision_config.patch_size,
            chat_template=processor.chat_template,
            fusion_window=1,
        )
    if isinstance(config, FusionConfig):
        processor.fusion_window = config.fusion_window
    check_processor(folder, processor, config)
    return processor
