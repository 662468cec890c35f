r"""Put an untrained LLaVA-STF together from any vision tower and any causal language model.

    llava-stf assemble runs/untrained --vision-encoder openai/clip-vit-large-patch14-336 \
        --language-model lmsys/vicuna-7b-v1.5

The tower and the language model keep their weights, the projector is random: train it with stage `align` first. The
vocabulary gets `<image>` and `<pad>` behind its end, as in the llava-hf checkpoints, and before them what the v1 chat
format needs and the tokenizer does not have (`<s>`, `</s>`). A LLaVA can lend its language model, too; its vocabulary
then stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava_stf.conversion.locate import locate
from llava_stf.conversion.processors import add_placeholders, build_image_processor, build_processor
from llava_stf.errors import CheckpointError, FusionError, one_line
from llava_stf.io.publish import publish, refuse_existing
from llava_stf.loading import is_llava, load_model, read_config
from llava_stf.models.fusion.budget import resolve_window
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.llava_stf.conversation import END, IGNORE_INDEX, encode_conversation
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token
from llava_stf.models.vision.layers import select_strategy
from llava_stf.models.vision.towers import load_tower, special_tokens
from llava_stf.reduction.apply import apply_pooling, apply_stf

ROW_MULTIPLE = 64


def build_model(
    vision_tower: str | Path,
    language_model: str | Path,
    *,
    image_size: int | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A plain LLaVA (float32, on the CPU) with a random projector, and its processor; `apply_stf` makes it fuse.

    A plain LLaVA drops exactly one token of the tower. With a tower that has none before its patches, or registers, it
    cannot be asked about images as it is, which raises `ValueError`: `apply_stf` makes it right, or `keep_all_patches`.

    Args:
        vision_tower: folder or hub id of a Vision Transformer for square images, or of a whole model with one.
        language_model: folder or hub id of a causal language model with its tokenizer, or of a LLaVA.
        image_size: as in `load_tower`.
        attn_implementation: as in transformers.
        seed: of the projector and the new rows of the vocabulary.

    Raises:
        ModelNotFoundError: one of them is not there.
        CheckpointError: one of them cannot be loaded, or no LLaVA can be built on it.
        LlavaStfError: the tower's patch does not divide `image_size`.
    """
    tower_folder = locate(vision_tower)
    options: dict[str, Any] = {"dtype": torch.float32}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a pooling layer that the checkpoint lacks is drawn, and never used
        tower, preprocessor = load_tower(tower_folder, options, image_size=image_size)
    if tower.config.num_hidden_layers < 2:
        raise CheckpointError(f"{tower_folder} has a single block: a LLaVA reads the output of the last but one.")
    lm, tokenizer, image_token_id = _language_model(language_model, options, seed)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(lm.config, name, getattr(tokenizer, name))

    vision = tower.config
    config = LlavaConfig(
        vision_config=vision,
        text_config=lm.config,
        image_token_index=image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=lm.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in (projector.linear_1, projector.linear_2):
            layer.reset_parameters()
    model.model.vision_tower, model.model.language_model = tower, lm.base_model
    model.lm_head = lm.get_output_embeddings()
    _check_head(model, lm, language_model)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    image_processor = build_image_processor(preprocessor, vision.image_size, pad=True)
    return model.eval(), build_processor(config, image_processor, tokenizer)


def assemble(
    vision_tower: str | Path,
    language_model: str | Path,
    output: str | Path,
    *,
    vision_tokens: int | Literal["all"] | None = None,
    fusion_layers: list[int] | None = None,
    init: Literal["pool", "random"] = "random",
    image_size: int | None = None,
    seed: int = 0,
) -> Path:
    """Write the untrained model to the new folder `output`, which `load_model` and finetuning take.

    Args:
        vision_tower: as in `build_model`.
        language_model: as in `build_model`.
        image_size: as in `build_model`.
        output: folder to write; must not exist.
        seed: as in `build_model`.
        vision_tokens: as in `load_model`: nothing is a quarter of the patches.
        fusion_layers: hidden states that are fused, as in `apply_stf`; one alone is STF without the other depths.
        init: of the fused projector; `"pool"` starts as the mean over each window of a random plain projector.

    Raises:
        ModelNotFoundError: as `build_model`.
        CheckpointError: as `build_model`.
        FusionError: the grid cannot be brought to that count.
        LlavaStfError: `output` exists, or as `build_model`.
    """
    refuse_existing(Path(output))
    model, processor = build_model(vision_tower, language_model, image_size=image_size, seed=seed)
    window = resolve_window(model.config, vision_tokens)
    if window > 1:
        apply_stf(model, processor, window=window, fusion_layers=fusion_layers, init=init, seed=seed)
    elif fusion_layers is not None:
        raise FusionError("fusion_layers is for a fused projector, and at vision_tokens='all' there is none.")
    else:
        keep_all_patches(model, processor)
    with publish(Path(output)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(output)


def keep_all_patches(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Make a plain LLaVA give every patch of its tower, in place; what drops exactly its class token does already.

    Otherwise it becomes a LLaVA-STF with the plain projector and windows of a single patch.
    """
    drops_one = select_strategy(model.config) == "default"
    if drops_one and special_tokens(model.model.vision_tower) != 1:
        apply_pooling(model, processor, window=1)


def _language_model(
    name: str | Path, options: dict[str, Any], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """A causal language model, its tokenizer with `<image>` and `<pad>`, and the id of `<image>`."""
    if is_llava(name):
        return _language_model_of(name, options)
    folder = locate(name)
    lm = _load(folder, options)
    if lm.config.tie_word_embeddings and not hasattr(lm.base_model, "embed_tokens"):
        raise CheckpointError(
            f"{folder}: no LLaVA can be built on a {lm.config.model_type}, whose head is tied to embeddings that "
            "transformers' LLaVA does not know."
        )
    tokenizer = _tokenizer(folder)
    text_rows = max(len(tokenizer), lm.get_input_embeddings().num_embeddings)
    tokenizer = add_placeholders(tokenizer, text_rows, getattr(lm.config, "max_position_embeddings", None))
    _check_format(tokenizer, text_rows, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the new rows are drawn around the mean of the old ones
        lm.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROW_MULTIPLE)
    return lm, tokenizer, text_rows


def _language_model_of(
    llava: str | Path, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """The language model of a LLaVA, as `_language_model`."""
    fused = isinstance(read_config(llava), FusionConfig)
    model, processor = load_model(llava, vision_tokens=None if fused else "all", device="cpu", **options)
    if processor is None:
        raise CheckpointError(f"{llava} has no tokenizer, and without one its language model cannot be asked.")
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(lm, lm.base_model_prefix, model.model.language_model)
    lm.set_output_embeddings(model.lm_head)
    return lm.eval(), processor.tokenizer, model.config.image_token_index


def _load(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder)
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {one_line(error)}") from error
    raise CheckpointError(f"{folder} holds a {config.model_type}, which is no causal language model of transformers.")


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, which ends an answer with `</s>` and begins a prompt with some token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {one_line(error)}") from error
    if tokenizer.bos_token_id is None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    if tokenizer.eos_token != END:
        tokenizer.add_special_tokens({"eos_token": END})
    ensure_pad_token(tokenizer)
    return tokenizer


def _check_format(tokenizer: PreTrainedTokenizerBase, image_token_id: int, folder: Path) -> None:
    """Raise `CheckpointError` if labels of the v1 chat format would not be the answers with this tokenizer."""
    answers = ["It is red.", "No, two."]
    turns = [
        turn
        for question, answer in zip(("<image>\nWhat colour?", "One?"), answers, strict=True)
        for turn in ({"from": "human", "value": question}, {"from": "gpt", "value": answer})
    ]
    _, labels = encode_conversation(tokenizer, turns, template="v1", image_token_id=image_token_id)
    learnt = tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    expected = "".join(answer + END for answer in answers)
    if learnt.replace(" ", "") != expected.replace(" ", ""):
        raise CheckpointError(f"{folder}: the v1 chat format cannot be trained with this tokenizer.")


@torch.inference_mode()
def _check_head(model: LlavaForConditionalGeneration, lm: PreTrainedModel, folder: str | Path) -> None:
    """Raise `CheckpointError` if the language model does more to its logits than LLaVA does, one linear layer."""
    ids = torch.arange(1, 5)[None]
    if not torch.allclose(model(input_ids=ids).logits, lm(input_ids=ids).logits, rtol=1e-4, atol=1e-4):
        raise CheckpointError(
            f"{folder}: no LLaVA can be built on a {lm.config.model_type} like this one, whose logits are more than a "
            "linear layer of its last state."
        )
