"""LoRA in training: low-rank adapters on the LLM's linear layers, the projector trained in full beside them.

PEFT keeps both in one file: the adapters, and the projector as a module to save. Everything else is frozen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from llava_stf.errors import LlavaStfError
from llava_stf.loading.lora import PROJECTOR

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    from llava_stf.training.config import FinetuneConfig


def add_lora(model: LlavaForConditionalGeneration, config: FinetuneConfig) -> PeftModel:
    """`model` with untrained adapters on every linear layer of its LLM but the head; trained weights are float32.

    Their config names the base, a local path made absolute. Changes `model` in place.

    Raises:
        LlavaStfError: its LLM has no linear layers.
    """
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rpartition(".")[2]
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not linear:
        raise LlavaStfError(f"{type(model.model.language_model).__name__} has no linear layers that LoRA could adapt")
    assert config.lora_rank is not None  # checked by whoever calls
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",
        target_modules=rf".*\.language_model\..*\b({'|'.join(sorted(linear))})",
        modules_to_save=[PROJECTOR],
    )
    adapted: Any = get_peft_model(model, lora)
    path = Path(config.base).expanduser()
    adapted.peft_config["default"].base_model_name_or_path = str(path.resolve()) if path.exists() else config.base
    # Checkpoints, too, are written without embeddings, for which PEFT would look the base up on the hub.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def save_adapter(model: PeftModel, folder: Path, dtype: torch.dtype, state_dict: dict[str, Any] | None = None) -> None:
    """Write what `load_model` needs beside the base model: adapters and projector in `dtype`, the model's config.

    Args:
        model: with trained weights, which are cast to `dtype` in place.
        folder: to write to.
        dtype: of the weights on disk.
        state_dict: the whole model's weights, where they are sharded over processes.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    state = None if state_dict is None else {name: value.to(dtype) for name, value in state_dict.items()}
    model.save_pretrained(str(folder), state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, with its blanks not filled in
    save_model_config(model, folder)


def save_model_config(model: PeftModel, folder: Path) -> None:
    """Write the `config.json` of the model in the adapters, by which `load_model` knows the folder."""
    inner: Any = model.get_base_model()
    inner.config.save_pretrained(folder)
