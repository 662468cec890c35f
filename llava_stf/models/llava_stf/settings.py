"""What config.json and generation_config.json say of generation: values of the right kinds, ids that exist.

Libraries wrote "no such token" as null, as -1 and as a number behind the vocabulary. Here an id that the model has no
row for is none, and where no end token is left an answer ends at the tokenizer's, as it would never end otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava_stf.errors import CheckpointError

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id")


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _are_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return texts != [] and all(isinstance(text, str) and text for text in texts)


# In words what a value must be if it is not null, how that is told, and of which fields.
_KINDS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "an id": (_is_whole, ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")),
    "an id or a list of ids": (lambda it: _is_whole(it) or _are_ids(it), ("eos_token_id", "forced_eos_token_id")),
    "a list of ids": (_are_ids, ("suppress_tokens", "begin_suppress_tokens")),
    "a list of lists of ids": (
        lambda it: isinstance(it, list) and it != [] and all(map(_are_ids, it)),
        ("bad_words_ids",),
    ),
    "a text or a list of texts": (_are_texts, ("stop_strings",)),
    "a positive whole number": (
        lambda it: _is_whole(it) and it > 0,
        ("num_beams", "num_return_sequences", "max_new_tokens", "prompt_lookup_num_tokens"),
    ),
    "a whole number": (_is_whole, ("top_k", "max_length", "min_length", "min_new_tokens", "no_repeat_ngram_size")),
    "a positive number": (lambda it: _is_number(it) and it > 0, ("repetition_penalty",)),
    "a number": (_is_number, ("temperature", "top_p", "min_p", "guidance_scale", "length_penalty", "max_time")),
    "true or false": (
        lambda it: isinstance(it, bool),
        ("do_sample", "use_cache", "output_hidden_states", "output_attentions", "return_dict_in_generate"),
    ),
    "an object": (lambda it: isinstance(it, dict), ("watermarking_config",)),
    "null, as transformers 5 does not generate so": (
        lambda it: it == 0 and not isinstance(it, bool),  # as other versions wrote that nothing is asked for
        ("penalty_alpha", "constraints", "force_words_ids", "dola_layers"),
    ),
    "1, as transformers 5 has no groups of beams": (lambda it: it == 1, ("num_beam_groups",)),
}


def check_settings(file: Path, values: dict[str, Any]) -> None:
    """Check the kinds of the values that a config.json or generation_config.json has.

    Raises:
        CheckpointError: one is of another kind.
    """
    for kind, (fits, names) in _KINDS.items():
        for name in names:
            value = values.get(name)
            if value is not None and not fits(value):
                raise CheckpointError(f"{file}: {name} must be {kind}, found {value!r}.")


def drop_absent_ids(settings: Any, rows: int) -> None:
    """Make ids that no row of the vocabulary has none, in a config or generation config of checked kinds."""
    for name in _IDS:
        found = getattr(settings, name, None)
        if isinstance(found, list):
            setattr(settings, name, [id_ for id_ in found if 0 <= id_ < rows] or None)
        elif found is not None and not 0 <= found < rows:
            setattr(settings, name, None)


def settle_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Bring the generation settings of a loaded model, of checked kinds, to what can be generated with.

    Args:
        model: a LLaVA, of which `generation_config` is changed.
        tokenizer: gives the end and pad token where the settings name none; `None` leaves those of the config.
    """
    settings, config = model.generation_config, model.config
    drop_absent_ids(settings, config.text_config.vocab_size)
    for name in ("eos_token_id", "pad_token_id"):
        for owner in (tokenizer, config, config.text_config):
            if getattr(settings, name) is None:
                setattr(settings, name, getattr(owner, name, None))
    if settings.repetition_penalty is not None:
        settings.repetition_penalty = float(settings.repetition_penalty)  # transformers takes no whole number
