"""Write a checkpoint in the authors' format, so that their tools read what was trained here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlavaConfig, PreTrainedTokenizerBase

from llava_stf.conversion.processors import UNUSED_TOKEN
from llava_stf.conversion.state import CheckpointState, layers_of
from llava_stf.conversion.tiles import SIGLIP, VIDEO_TOKEN, original_fields
from llava_stf.conversion.tower import KNOWN
from llava_stf.errors import CheckpointError
from llava_stf.io.json import write_json
from llava_stf.io.weights import save_shards
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.tiles import has_tiles
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE
from llava_stf.models.llava_stf.keys import EMBEDDING, HEAD, public_to_original, rename

_FOLDER = "clip_tower"
# What transformers 4.37, which reads this format, knows of a LLaMA.
_LLAMA_FIELDS = (
    *("attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size"),
    *("initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
    *("num_key_value_heads", "pretraining_tp", "rms_norm_eps", "tie_word_embeddings", "use_cache"),
)
_OTHER_FIELDS = ("sliding_window", "use_sliding_window", "max_window_layers", "head_dim")  # Mistral's and Qwen2's
# Model type and class of a LLaVA on an LLM.
_MODEL_TYPES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
    "qwen2": ("llava_qwen", "LlavaQwenForCausalLM"),
}
_ROPE_TYPES = ("default", "linear", "dynamic")
_PAD_ID = 0  # LLaVA-1.5 pads with <unk>


def write_original(
    state: CheckpointState, folder: Path, *, vision_tower: str | Path | None, on_written: Callable[[int], None]
) -> None:
    """Write `state` into the empty `folder` as the authors' class would.

    The vocabulary is cut behind the last token that is text; those that a user added behind the placeholders stay, and
    with them the placeholders between. The tower's weights are inside, as in the authors' files, but their
    tools load it from where `mm_vision_tower` says: `vision_tower` if given, the hub id if it is LLaVA-1.5's tower,
    else a folder beside the weights.

    Raises:
        CheckpointError: that format cannot hold the model.
    """
    _check_expressible(state)
    config = state.config
    tower = str(vision_tower or _known_tower(config) or _FOLDER)
    table = public_to_original(state.fused)
    tensors = {
        str(rename(name, table)): stored.with_rows(_rows(state)) if name in (EMBEDDING, HEAD) else stored
        for name, stored in state.tensors.items()
    }
    write_json(folder / "config.json", _config(state, tower))
    text: LlamaConfig = config.text_config
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id}
    generation = {**ids, **state.generation, "pad_token_id": _PAD_ID, "transformers_version": "4.37.2"}
    silent = {config.image_token_id, text.pad_token_id}
    generation["suppress_tokens"] = [
        id_ for id_ in generation.get("suppress_tokens") or () if id_ not in silent and id_ < _rows(state)
    ] or None
    write_json(
        folder / "generation_config.json", {name: value for name, value in generation.items() if value is not None}
    )
    if state.processor is not None:
        _write_tokenizer(state, folder)
    save_shards(folder, tensors, on_written=on_written)
    if tower == _FOLDER:
        _write_tower(state, folder / _FOLDER)
        state.notes.append(
            f"The vision tower is in the folder {_FOLDER}; the authors' tools look for it in the working directory: "
            "run them in this folder, or put the absolute path into config.json (mm_vision_tower)."
        )


def _known_tower(config: LlavaConfig) -> str | None:
    """The hub id of a tower that is LLaVA-1.5's or LLaVA-OneVision's, which has one block less here than there."""
    vision = config.vision_config.to_dict()
    if config.vision_config.model_type == SIGLIP:
        vision["num_hidden_layers"] += 1
    return next((name for name, known in KNOWN.items() if known.items() <= vision.items()), None)


def _check_expressible(state: CheckpointState) -> None:
    """Refuse what the format has no place for; note what it holds but the authors' code does not run."""
    config = state.config
    if isinstance(config, FusionConfig) and not isinstance(config, LlavaStfConfig):
        raise CheckpointError(f"The original format has no {state.config.model_type}, nor has the authors' code.")
    if config.model_type not in ("llava", "llava_stf", "llava_next", "llava_onevision"):
        raise CheckpointError(f"A {config.model_type} cannot be written in the original format.")
    if config.text_config.model_type not in _MODEL_TYPES:
        raise CheckpointError(
            f"The original format has LLMs of the model types {', '.join(_MODEL_TYPES)}; this one is a "
            f"{config.text_config.model_type}."
        )
    rope = config.text_config.rope_parameters["rope_type"]
    if rope not in _ROPE_TYPES:
        raise CheckpointError(
            f"The original format knows the rope types {', '.join(_ROPE_TYPES)}; this model has {rope!r}."
        )
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise CheckpointError("The original format has projectors with GELU and biases only; this one has others.")
    if not isinstance(config, LlavaStfConfig):
        if not isinstance(config.vision_feature_layer, int):
            raise CheckpointError(
                "The original format of a plain LLaVA selects one hidden state; this one has several."
            )
        return
    if config.fusion != "stf":
        raise CheckpointError(
            f"A projector of kind '{config.fusion}' has no original format: the authors' code has no such model."
        )
    states, vision = config.fusion_states, config.vision_config
    if layers_of(len(states), vision.num_hidden_layers, states[0]) != states:
        raise CheckpointError(
            f"The original format stores no list of fusion layers, and {states} is not the one that its readers assume."
        )
    width = vision.hidden_size
    built_in = ([states[0], 21, 18, 15, 12, 9, 6, 3], 2, 4 * width, 16 * width)
    windows = config.fusion_windows or []
    if config.fusion_weight_window not in windows:
        raise CheckpointError(
            f"The original format has weights for {config.fusion_weight_window}x{config.fusion_weight_window} windows "
            f"alone, and this model was made for the windows {windows}."
        )
    if len(windows) > 1:
        state.notes.append(
            f"The authors' code fuses {config.fusion_weight_window}x{config.fusion_weight_window} windows alone; the "
            f"others of {windows} are left behind."
        )
    if (states, config.fusion_weight_window, config.fusion_block_hidden_size, config.fusion_hidden_size) != built_in:
        state.notes.append(
            f"The authors' code has fusion layers {built_in[0]}, 2x2 windows, widths {built_in[2]} and {built_in[3]} "
            "in its source; to run this model, change them there."
        )


