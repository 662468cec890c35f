"""Conversations as LLaVA-1.5 was trained on them: prompt text, token ids and labels.

Two templates. `v1` (Vicuna) is the chat format of instruction tuning and of inference; `plain` is the caption format
of alignment. In both, text is tokenised in the chunks of `llava_stf.models.llava_stf.chunks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from llava_stf.errors import DataError, PromptError
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN, join_chunks, tokenize_chunks, tokenize_texts
from llava_stf.models.llava_stf.quoting import OPEN, control_pattern, quote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

IGNORE_INDEX = -100
END = "</s>"
NO_CONTROLS = re.compile("(?!)")
ANSWER_TAG = " ASSISTANT: "
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# Messages in Hugging Face's form -> the v1 prompt. A message's images come first, each followed by a newline.
CHAT_TEMPLATE = (
    "{%- macro render(content) -%}"
    "{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for item in content if item['type'] == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}"
    "{%- for item in content if item['type'] == 'text' -%}"
    "{{- item['text'] -}}{%- if not loop.last -%}{{- '\n' -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{{- render(messages[0]['content']) + ' ' -}}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    '{{- "' + SYSTEM_PROMPT + ' " -}}{%- set turns = messages -%}'
    "{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if message['role'] == 'user' -%}{{- 'USER: ' + render(message['content']) + ' ' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'ASSISTANT: ' + render(message['content']) + '</s>' -}}"
    "{%- else -%}{{- raise_exception('the v1 template knows the roles system (first), user and assistant, not '"
    " + message['role']) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


def render_chat(
    processor: ProcessorMixin, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
) -> str:
    """The prompt of these messages by the processor's chat template, up to where the assistant answers.

    What a message says is text: a control token in it (`</s>`, or any special token that the template writes itself) is
    quoted, and `tokenize_chunks` gives it the ids of its characters. Image markers stay markers.

    Args:
        processor: with a tokenizer and a chat template.
        messages: in Hugging Face's form.
        add_generation_prompt: whether an answer comes next; without it the prompt ends with the last message.

    Raises:
        PromptError: there is no template, it refuses the messages, or one is no valid Unicode text.
    """
    if not processor.chat_template:
        raise PromptError("This checkpoint has no chat template; give a prompt as the model is to read it, or set one.")
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise PromptError("A conversation is one message or more, each with a role and a content.")
    controls = controls_of(processor)
    try:
        quoted = [{**message, "content": _quote_content(message.get("content"), controls)} for message in messages]
        return processor.apply_chat_template(quoted, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise PromptError(f"The model's chat template refuses these messages: {error}.") from error
    except UnicodeEncodeError as error:
        raise PromptError(f"A message is no valid Unicode text: {error.reason}.") from error


def controls_of(processor: ProcessorMixin) -> re.Pattern[str]:
    """The control tokens of prompts by a processor's chat template, its markers of images and videos being none."""
    marker = getattr(processor, "video_token", None)
    return control_pattern(processor.tokenizer, str(processor.chat_template), {IMAGE_TOKEN, marker})


def _quote_content(content: Any, controls: re.Pattern[str]) -> Any:
    if isinstance(content, str):
        return quote(content, controls)
    if not isinstance(content, Sequence):
        raise PromptError(f"The content of a message is a text or a list of parts, found {type(content).__name__}.")
    return [_quote_part(part, controls) for part in content]


