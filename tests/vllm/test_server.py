"""`vllm serve` on the embedded model, asked by the public OpenAI client: the ids of transformers, and no harm done."""

import http.server
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from PIL import Image

from .conftest import ANSWER_TOKENS, data_url, wait_for

QUESTION = "How many shapes are there?"


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600)


def messages(question, *urls):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def ask(client, question, *pictures, model="tiny", extra=None, **options):
    urls = [picture if isinstance(picture, str) else data_url(picture) for picture in pictures]
    return client.chat.completions.create(
        model=model,
        messages=messages(question, *urls),
        extra_body={"return_token_ids": True, **(extra or {})},
        **{"temperature": 0, "max_tokens": ANSWER_TOKENS, **options},
    )


def ids(reply):
    return reply.prompt_token_ids, reply.choices[0].token_ids


def test_one_image(client, reference, pictures):
    reply = ask(client, QUESTION, pictures[0])
    assert ids(reply) == reference.ids(reference.prompt(QUESTION), [pictures[0]])
    assert reply.usage.prompt_tokens == len(reply.prompt_token_ids)
    assert reply.prompt_token_ids.count(reference.model.config.image_token_id) == 16


def test_several_images_and_turns(client, reference, pictures):
    first = messages("What shape is at the top?", data_url(pictures[1]), data_url(pictures[2]))
    history = [*first, {"role": "assistant", "content": "circle"}]
    reply = client.chat.completions.create(
        model="tiny", temperature=0, max_tokens=ANSWER_TOKENS, extra_body={"return_token_ids": True},
        messages=[*history, *messages(QUESTION, data_url(pictures[3]))],
    )  # fmt: skip
    turns = [
        {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "What shape is at the top?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "circle"}]},
    ]
    assert ids(reply) == reference.ids(reference.prompt(QUESTION, history=turns), pictures[1:4])


def test_without_an_image(client, reference):
    prompt = reference.prompt("Is there a red circle?", images=0)
    expected = reference.ids(prompt, [])
    assert ids(ask(client, "Is there a red circle?")) == expected
    completion = client.completions.create(
        model="tiny", prompt=prompt, temperature=0, max_tokens=ANSWER_TOKENS, extra_body={"return_token_ids": True}
    )
    assert (completion.choices[0].prompt_token_ids, completion.choices[0].token_ids) == expected


def test_control_tokens_in_a_message_are_text(client, reference, pictures):
    """As in `llava-stf serve`: quoted while the template is filled, in the user's texts and in earlier answers."""
    from llava_stf import LlavaStf

    llava = LlavaStf(reference.model, reference.processor)
    history = [{"role": "user", "content": "One</s>"}, {"role": "assistant", "content": "Two <s>"}]
    question = "What ends with </s> or <unk>?"
    reply = client.chat.completions.create(
        model="tiny", temperature=0, max_tokens=ANSWER_TOKENS, extra_body={"return_token_ids": True},
        messages=[*history, *messages(question, data_url(pictures[0]))],
    )  # fmt: skip
    asked = [*history, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    expected = llava.encode([asked], [[pictures[0]]])["input_ids"][0].tolist()
    assert reply.prompt_token_ids == expected
    assert expected.count(reference.processor.tokenizer.eos_token_id) == 1


def test_a_stream_has_the_text_of_the_whole_reply(client, pictures):
    whole = ask(client, QUESTION, pictures[4]).choices[0].message.content
    chunks = list(ask(client, QUESTION, pictures[4], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole


def test_cached_prefixes_change_nothing(server, client, reference, pictures):
    """The same text with other pictures, and the same pictures in another order, after a prompt is cached."""
    groups = [pictures[5:9], pictures[5:9], [*pictures[5:8], pictures[10]], pictures[8:4:-1]]
    before = server.metric("vllm:prefix_cache_hits_total")
    for group in groups:
        assert ids(ask(client, QUESTION, *group)) == reference.ids(reference.prompt(QUESTION, images=4), group)
    assert server.metric("vllm:prefix_cache_hits_total") - before > 32 * 2


def test_32_clients_at_once(client, reference, pictures):
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda picture: ask(client, QUESTION, picture), pictures))
    prompt = reference.prompt(QUESTION)
    assert [ids(reply) for reply in replies] == [reference.ids(prompt, [picture]) for picture in pictures]


def test_a_client_that_leaves(server, client, pictures):
    stream = ask(client, QUESTION, pictures[0], stream=True, max_tokens=400, extra={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, 300, "the end of a request that nobody reads")
    assert ask(client, QUESTION, pictures[0]).choices[0].message.content


def test_placeholders_are_never_generated(client, reference, pictures):
    config = reference.model.config
    first = config.image_token_id
    wanted = {str(token): 100 for token in range(first, config.text_config.vocab_size)}
    reply = ask(client, QUESTION, pictures[0], logit_bias=wanted, temperature=1, extra={"ignore_eos": True})
    assert max(reply.choices[0].token_ids) < first
    ask(client, QUESTION, pictures[0], temperature=1, extra={"allowed_token_ids": [first]})  # nothing is left to choose
    assert ask(client, QUESTION, pictures[0]).choices[0].message.content


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


BAD_PICTURES = {
    "no picture": b"not a picture",
    "a cut file": png(Image.effect_noise((300, 300), 90))[:5000],
    "400 million pixels": png(Image.new("1", (20_000, 20_000))),
    "60,000 by 10 pixels": png(Image.new("RGB", (60_000, 10))),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_refused(client, pictures, name):
    with pytest.raises(openai.APIStatusError, match=r"(?i)image|pixels"):
        ask(client, QUESTION, data_url(BAD_PICTURES[name]))
    assert ask(client, QUESTION, pictures[0]).choices[0].message.content


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("word " * 600, {}, "maximum context length"),
        ("Count <image> them", {}, "found 2 markers in the text and 1 images"),
        (QUESTION, {"extra": {"mm_processor_kwargs": {"vision_tokens": 5}}}, "No window of the 8x8 patches gives 5"),
        (
            QUESTION,
            {"extra": {"mm_processor_kwargs": {"vision_tokens": "16"}}},
            "vision_tokens must be a number, found .16.",
        ),
        (QUESTION, {"extra": {"mm_processor_kwargs": {"crop_size": {"height": 56, "width": 56}}}}, "nothing else"),
        (QUESTION, {"extra": {"mm_processor_kwargs": {"images_kwargs": {"do_pad": False}}}}, "nothing else"),
    ],
)
def test_a_bad_request_is_refused(client, pictures, question, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, question, pictures[0], **options)
    assert ask(client, QUESTION, pictures[0]).choices[0].message.content


def test_a_marker_without_an_image_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="found 1 markers in the text and no image"):
        client.completions.create(model="tiny", prompt="USER: <image>\nWhat? ASSISTANT:", max_tokens=4)


def test_a_wrong_model_name_is_refused(client, pictures):
    with pytest.raises(openai.NotFoundError, match="other"):
        ask(client, QUESTION, pictures[0], model="other")
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_no_file_and_no_other_address_is_read(client, pictures, tmp_path):
    pictures[0].save(tmp_path / "picture.png")
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    inner = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=inner.serve_forever, daemon=True).start()
    try:
        for url in (f"file://{tmp_path}/picture.png", f"http://127.0.0.1:{inner.server_port}/picture.png"):
            with pytest.raises(openai.APIStatusError, match=r"local files|must be from"):
                ask(client, QUESTION, url)
    finally:
        inner.shutdown()
    assert asked == []


def test_the_log_holds_no_prompt(server, client, pictures):
    ask(client, "A secret word: xylophone", pictures[0])
    with pytest.raises(openai.BadRequestError):
        ask(client, "xylophone <image>", pictures[0])
    assert "xylophone" not in server.log.read_text()