def _config(state: CheckpointState, tower: str) -> dict[str, Any]:
    """config.json in the authors' words; nothing in it tells STF from a plain LLaVA-1.5."""
    config: LlavaConfig = state.config
    text = config.text_config
    rope = text.rope_parameters
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    layer = config.fusion_states[0] if isinstance(config, LlavaStfConfig) else config.vision_feature_layer
    pad = state.image_processor is not None and state.image_processor.to_dict().get("do_pad")
    return {
        **{name: getattr(text, name) for name in (*_LLAMA_FIELDS, *_OTHER_FIELDS) if hasattr(text, name)},
        "architectures": [_MODEL_TYPES[text.model_type][1]],
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad" if pad else "square",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_vision_select_layer": layer,
        "mm_vision_tower": tower,
        "model_type": _MODEL_TYPES[text.model_type][0],
        "pad_token_id": _PAD_ID,
        "rope_scaling": scaling,
        "rope_theta": rope["rope_theta"],
        "tokenizer_model_max_length": _max_length(state),
        "tokenizer_padding_side": "right",
        "torch_dtype": str(state.tensors[EMBEDDING].dtype).removeprefix("torch."),
        "transformers_version": "4.37.2",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "vocab_size": _rows(state),
        **(original_fields(config) if has_tiles(config) else {}),
    }


def _rows(state: CheckpointState) -> int:
    """Rows that the vocabulary has in the original format."""
    first: int = state.config.image_token_id
    if state.processor is None:
        return first
    placeholders = (state.processor.image_token, state.processor.tokenizer.pad_token, VIDEO_TOKEN)
    tokens = state.processor.tokenizer.get_vocab().items()
    text = (id_ for name, id_ in tokens if name not in placeholders and name != UNUSED_TOKEN.format(id_))
    return max(first, max(text) + 1)


def _max_length(state: CheckpointState) -> int:
    """The tokenizer's length limit where it has one (an enormous number means none), else the model's positions."""
    positions: int = state.config.text_config.max_position_embeddings
    return positions if state.processor is None else min(state.processor.tokenizer.model_max_length, positions)


def _write_tokenizer(state: CheckpointState, folder: Path) -> None:
    """The tokenizer with the tokens that have a row, those that fill up the vocabulary aside."""
    assert state.processor is not None
    tokenizer: PreTrainedTokenizerBase = state.processor.tokenizer
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    rows = _rows(state)
    data["added_tokens"] = [
        token
        for token in data["added_tokens"]
        if token["id"] < rows and token["content"] != UNUSED_TOKEN.format(token["id"])
    ]
    data["model"]["vocab"] = {token: number for token, number in data["model"]["vocab"].items() if number < rows}
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in data["added_tokens"]}
    if state.sentencepiece is not None:
        shutil.copyfile(state.sentencepiece, folder / "tokenizer.model")
    else:
        write_json(folder / "tokenizer.json", data)
        state.notes.append(
            "There was no tokenizer.model to write, and the authors' tools read no other tokenizer file: put that of "
            "the base model (Vicuna) beside the weights."
        )
    template = state.processor.chat_template
    if isinstance(template, str) and template != CHAT_TEMPLATE:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        state.notes.append(
            "The checkpoint has a chat template of its own, which is in chat_template.jinja: the authors' tools do not "
            "read it, tell them which conversation to use."
        )
    pre_tokenizer = data["pre_tokenizer"] or {}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer" if state.config.text_config.model_type == "qwen2" else "LlamaTokenizer",
            "legacy": pre_tokenizer.get("prepend_scheme") != "first",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "unk_token": tokenizer.unk_token,
            "pad_token": tokenizer.unk_token,
            "padding_side": "right",
            "model_max_length": _max_length(state),
            "clean_up_tokenization_spaces": False,
            "sp_model_kwargs": {},
            "added_tokens_decoder": added,
            **({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
        },
    )


def _write_tower(state: CheckpointState, folder: Path) -> None:
    """The tower as a model folder of its own."""
    folder.mkdir()
    vision, siglip = state.config.vision_config.to_dict(), state.config.vision_config.model_type == SIGLIP
    vision["num_hidden_layers"] += siglip  # its readers leave out the last block
    kind = "Siglip" if siglip else "CLIP"
    write_json(folder / "config.json", {**vision, "architectures": [f"{kind}VisionModel"]})
    if state.image_processor is not None:
        preprocessor = {**state.image_processor.to_dict(), "image_processor_type": f"{kind}ImageProcessor"}
        preprocessor.pop("do_pad", None)
        write_json(folder / "preprocessor_config.json", preprocessor)
    prefix = "vision_tower."
    save_shards(
        folder,
        {name.removeprefix(prefix): stored for name, stored in state.tensors.items() if name.startswith(prefix)},
    )