def _quote_part(part: Any, controls: re.Pattern[str]) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None or (kind == "text" and not isinstance(part.get("text"), str)):
        raise PromptError(
            f"A part of a message is {{'type': 'image'}} or {{'type': 'text', 'text': ...}}, found {part!r:.200}."
        )
    return {**part, "text": quote(part["text"], controls)} if kind == "text" else part


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Mapping[str, str]],
    *,
    template: Literal["v1", "plain"],
    image_token_id: int,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one LLaVA conversation, a list of `{"from": "human" | "gpt", "value": text}`.

    Image markers are moved to the front of their turn. One id stands for each image. Labels are -100 everywhere but at
    the answers and their `</s>` (v1), or the caption and its newline (plain, which throws the human text away). Where
    the rounds of a v1 conversation, tokenised one by one, do not add up to its ids (an answer that quotes the
    assistant tag, a last question without answer), every label is -100, as in LLaVA's own training.

    Raises:
        DataError: the turns do not alternate human, gpt; one is no valid Unicode text; or a plain sample is not one
            image and one caption.
    """
    turns = checked_turns(conversation, control_pattern(tokenizer, END, {IMAGE_TOKEN}))
    if template == "plain":
        return _encode_plain(tokenizer, turns, image_token_id)
    return _encode_v1(tokenizer, render_v1(turns), image_token_id)


def images_first(text: str) -> str:
    """The turn with its image markers in front, each followed by a newline; a turn without any as it is."""
    count = text.count(IMAGE_TOKEN)
    if not count:
        return text
    return (f"{IMAGE_TOKEN}\n" * count + text.replace(IMAGE_TOKEN, "").strip()).strip()


def render_v1(turns: Sequence[tuple[str, str]]) -> str:
    """The v1 text of alternating ("human" | "gpt", text) turns, answers closed by `</s>`."""
    text = f"{SYSTEM_PROMPT} "
    for speaker, value in turns:
        tag, end = ("USER:", " ") if speaker == "human" else ("ASSISTANT:", END)
        text += f"{tag} {value}{end}" if value else tag
    return text


def checked_turns(
    conversation: Sequence[Mapping[str, str]], controls: re.Pattern[str] = NO_CONTROLS
) -> list[tuple[str, str]]:
    """(speaker, text) pairs that begin with a human turn (an opening gpt turn is dropped) and alternate.

    The control tokens in the texts are quoted, and image markers stand first.

    Raises:
        DataError: they do not alternate, or one is no valid Unicode text.
    """
    try:
        turns = [(turn["from"], quote(images_first(turn["value"]), controls)) for turn in conversation]
    except UnicodeEncodeError as error:
        raise DataError(f"a turn is no valid Unicode text: {error.reason}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"every turn must be an object with the texts 'from' and 'value', found {conversation!r:.200}"
        ) from error
    turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
    speakers = [speaker for speaker, _ in turns]
    if not turns or speakers != [("human", "gpt")[i % 2] for i in range(len(turns))]:
        raise DataError(
            f"the turns must alternate human, gpt, human, ..., found {', '.join(map(str, speakers)) or 'none'}"
        )
    return turns


def _encode_plain(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], image_token_id: int
) -> tuple[list[int], list[int]]:
    if len(turns) != 2 or turns[0][1].count(IMAGE_TOKEN) != 1:
        raise DataError(
            f"the plain template needs one human turn with one {IMAGE_TOKEN} and one gpt caption, found {len(turns)} "
            f"turns with {turns[0][1].count(IMAGE_TOKEN)} markers in the first"
        )
    ids = tokenize_chunks(tokenizer, f"{IMAGE_TOKEN}{turns[1][1]}\n", image_token_id=image_token_id)
    prompt_length = ids.index(image_token_id) + 1
    return ids, [IGNORE_INDEX] * prompt_length + ids[prompt_length:]


def _encode_v1(tokenizer: PreTrainedTokenizerBase, text: str, image_token_id: int) -> tuple[list[int], list[int]]:
    """Ids and labels of a v1 text; the lengths of a round and of its instruction come from tokenising them alone."""
    rounds = [piece for piece in re.split(rf"(?<!{OPEN}){END}", text) if piece]
    instructions = [piece.split(ANSWER_TAG)[0] + ANSWER_TAG for piece in rounds]
    texts = [text, *rounds, *instructions]
    split_texts = [piece.split(IMAGE_TOKEN) for piece in texts]
    tag, tag_behind_end, *chunks = tokenize_texts(
        tokenizer, ["USER:", f"{END}USER:", *(chunk for split in split_texts for chunk in split)]
    )
    # A non-legacy LLaMA tokenizer starts a round that follows `</s>` with one piece less than a round on its own.
    saved = len(tag) + 1 - len(tag_behind_end)
    encoded, start, bos = [], 0, tokenizer.bos_token_id
    for split in split_texts:
        encoded.append(join_chunks(chunks[start : start + len(split)], [image_token_id] * (len(split) - 1), bos))
        start += len(split)
    ids, round_ids, instruction_ids = encoded[0], encoded[1 : len(rounds) + 1], encoded[len(rounds) + 1 :]

    labels = [IGNORE_INDEX] * len(ids)
    position = 1
    for i, piece in enumerate(rounds):
        if piece.count(ANSWER_TAG) != 1:
            break
        shift = saved if i else 0
        end = position + len(round_ids[i]) - shift
        answer = position + len(instruction_ids[i]) - 2 - shift
        labels[answer:end] = ids[answer:end]
        position = end
    return ids, labels if position == len(ids) else [IGNORE_INDEX] * len(ids)
