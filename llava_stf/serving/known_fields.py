"""Which fields of OpenAI's and vLLM's requests are passed over, and which are refused since they change the answer."""

from __future__ import annotations

import json
from typing import Any

from llava_stf.serving.errors import RequestError

# Fields that change no answer of this server: who asks, how it is billed, cached, logged or hurried.
HARMLESS = frozenset((
    "cache_salt", "guided_decoding_backend", "metadata", "parallel_tool_calls", "prediction", "priority",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "request_id", "safety_identifier",
    "service_tier", "store", "user",
))  # fmt: skip
# Fields that change the answer, and the values with which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "continuous_usage_stats": (False,),
    "detokenize": (True,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "images": ([],),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "num_beams": (1,),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}


def refuse_unknown(fields: Any, known: frozenset[str], place: str) -> None:
    """Check that an object of a body has no field that may change the answer and cannot be obeyed.

    Args:
        fields: the object; what is none is let through.
        known: names that are obeyed, or change nothing.
        place: of the object in the body, before a name.

    Raises:
        RequestError: it has one.
    """
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if name in known or value is None or any(_same(value, neutral) for neutral in _NEUTRAL.get(name, ())):
            continue
        what = f"{place}{name:.60}"
        if name in _NEUTRAL and not place:
            said = f"{what}: {json.dumps(value):.80} is not supported by this server; leave the field out."
        else:
            said = f"{what}: this server does not know the field, which may change the answer; leave it out."
        raise RequestError(said, param=what)


def _same(value: Any, neutral: Any) -> bool:
    """Whether both are equal and of one kind: false is no 0."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
