"""Which ids of a LLaVA are text, and so may be generated.

Behind the words of a LLaVA's vocabulary stand the image placeholder, a pad token, rows that only fill the matrices up,
and whatever tokens a user added, in any order. The config tells the first two; which rows have a token only the
tokenizer can tell, as it is at the moment of asking, since tokens may be added to it at any time. So nothing about rows
is written into a config or a generation config, where it would become wrong silently: whoever has the tokenizer passes
it to `suppressed_ids`, and a model that stands beside one remembers it (`remember_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llava_stf.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import GenerationConfig, LlavaConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

_PROCESSOR = "_processor_beside"


def suppressed_ids(config: LlavaConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
    """Ids that are no text: image and video placeholders, the pad id, and the rows that the tokenizer has no token for.

    Args:
        config: of the model.
        tokenizer: of the model; without it no row counts as one without a token.

    Returns:
        The ids in rising order. A pad id that also ends an answer is not among them.
    """
    rows: int = config.text_config.vocab_size
    places = {config.image_token_id, getattr(config, "video_token_id", None)}
    ids = {*places, _pad_id(config, tokenizer)} - _end_ids(config, tokenizer)
    if tokenizer is not None:
        ids |= _rows_without_token(tokenizer, len(tokenizer), rows)
    return sorted(id_ for id_ in ids if id_ is not None and 0 <= id_ < rows)


def with_suppressed(
    options: dict[str, Any],
    generation_config: GenerationConfig,
    config: LlavaConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[int]:
    """`suppress_tokens` for a call of `generate`: what the caller or else the model's settings ask for, and no text.

    Args:
        options: keywords of the call.
        generation_config: the model's own, which counts where the call brings none.
        config: see `suppressed_ids`.
        tokenizer: see `suppressed_ids`.
    """
    settings = options.get("generation_config") or generation_config
    asked: Iterable[int] = options.get("suppress_tokens") or settings.suppress_tokens or ()
    return sorted({*asked, *suppressed_ids(config, tokenizer)})


def remember_tokenizer(model: PreTrainedModel, processor: ProcessorMixin | None) -> None:
    """Let a model know the processor beside it, whose tokenizer tells which of the model's rows have a token.

    `None` lets it forget.
    """
    if processor is None:
        vars(model).pop(_PROCESSOR, None)
    else:
        setattr(model, _PROCESSOR, processor)


def processor_beside(model: PreTrainedModel) -> ProcessorMixin | None:
    """The processor that `remember_tokenizer` showed to the model."""
    return vars(model).get(_PROCESSOR)


def tokenizer_beside(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer that `remember_tokenizer` showed to the model, as it is now."""
    return getattr(processor_beside(model), "tokenizer", None)


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a pad token the one that LLaVA pads with: `<unk>`, or the end token where there is none.

    Padding is masked, in attention and in labels, so that the choice changes no answer and no loss.

    Raises:
        CheckpointError: the tokenizer has neither.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointError(
            f"The tokenizer {tokenizer.name_or_path} has no pad, unknown or end token, and prompts of several lengths "
            "need one; set pad_token in tokenizer_config.json."
        )


def _pad_id(config: LlavaConfig, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    own = getattr(config, "pad_token_id", None)
    return own if own is not None else getattr(config.text_config, "pad_token_id", None)


def _end_ids(config: LlavaConfig, tokenizer: PreTrainedTokenizerBase | None) -> set[int | None]:
    ends: list[Any] = [config.text_config.eos_token_id, getattr(config, "eos_token_id", None)]
    if tokenizer is not None:
        ends.append(tokenizer.eos_token_id)
    return {id_ for end in ends for id_ in (end if isinstance(end, list) else [end])}


@lru_cache(maxsize=4)
def _rows_without_token(tokenizer: PreTrainedTokenizerBase, tokens: int, rows: int) -> frozenset[int]:
    """`tokens` is the tokenizer's length, which tells an answer from one before tokens were added."""
    return frozenset(range(rows)).difference(tokenizer.get_vocab().values())
