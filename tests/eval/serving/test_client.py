"""The project's own client against a real server: what it counts, when it sends, what it says of failures."""

import socket
from dataclasses import replace

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.responses import StreamingResponse

from llava_stf_eval.serving.client import Target, drive
from llava_stf_eval.serving.outcomes import summarise
from llava_stf_eval.serving.workload import Load, Question, arrivals, lengths, questions

NEW = 5


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return list(questions(None, 0, 6))


@pytest.fixture(scope="module")
def fixed(target, asked):
    return drive(target, asked, Load(clients=2), new_tokens=NEW, seed=0)


def test_every_answer_is_counted_as_the_server_counts_it(llava, asked, fixed) -> None:
    for question, outcome in zip(asked, fixed, strict=True):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
        prompt = llava.processor.apply_chat_template([turn], add_generation_prompt=True)
        ids = llava.processor(images=[Image.new("RGB", (112, 112))], text=prompt)["input_ids"][0]
        assert outcome.error is None
        assert (outcome.prompt_tokens, outcome.output_tokens) == (len(ids), NEW)


def test_times_of_a_request_add_up(fixed) -> None:
    for outcome in fixed:
        assert 0 < outcome.first_token <= outcome.latency
        assert outcome.first_token + sum(outcome.gaps) == pytest.approx(outcome.latency)
        assert 0 < len(outcome.gaps) < NEW


def test_answers_may_be_of_a_length_each(target, asked) -> None:
    drawn = lengths(len(asked), 2, 9, seed=3)
    outcomes = drive(target, asked, Load(clients=3), new_tokens=drawn, seed=0)
    assert [outcome.output_tokens for outcome in outcomes] == drawn
    assert len(set(drawn)) > 1
    assert set(lengths(200, 2, 5, seed=0)) == {2, 3, 4, 5}


def test_a_client_asks_again_when_it_is_answered_and_not_before(fixed) -> None:
    ends = [outcome.start + outcome.latency for outcome in fixed]
    for outcome in fixed:
        others = [other.start < outcome.start < end for other, end in zip(fixed, ends, strict=True)]
        assert sum(others) <= 1
    assert sorted(outcome.start for outcome in fixed)[2] >= min(ends)


def test_requests_of_a_poisson_load_are_not_sent_before_their_time(target, asked) -> None:
    outcomes = drive(target, asked, Load(rate=20.0), new_tokens=2, seed=7)
    for outcome, time in zip(outcomes, arrivals(len(asked), 20.0, seed=7), strict=True):
        assert outcome.error is None
        assert outcome.start >= time


def test_a_request_that_fails_is_named_and_the_others_are_answered(target, asked) -> None:
    broken = Question(asked[0].text, "data:image/png;base64,bm8gcGljdHVyZQ==")
    outcomes = drive(target, [asked[0], broken, asked[1]], Load(clients=3), new_tokens=2, seed=0)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert outcomes[1].error.startswith("400: Image 0")
    summary = summarise(outcomes)
    assert (summary["completed"], summary["failed"]) == (2, 1)
    assert summary["errors"] == {outcomes[1].error: 1}


def test_an_unknown_model_and_a_server_that_is_not_there_are_errors_of_the_requests(target, asked) -> None:
    load = Load(clients=2)
    unknown = drive(replace(target, model="other"), asked[:2], load, new_tokens=2, seed=0)
    assert all(outcome.error.startswith("404: The model 'other' is not served here") for outcome in unknown)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Target(f"http://127.0.0.1:{free.getsockname()[1]}", "tiny")
        gone = drive(nobody, asked[:1], load, new_tokens=2, seed=0)
    assert gone[0].error.startswith("ConnectError")


@pytest.mark.parametrize(
    ("events", "error"),
    [
        (['{"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}'], "The answer broke off."),
        (['{"error": {"message": "The model failed."}}'], "The model failed."),
    ],
    ids=["no end", "error event"],
)
def test_an_answer_that_is_not_finished_is_none(asked, serve, events, error) -> None:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat() -> StreamingResponse:
        return StreamingResponse((f"data: {event}\n\n" for event in events), media_type="text/event-stream")

    with serve(app) as url:
        outcomes = drive(Target(url, "any"), asked[:1], Load(clients=1), new_tokens=2, seed=0)
    assert outcomes[0].error == error


def test_vllm_alone_is_told_not_to_end_early(asked) -> None:
    assert Target("", "m", is_vllm=True).body(asked[0], 3)["min_tokens"] == 3
    assert "min_tokens" not in Target("", "m").body(asked[0], 3)
