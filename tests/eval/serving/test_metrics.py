"""What is read of a server's own metrics: the most under a load, and what it counted over it."""

import threading

from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from llava_stf_eval.serving.client import drive
from llava_stf_eval.serving.metrics import Seen, watching
from llava_stf_eval.serving.run import fits
from llava_stf_eval.serving.workload import Load, questions

DEADLINE = 120
# As vLLM 0.32 writes them, as far as they are read.
TEXT = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{{engine="0",model_name="m"}} {preemptions}.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{{engine="0",model_name="m"}} {queries}.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {hits}.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="128",engine="0",num_gpu_blocks="37"}} 1.0
"""
STATES = [
    {"running": 0, "usage": 0.0, "preemptions": 1, "queries": 100, "hits": 0},
    {"running": 6, "usage": 1.0, "preemptions": 2, "queries": 600, "hits": 5},
    {"running": 3, "usage": 0.5, "preemptions": 4, "queries": 1100, "hits": 100},
]


def test_the_most_under_load_and_the_difference_over_it(serve) -> None:
    app, read = FastAPI(), threading.Semaphore(0)
    asked = iter([*range(len(STATES))])

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        read.release()
        return TEXT.format(**STATES[next(asked, -1)])

    with serve(app) as url, watching(url) as seen:
        assert all(read.acquire(timeout=DEADLINE) for _ in range(4))
    assert seen == Seen(6, 2, kv_blocks=37, kv_block_size=128, kv_blocks_used=36, preemptions=3, cached=0.1)


def test_our_own_server_tells_how_many_run_and_no_blocks(target) -> None:
    with watching(target.url) as seen:
        drive(target, list(questions(None, 0, 4)), Load(clients=4), new_tokens=60, seed=0)
    assert seen.running is not None
    assert 1 <= seen.running <= 4
    assert (seen.kv_blocks, seen.preemptions) == (None, None)


def test_a_server_without_metrics_tells_nothing(serve) -> None:
    with serve(FastAPI()) as url, watching(url) as seen:
        pass
    assert seen == Seen()


def test_how_many_requests_a_cache_holds() -> None:
    seen = Seen(kv_blocks=37, kv_block_size=128)
    # 625 + 15 tokens have a place, the answer's last one has none: five blocks, and one more for one token more.
    assert fits(seen, 625, 16) == {"blocks_of_a_request": 5, "requests": 7}
    assert fits(seen, 626, 16) == {"blocks_of_a_request": 6, "requests": 6}
    assert fits(seen, 200, 16) == {"blocks_of_a_request": 2, "requests": 18}
    assert fits(Seen(), 200, 16) is None
