"""OpenAI's routes, over real HTTP and mostly by OpenAI's own client, answer as the model does."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from llava_stf.inference import LlavaStf, user_turn
from llava_stf.loading import load_model
from llava_stf.models.llava_stf.conversation import SYSTEM_PROMPT
from llava_stf.serving.app import create_app
from llava_stf.serving.options import ServeOptions

from .conftest import QUESTION, Server, serving, turn, wait_for


def test_a_chat_gets_the_models_answer_and_its_usage(server: Server, llava: LlavaStf, images: list[np.ndarray]) -> None:
    for image in images:
        reply = server.openai().chat.completions.create(model="tiny", messages=[turn(QUESTION, image)])
        assert reply.choices[0].message.content == llava.ask(image, QUESTION)
        assert reply.choices[0].finish_reason == "stop"
        inputs = llava.encode([[{"role": "user", "content": f"<image>\n{QUESTION}"}]], [[_pil(image)]])
        assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
        assert reply.usage.prompt_tokens_details.image_tokens == llava.vision_tokens
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_joins_to_the_answer_and_ends_with_its_usage(
    server: Server, llava: LlavaStf, images: list[np.ndarray]
) -> None:
    question = "Describe the picture."
    stream = server.openai().chat.completions.create(
        model="tiny", messages=[turn(question, images[0])], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == llava.ask(images[0], question, max_new_tokens=512)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_has_none(server: Server, images: list[np.ndarray]) -> None:
    stream = server.openai().chat.completions.create(model="tiny", messages=[turn(QUESTION, images[0])], stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_a_conversation_goes_on(server: Server, llava: LlavaStf, images: list[np.ndarray]) -> None:
    chat = llava.chat(images[0])
    first = chat.ask(QUESTION)
    messages = [turn(QUESTION, images[0]), {"role": "assistant", "content": first}, turn("Is there a red circle?")]
    reply = server.chat(messages=messages).json()
    assert reply["choices"][0]["message"]["content"] == chat.ask("Is there a red circle?")


def test_several_images_and_markers_stand_where_the_client_put_them(
    server: Server, llava: LlavaStf, images: list[np.ndarray]
) -> None:
    for question in ("The same?", "First <image>, second <image>: the same?"):
        reply = server.chat(messages=[turn(question, *images[:2])], max_tokens=20).json()
        assert reply["choices"][0]["message"]["content"] == llava.ask(images[:2], question, max_new_tokens=20)
        assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 2 * llava.vision_tokens


def test_an_answer_ends_at_max_tokens(server: Server, llava: LlavaStf, images: list[np.ndarray]) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = server.chat(messages=[turn("Describe the picture.", images[0])], **{field: 1}).json()
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 1
        expected = llava.ask(images[0], "Describe the picture.", max_new_tokens=1)
        assert reply["choices"][0]["message"]["content"] == expected


def test_a_stop_string_ends_the_answer(server: Server, llava: LlavaStf, images: list[np.ndarray]) -> None:
    question = "Describe the picture."
    answer = llava.ask(images[0], question)
    stop = answer[len(answer) // 2 :][:3]
    for stops in (stop, [stop, "never said"]):
        reply = server.chat(messages=[turn(question, images[0])], stop=stops).json()
        assert reply["choices"][0]["message"]["content"] == answer[: answer.index(stop)].strip()
        assert reply["choices"][0]["finish_reason"] == "stop"


def test_a_seed_repeats_its_draws_and_others_differ(server: Server, images: list[np.ndarray]) -> None:
    def draw(seed: int) -> str:
        fields = {"messages": [turn("Describe the picture.", images[0])], "temperature": 2, "max_tokens": 30}
        return server.chat(seed=seed, **fields).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(4) as clients:
        first, other, again, _ = clients.map(draw, [1, 2, 1, 3])
    assert first == again != other


def test_a_completion_continues_the_prompt_as_it_is(server: Server, llava: LlavaStf) -> None:
    prompt = f"{SYSTEM_PROMPT} USER: Hello? ASSISTANT:"
    reply = server.openai().completions.create(model="tiny", prompt=prompt, max_tokens=20)
    assert reply.choices[0].text == llava.reply_batch([prompt], [[]], max_new_tokens=20)[0]
    stream = server.openai().completions.create(model="tiny", prompt=prompt, max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


def test_the_model_is_listed_with_its_limits(server: Server, llava: LlavaStf) -> None:
    (model,) = server.openai().models.list().data
    assert model.id == "tiny"
    assert model.max_model_len == llava.positions
    assert model.vision_tokens == [16, 64, 4]
    assert llava.vision_tokens == 16


def test_a_model_is_found_by_its_name_and_heads_are_answered(server: Server) -> None:
    assert server.openai().models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'owner/other' is not served here"):
        server.openai().models.retrieve("owner/other")
    for path in ("/health", "/v1/models", "/v1/models/tiny", "/metrics"):
        assert server.http.head(path).status_code == 200
        assert server.http.head(path).content == b""


def test_every_reply_has_the_id_of_its_request(server: Server) -> None:
    ids = {server.http.get(path).headers["x-request-id"] for path in ("/health", "/nothing", "/v1/models")}
    assert len(ids) == 3
    assert server.http.get("/health", headers={"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert server.http.get("/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("name", ["tiny-full", "plain"])
def test_the_first_request_costs_what_later_ones_do(name: str, plain_folder: str, images: list[np.ndarray]) -> None:
    llava = load_model(plain_folder, vision_tokens=[4, 1]) if name == "plain" else load_model(name)
    seen: list[tuple[int, bool]] = []
    with serving(create_app(llava, ServeOptions(max_new_tokens=1))) as server:
        generate = llava.generate
        llava.generate = lambda inputs, **options: seen.append(inputs["input_ids"].shape) or generate(inputs, **options)
        for _ in range(3):
            assert server.chat(messages=[turn("What?", images[0])]).status_code == 200
        assert server.metric("llava_stf_batch_size_count") == 3  # the warm-up is not counted
    assert len(seen) == 3


def test_health_and_metrics(server: Server, images: list[np.ndarray]) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    names = ("completion_tokens_total", "prompt_tokens_total", "image_tokens_total", "request_seconds_count")
    before = [server.metric(f"llava_stf_{name}") for name in names]
    usage = server.chat(messages=[turn(QUESTION, images[0])]).json()["usage"]
    grown = [server.metric(f"llava_stf_{name}") - value for name, value in zip(names, before, strict=True)]
    image_tokens = usage["prompt_tokens_details"]["image_tokens"]
    assert grown == [usage["completion_tokens"], usage["prompt_tokens"], image_tokens, 1]
    text = server.http.get("/metrics").text
    assert 'llava_stf_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "llava_stf_time_to_first_token_seconds_bucket" in text
    assert "llava_stf_queue_depth 0.0" in text


def test_fields_that_change_nothing_are_passed_over(server: Server, images: list[np.ndarray]) -> None:
    harmless = {"user": "me", "n": 1, "presence_penalty": 0, "tools": [], "logit_bias": None, "metadata": {"a": [1]}}
    assert server.chat(messages=[turn(QUESTION, images[0])], **harmless).status_code == 200


def test_a_request_chooses_among_the_models_counts(plain_folder: str, images: list[np.ndarray]) -> None:
    llava = load_model(plain_folder, vision_tokens=[4, 1])
    messages = [turn("What?", images[0])]
    with serving(create_app(llava, ServeOptions(max_new_tokens=4))) as server:
        for fields in ({"vision_tokens": 1}, {"mm_processor_kwargs": {"vision_tokens": 1}}):
            reply = server.chat(messages=messages, **fields).json()
            assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 1
            expected = llava.ask(images[0], "What?", vision_tokens=1, max_new_tokens=4)
            assert reply["choices"][0]["message"]["content"] == expected
        assert server.chat(messages=messages).json()["usage"]["prompt_tokens_details"]["image_tokens"] == 4
        refused = server.chat(messages=messages, vision_tokens=16)
        assert refused.status_code == 400
        assert "4 or 1" in refused.json()["error"]["message"]


def test_a_key_is_asked_for(llava: LlavaStf, images: list[np.ndarray]) -> None:
    with serving(create_app(llava, ServeOptions(served_name="tiny", api_key="sésame"))) as server:
        assert server.http.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            for path in ("/metrics", "/v1/models"):
                refused = server.http.get(path, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            server.openai("wrong").models.list()
        right = {"Authorization": "Bearer sésame".encode()}
        assert server.http.get("/v1/models", headers=right).status_code == 200
        assert server.http.get("/metrics", headers=right).status_code == 200
        # A body is not read before the key is known to be right.
        assert server.http.post("/v1/chat/completions", content=b"no JSON").status_code == 401
        wait_for(lambda: server.metric("llava_stf_requests_total", route="/v1/chat/completions", status="401") == 1)


@pytest.mark.parametrize("log_prompts", [True, False])
def test_texts_are_logged_only_where_that_is_asked_for(
    llava: LlavaStf, images: list[np.ndarray], caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    caplog.set_level("INFO")
    with serving(create_app(llava, ServeOptions(log_prompts=log_prompts))) as server:
        said = server.chat(messages=[turn("Describe the secret.", images[0])]).json()["choices"][0]["message"][
            "content"
        ]
        server.chat(messages=[turn("Describe the secret.", b"no image")])
        wait_for(lambda: "answered 1 images" in caplog.text)
        wait_for(lambda: not log_prompts or "secret" in caplog.text)
    assert ("secret" in caplog.text) == (repr(said) in caplog.text) == log_prompts
    assert "base64" not in caplog.text


def _pil(image: np.ndarray):
    from llava_stf.images import load_image

    return load_image(image)


def test_an_image_has_the_detail_that_is_asked_for_and_usage_says_what_it_got(plain_folder: str) -> None:
    llava = load_model(plain_folder, vision_tokens=[4, 16, 1], device="cpu")
    images = [np.full((*size, 3), 90, np.uint8) for size in ((10, 14), (300, 40), (28, 28))]

    def message(*details: str | None) -> dict[str, object]:
        asked = turn("What?", *images)
        for part, detail in zip(asked["content"], details, strict=False):
            part["image_url"]["detail"] = detail
        return asked

    def got(server: Server, *details: str | None, **fields: object) -> object:
        reply = server.chat(messages=[message(*details)], max_tokens=1, **fields).json()
        if "error" in reply:
            return reply["error"]["message"]
        found = reply["usage"]["prompt_tokens_details"]
        assert found["image_tokens"] == sum(found["vision_tokens"])
        return found["vision_tokens"]

    with serving(create_app(llava, ServeOptions(max_vision_tokens=40))) as server:
        assert got(server, "low", "high", None) == [1, 16, 4]
        assert got(server, "auto", "auto", "auto") == [1, 16, 4]
        assert got(server, "auto", "auto", "auto", max_vision_tokens=9) == [1, 4, 4]
        assert got(server, vision_tokens="auto") == [1, 16, 4]
        assert got(server, "auto", "auto", vision_tokens=4) == [4, 4, 4]
        assert "leave out one of them" in got(server, "low", vision_tokens=4)
        assert "may have 40" in got(server, "high", "high", "high")
        assert "detail" in got(server, "huge")


def test_what_was_read_before_is_not_read_again_and_usage_says_so(server: Server, images: list[np.ndarray]) -> None:
    messages = [turn("Is there a green circle?", images[3])]
    asked = {"max_tokens": 8}
    seen = []
    for question in ("How many shapes are there?", "And what is at the top?"):
        reply = server.chat(messages=messages, **asked).json()
        seen.append(reply["usage"])
        messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        messages.append({"role": "user", "content": question})
    again = server.chat(messages=messages[:1], **asked).json()["usage"]
    first, second = (usage["prompt_tokens_details"]["cached_tokens"] for usage in seen)
    assert first < second <= seen[1]["prompt_tokens"] - 1
    assert second >= seen[0]["prompt_tokens"] - 2
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1
    assert server.metric("llava_stf_cached_tokens_total") >= second


def test_edited_histories_of_many_clients_are_answered_as_alone_within_the_memory(
    stf_folder: str, images: list[np.ndarray]
) -> None:
    llava = load_model(stf_folder, device="cpu")
    app = create_app(llava, ServeOptions(max_batch=4, max_cache_bytes=600_000))
    prefixes = app.state.engine._batch._prefixes
    with serving(app) as server, ThreadPoolExecutor(6) as pool:

        def converse(client: int) -> list[tuple[list[object], str]]:
            messages, heard = [turn(f"Client {client}?", images[client % 3])], []
            for edit in range(3):
                reply = server.chat(messages=messages, max_tokens=4).json()
                heard.append((list(messages), reply["choices"][0]["message"]["content"]))
                said = heard[-1][1] if (client + edit) % 2 else "Something else."
                messages += [{"role": "assistant", "content": said}, turn(f"And {edit}?")]
            return heard

        heard = [each for client in pool.map(converse, range(6)) for each in client]
        assert 0 < prefixes.nbytes <= prefixes.limit
        assert llava.image_cache.nbytes <= 150_000
    for messages, answer in heard:
        history = [
            {"role": message["role"], "content": message["content"]}
            if isinstance(message["content"], str)
            else user_turn(message["content"][-1]["text"], len(message["content"]) - 1)
            for message in messages
        ]
        client = int(messages[0]["content"][-1]["text"].split()[1][0])
        assert answer == llava._answers(llava.encode([history], [[_pil(images[client % 3])]]), 4, {})[0]
