"""Bodies after OpenAI's published schema, and cut from it: an answer that obeys, or 4xx with a sentence."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_stf.inference import LlavaStf

from .conftest import QUESTION, Server, data_url, turn

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
fuzz = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

SCHEMA = {"type": "object"}
# What changes the answer and is not obeyed here: OpenAI's own, and what vLLM, SGLang, Ollama and transformers take.
CONSTRAINTS: dict[str, Any] = {
    "allowed_token_ids": [5],
    "audio": {"voice": "alloy", "format": "wav"},
    "bad_words": ["red"],
    "best_of": 2,
    "chat_template": "x",
    "chat_template_kwargs": {"enable_thinking": True},
    "continue_final_message": True,
    "echo": True,
    "ebnf": "root ::= 'a'",
    "format": "json",
    "frequency_penalty": 0.5,
    "functions": [{"name": "f"}],
    "grammar": "root ::= 'a'",
    "guided_choice": ["yes", "no"],
    "guided_grammar": "root ::= 'a'",
    "guided_json": SCHEMA,
    "guided_regex": "a+",
    "image": "QUJD",
    "images": ["QUJD"],
    "include_stop_str_in_output": True,
    "json_schema": SCHEMA,
    "length_penalty": 2.0,
    "logit_bias": {"5": 100},
    "logits_processors": ["x"],
    "logprobs": True,
    "min_p": 0.5,
    "min_tokens": 5,
    "mm_data": {"image": "QUJD"},
    "modalities": ["text", "audio"],
    "multi_modal_data": {"image": "QUJD"},
    "n": 2,
    "options": {"num_predict": 3},
    "presence_penalty": -0.5,
    "prompt_logprobs": 1,
    "reasoning_effort": "high",
    "regex": "a+",
    "repetition_penalty": 1.3,
    "response_format": {"type": "json_object"},
    "skip_special_tokens": False,
    "stop_token_ids": [5],
    "structured_outputs": {"choice": ["yes", "no"]},
    "system": "Obey.",
    "thinking": {"type": "enabled"},
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_k": 1,
    "top_logprobs": 3,
    "truncate_prompt_tokens": 5,
    "use_beam_search": True,
    "verbosity": "low",
    "web_search_options": {},
}
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "functions": [], "guided_decoding_backend": "auto", "logit_bias": {}, "logprobs": False,
    "metadata": {"a": "b"}, "modalities": ["text"], "n": 1, "parallel_tool_calls": True, "presence_penalty": 0.0,
    "prompt_cache_key": "k", "response_format": {"type": "text"}, "safety_identifier": "s", "service_tier": "auto",
    "store": False, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "user": "me", "verbosity": "medium",
    "stream_options": {"include_usage": True, "include_obfuscation": False},
}  # fmt: skip
NULLABLE = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "stream", "stream_options", *NEUTRAL
)  # fmt: skip

texts = st.text(st.characters(), max_size=20)  # lone surrogates among them
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
sampling = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([None, 0, 0.0, 0.7, 2]),
        "top_p": st.sampled_from([None, 0.1, 1]),
        "seed": st.sampled_from([None, 0, -5, 2**63 - 1]),
        "stop": st.sampled_from([None, "e", ["e", "a"], "\n"]),
        "stream": st.sampled_from([None, False, True]),
        "max_tokens": st.integers(1, 6),
    },
)
harmless = st.lists(st.sampled_from(sorted(NEUTRAL)), unique=True, max_size=6).map(
    lambda names: {name: NEUTRAL[name] for name in names}
)
nulls = st.lists(st.sampled_from(NULLABLE), unique=True, max_size=4).map(dict.fromkeys)


def post(server: Server, body: Any, path: str = CHAT) -> httpx.Response:
    """Sent as it is, surrogates escaped and NaN included."""
    return server.http.post(path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def check_refusal(reply: httpx.Response) -> None:
    assert 400 <= reply.status_code < 500, reply.text
    error = reply.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"].endswith(".")
    assert len(error["message"]) < 600


def answer_of(reply: httpx.Response, body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Text and usage of a whole or streamed answer, of the right shape."""
    if not body.get("stream"):
        (choice,) = reply.json()["choices"]
        return choice["message"]["content"] if "message" in choice else choice["text"], reply.json()["usage"]
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return said, chunks[-1].get("usage")


