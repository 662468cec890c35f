"""The ordinary checkpoint that a folder of LoRA weights and its base make together."""

from __future__ import annotations

import os
from pathlib import Path

from llava_stf.conversion.processors import read_processor
from llava_stf.errors import CheckpointError
from llava_stf.io.publish import publish, refuse_existing
from llava_stf.loading.load import load_trained
from llava_stf.loading.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_lora_folder, read_lora_folder
from llava_stf.models.model_card import write_card


def merge_lora(src: str | Path, dst: str | Path, *, dtype: str | None = None) -> Path:
    """Write the ordinary checkpoint that a LoRA folder and its base make together, completely or not at all.

    QLoRA weights are merged into the base as they were trained on it, its 4-bit weights brought back to `dtype`: the
    original weights would be another model. Done on the CPU.

    Args:
        src: folder that finetuning with LoRA wrote.
        dst: folder to write; must not exist.
        dtype: of the merged weights, `"float32"`, `"bfloat16"` or `"float16"`; default that of the base.

    Raises:
        LlavaStfError: as `load_model`, or `dst` exists or cannot be written.
    """
    dst = Path(os.path.abspath(Path(dst).expanduser()))
    refuse_existing(dst)
    folder = Path(src).expanduser()
    if not is_lora_folder(folder):
        raise CheckpointError(
            f"{folder} is no result of finetuning with LoRA by this package: expected {ADAPTER_CONFIG}, "
            f"{ADAPTER_WEIGHTS} and config.json of the trained model. Merge another adapter into its base by "
            "PeftModel.from_pretrained(load_model(base, vision_tokens='all').model, folder).merge_and_unload()."
        )
    lora = read_lora_folder(folder)
    processor, _ = read_processor(folder, lora.config)
    model = load_trained(lora, quantization=None, dequantize=True, device="cpu", dtype=dtype or "stored")
    with publish(dst) as written:
        model.save_pretrained(written)
        write_card(written, base=lora.base)
        if processor is not None:
            processor.save_pretrained(written)
    return dst
