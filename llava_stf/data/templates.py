"""Conversations in the chat template that a model is asked with: which one is trained on, token ids and labels.

LLaVA-1.5 has one prompt, v1, whose labels `llava_stf.models.llava_stf.conversation` tells as LLaVA's own training does.
Other models bring a template of their own. Its answers are found by rendering the conversation up to each of them, as
for an answer, so that labels begin where `generate` begins, and end with the token that ends an answer there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from llava_stf.errors import PromptError
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN
from llava_stf.models.llava_stf.conversation import (
    CHAT_TEMPLATE,
    IGNORE_INDEX,
    checked_turns,
    controls_of,
    render_chat,
)
from llava_stf.models.llava_stf.quoting import OPEN, quote

if TYPE_CHECKING:
    from transformers import ProcessorMixin

Template = Literal["v1", "chat", "plain"]


def template_of(processor: ProcessorMixin) -> Template:
    """How conversations are written for this processor's model in training: `"chat"` is by its own chat template.

    `"v1"` where that gives v1's prompt, where there is none, and where it cannot be trained on: it refuses a plain
    conversation, or no token ends its answers, as in some published templates, which serve for asking alone.
    """
    if gives_v1(processor) or not isinstance(processor.chat_template, str) or not hasattr(processor, "prompt_ids"):
        return "v1"
    try:
        _, labels = encode_chat(processor, _EXAMPLE)
    except PromptError:
        return "v1"
    learnt = sum(label == IGNORE_INDEX != following for label, following in pairwise(labels))
    return "chat" if learnt == len(_EXAMPLE) // 2 else "v1"


def gives_v1(processor: ProcessorMixin) -> bool:
    """Whether the processor's chat template gives the v1 prompt."""
    if not isinstance(processor.chat_template, str):
        return False
    messages = _messages(checked_turns(_EXAMPLE[:3]))
    v1 = processor.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True)
    try:
        return render_chat(processor, messages) == v1
    except PromptError:
        return False


def encode_chat(processor: ProcessorMixin, conversation: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of one LLaVA conversation, a list of `{"from": "human" | "gpt", "value": text}`.

    Image markers are moved to the front of their turn. One id stands for each image. Labels are -100 everywhere but at
    the answers and what ends them. What stands before an answer is what the template writes where it asks for one, also
    if it writes a past answer with another begin, as LLaVA-OneVision's does.

    Raises:
        DataError: the turns do not alternate human, gpt, or one is no valid Unicode text.
        PromptError: the template refuses the conversation.
    """
    turns = checked_turns(conversation)
    messages = _messages(turns)
    controls = controls_of(processor)
    control = re.compile(rf"(?<!{OPEN})(?:{controls.pattern})")
    closing = re.compile(rf"\s*{control.pattern}")
    whole = render_chat(processor, messages, add_generation_prompt=False)
    text, done, spans = "", 0, []
    for number, (speaker, said) in enumerate(turns):
        if speaker == "human" or not said.strip():
            continue
        before = render_chat(processor, messages[:number], add_generation_prompt=False)
        asked = render_chat(processor, messages[:number])
        answer = quote(said, controls).strip()
        begin = whole.find(answer, len(before))
        end = closing.match(whole, begin + len(answer))
        if begin < 0 or end is None or not (whole.startswith(before) and asked.startswith(before)):
            continue
        head, generated = whole[len(before) : begin], asked[len(before) :]
        if control.findall(head) != control.findall(generated):
            continue
        text += whole[done : len(before)] + generated
        first = len(text)
        text += (head[len(generated) :] if head.startswith(generated) else "") + whole[begin : end.end()]
        spans.append((first, len(text)))
        done = end.end()
    ids = _ids(processor, text + whole[done:])
    labels = [IGNORE_INDEX] * len(ids)
    for span in spans:
        first, last = (_shared(_ids(processor, text[:stop]), ids) for stop in span)
        labels[first:last] = ids[first:last]
    return ids, labels


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Turns in Hugging Face's form."""
    messages = []
    for speaker, text in turns:
        images = text.count(IMAGE_TOKEN) if speaker == "human" else 0
        content: list[dict[str, str]] = [{"type": "image"}] * images
        content = [*content, {"type": "text", "text": text.replace(IMAGE_TOKEN, "").strip() if images else text}]
        messages.append({"role": "user" if speaker == "human" else "assistant", "content": content})
    return messages


def _ids(processor: Any, text: str) -> list[int]:
    return processor.prompt_ids(text, [1] * text.count(IMAGE_TOKEN))


def _shared(first: list[int], second: list[int]) -> int:
    """How many ids two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


_EXAMPLE = [
    {"from": "human", "value": f"{IMAGE_TOKEN}\nWhat is it?"},
    {"from": "gpt", "value": "A bus."},
    {"from": "human", "value": "And its colour?"},
    {"from": "gpt", "value": "Red."},
]