@fuzz
@given(fields=sampling, extra=harmless, null=nulls, count=st.integers(0, 2))
def test_what_can_be_obeyed_is_obeyed(
    server: Server,
    llava: LlavaStf,
    images: list[np.ndarray],
    fields: dict[str, Any],
    extra: dict[str, Any],
    null: dict[str, None],
    count: int,
) -> None:
    body = {"max_tokens": 4, "messages": [turn(QUESTION, *images[:count])], **extra, **null, **fields}
    reply = post(server, body)
    assert reply.status_code == 200, reply.text
    said, usage = answer_of(reply, body)
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    assert not any(stop in said for stop in stops)
    if usage is not None:
        assert usage["prompt_tokens_details"]["image_tokens"] == count * llava.vision_tokens
        assert usage["completion_tokens"] <= (body["max_tokens"] or 512)
    if not stops and not body.get("temperature") and body["max_tokens"]:
        expected = llava.reply_batch(
            [_as_huggingface(count)], [[_rgb(image) for image in images[:count]]], max_new_tokens=body["max_tokens"]
        )
        assert said == expected[0]


def _as_huggingface(count: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*[{"type": "image"}] * count, {"type": "text", "text": QUESTION}]}]


def _rgb(image: np.ndarray) -> Any:
    from llava_stf.images import load_image

    return load_image(image)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_cannot_be_obeyed_is_refused(server: Server, name: str) -> None:
    for path, body in ((CHAT, {"messages": [turn("Hi?")]}), (COMPLETIONS, {"prompt": "Hi"})):
        reply = post(server, {**body, "max_tokens": 2, name: CONSTRAINTS[name]}, path)
        check_refusal(reply)
        assert reply.json()["error"]["param"] == name
        assert name in reply.json()["error"]["message"]


IMAGE_PLACES = {
    "a message's images": {"role": "user", "content": QUESTION, "images": ["QUJD"]},
    "image_url in a text part": {"role": "user", "content": [{"type": "text", "text": QUESTION, "image_url": "x"}]},
    "text in an image part": {"role": "user", "content": [{"type": "image_url", "image_url": "x", "text": "a"}]},
    "Anthropic's part": {"role": "user", "content": [{"type": "image", "source": {"data": "QUJD"}}]},
    "Hugging Face's part": {"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "a"}]},
    "the responses API's part": {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
    "a file": {"role": "user", "content": [{"type": "file", "file": {"file_data": "QUJD"}}]},
    "pixels of another model": {
        "role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "max_pixels": 5}}]
    },
    "a tool's answer": {"role": "tool", "content": "a", "tool_call_id": "x"},
    "a call of a tool": {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
    "a prefix": {"role": "assistant", "content": "It is", "prefix": True},
}  # fmt: skip


@pytest.mark.parametrize("place", IMAGE_PLACES)
def test_what_stands_in_other_clients_places_is_not_passed_over(server: Server, place: str) -> None:
    check_refusal(post(server, {"messages": [IMAGE_PLACES[place]], "max_tokens": 2}))


def test_an_answer_can_be_sent_back_as_it_came(server: Server, images: list[np.ndarray]) -> None:
    """OpenAI's client writes its message with every field that there is."""
    client, messages = server.openai(), [turn(QUESTION, images[0])]
    answer = client.chat.completions.create(model="tiny", messages=messages).choices[0].message
    messages += [answer.model_dump(), turn("And now?")]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices[0].message.content


PLACES: list[tuple[Any, ...]] = [
    ("messages",), ("messages", 0), ("messages", 0, "role"), ("messages", 0, "content"), ("messages", 0, "content", 0),
    ("messages", 0, "content", 0, "type"), ("messages", 0, "content", 0, "image_url"),
    ("messages", 0, "content", 0, "image_url", "url"), ("messages", 0, "content", 0, "image_url", "detail"),
    ("messages", 0, "content", 1, "text"), ("messages", 0, "name"), ("messages", 0, "extra"),
    *((name,) for name in (*CONSTRAINTS, *NULLABLE, "model", "vision_tokens", "mm_processor_kwargs", "prompt")),
]  # fmt: skip


@settings(fuzz, max_examples=300)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=3))
def test_bodies_cut_from_the_schema_are_answered_or_refused(
    server: Server, images: list[np.ndarray], changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    body: Any = {"max_tokens": 1, "messages": [turn(QUESTION, data_url(images[0]))]}
    for path, value in changes:
        at = body
        try:
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
        except (TypeError, KeyError, IndexError):
            continue
    reply = post(server, body)
    if reply.status_code != 200:
        check_refusal(reply)
    else:
        assert not any(body.get(name) == value for name, value in CONSTRAINTS.items() if name in body)


@fuzz
@given(prompt=values, extra=st.dictionaries(st.sampled_from(sorted(CONSTRAINTS)), values, max_size=2))
def test_completions_are_given_or_refused(server: Server, prompt: Any, extra: dict[str, Any]) -> None:
    reply = post(server, {"prompt": prompt, "max_tokens": 1, **extra}, COMPLETIONS)
    if reply.status_code != 200:
        check_refusal(reply)
