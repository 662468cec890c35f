"""What single requests come to, and vLLM's result read as ours."""

import pytest

from llava_stf_eval.serving.outcomes import Outcome, summarise
from llava_stf_eval.serving.vllm_client import read_result

DONE = [Outcome(0.1 * number, 0.2 + 0.01 * number, (0.05, 0.05 + 0.01 * number), 0.5, 100 + number, 3)
        for number in range(10)]  # fmt: skip


def test_counts_rates_and_percentiles() -> None:
    found = summarise(DONE)
    assert found["seconds"] == pytest.approx(1.4)  # the last one is sent at 0.9 and takes 0.5
    assert found["requests_per_second"] == pytest.approx(10 / 1.4)
    assert found["output_tokens_per_second"] == pytest.approx(30 / 1.4)
    assert (found["prompt_tokens"], found["longest_prompt_tokens"], found["output_tokens"]) == (104.5, 109, 3)
    assert found["first_token_ms"]["p50"] == pytest.approx(245)
    assert found["first_token_ms"]["p99"] == pytest.approx(289.1)
    assert found["time_per_output_token_ms"]["p50"] == pytest.approx((500 - 245) / 2)
    for name in ("first_token_ms", "inter_token_ms", "time_per_output_token_ms", "latency_ms"):
        assert found[name]["p50"] <= found[name]["p99"]


def test_a_failed_request_counts_in_no_time_and_no_rate() -> None:
    failed = Outcome(0.0, None, (), 0.01, 0, 0, "503: busy")
    with_failures, without = summarise([*DONE, failed, failed]), summarise(DONE)
    assert with_failures["errors"] == {"503: busy": 2}
    assert (with_failures["requests"], with_failures["completed"], with_failures["failed"]) == (12, 10, 2)
    for name in ("requests_per_second", "first_token_ms", "latency_ms", "prompt_tokens"):
        assert with_failures[name] == without[name]


def test_nothing_is_claimed_where_all_failed() -> None:
    found = summarise([Outcome(0.0, None, (), 0.01, 0, 0, "503: busy")])
    assert found["requests_per_second"] == 0
    assert found["first_token_ms"] == {"p50": None, "p99": None}
    assert found["prompt_tokens"] is None


def test_a_result_of_vllms_client_is_read() -> None:
    result = {  # of vllm bench serve 0.32 with --save-detailed, as far as it is read
        "start_times": [1000.5, 1000.0],
        "ttfts": [0.25, 0.0],
        "itls": [[0.0, 0.04], []],
        "latencies": [0.29, 0.0],
        "input_lens": [109, 0],
        "output_lens": [3, 0],
        "errors": ["", 'Traceback (most recent call last):\n  File "x"\nConnectionError: refused\n'],
    }
    first, second = read_result(result)
    assert first == Outcome(0.5, 0.25, (0.0, 0.04), 0.29, 109, 3)
    assert second.error == "ConnectionError: refused"
    assert summarise([first, second])["failed"] == 1
