"""The measurement as a whole, its table, its files and the command."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
from PIL import Image

from llava_stf.cli import main
from llava_stf.errors import LlavaStfError, MissingDependencyError
from llava_stf.io.publish import write_json
from llava_stf_eval.serving.models import Served
from llava_stf_eval.serving.output import COLUMNS, RESULT, failures, markdown, save_figure, table
from llava_stf_eval.serving.run import Plan, measure
from llava_stf_eval.serving.servers import find_target, serving
from llava_stf_eval.serving.tables import collect, section
from llava_stf_eval.serving.vllm_client import has_vllm

PLAN = {"clients": [2], "requests": 4, "new_tokens": 3, "client": "own"}


@pytest.fixture(scope="module")
def result(target, tmp_path_factory):
    return measure(Plan(url=target.url, **PLAN), tmp_path_factory.mktemp("run"))


@pytest.fixture
def compared(result):
    """The result with rows of a second model, twice as fast, that has blocks to tell of."""
    both = deepcopy(result)
    for row in deepcopy(result["rows"]):
        for name in ("first_token_ms", "inter_token_ms"):
            row[name] = {key: value / 2 for key, value in row[name].items()}
        row["server"] |= {"kv_blocks": 37, "kv_blocks_used": 30, "preemptions": 2}
        row |= {"model": "fast", "requests_per_second": 2 * row["requests_per_second"], "fits": {"requests": 18}}
        both["rows"].append(row)
    for row in both["rows"][:2]:
        row["fits"] = {"requests": 6}
    return both


def test_every_load_has_a_row_that_adds_up(result) -> None:
    assert json.loads(json.dumps(result)) == result
    fixed, poisson = result["rows"]
    assert (fixed["load"]["clients"], poisson["load"]["clients"]) == (2, None)
    assert poisson["load"]["rate"] == pytest.approx(0.7 * fixed["requests_per_second"])
    for row in result["rows"]:
        assert row["model"] == "tiny"
        assert (row["requests"], row["completed"], row["failed"], row["errors"]) == (4, 4, 0, {})
        assert row["output_tokens"] == 3
        assert row["output_tokens_per_second"] == pytest.approx(3 * row["requests_per_second"])
        assert row["first_token_ms"]["p50"] <= row["first_token_ms"]["p99"] <= row["latency_ms"]["p99"]
        assert row["latency_ms"]["p99"] <= 1000 * row["seconds"]
        assert row["fits"] is None


def test_a_rate_that_is_given_is_taken(target, tmp_path) -> None:
    rows = measure(Plan(url=target.url, rate=30.0, **{**PLAN, "requests": 2}), tmp_path)["rows"]
    assert rows[-1]["load"] == {"clients": None, "rate": 30.0, "name": "Poisson, 30 a second"}


def test_images_of_a_folder_are_asked_about_and_have_to_suffice(target, tmp_path) -> None:
    for number in range(10):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    plan = Plan(url=target.url, images=tmp_path, **PLAN)  # 2 to warm up, 4 of each load
    assert [row["completed"] for row in measure(plan, tmp_path)["rows"]] == [4, 4]
    (tmp_path / "0.png").unlink()
    with pytest.raises(LlavaStfError, match="10 requests need as many images"):
        measure(plan, tmp_path)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({"requests": 0}, "requests must be at least 1"),
        ({"clients": []}, "clients must be at least 1"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"kv_blocks": 9}, "take engine 'vllm'"),
        ({"models": []}, "Expected a model"),
        ({"url": "http://127.0.0.1:9"}, "No server with OpenAI's routes answers at http://127.0.0.1:9"),
        ({"url": "nonsense"}, "No server with OpenAI's routes answers at nonsense"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(*value),
)
def test_what_cannot_be_measured_is_said_before_anything_starts(tmp_path, plan, sentence) -> None:
    with pytest.raises(LlavaStfError, match=sentence):
        measure(Plan(**{**PLAN, **plan}), tmp_path)


@pytest.mark.skipif(has_vllm(), reason="vLLM is installed here")
def test_vllm_is_asked_for_where_it_is_missing(tmp_path) -> None:
    for plan in (Plan(engine="vllm"), Plan(client="vllm", url="http://127.0.0.1:9")):
        with pytest.raises(MissingDependencyError, match=r"pip install 'llava-stf\[vllm\]'"):
            measure(plan, tmp_path)


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed here; make test-serving runs this")
def test_vllms_client_and_ours_count_the_same(target, result, tmp_path) -> None:
    rows = measure(Plan(url=target.url, **{**PLAN, "client": "vllm"}), tmp_path)["rows"]
    for theirs, ours in zip(rows, result["rows"], strict=True):
        for name in ("completed", "failed", "prompt_tokens", "output_tokens"):
            assert theirs[name] == ours[name]
        assert 0 < theirs["first_token_ms"]["p50"] <= theirs["latency_ms"]["p50"]


def test_a_server_that_does_not_start_says_why(tmp_path) -> None:
    model = Served("none", tmp_path / "none", 16)
    log = tmp_path / "server.log"
    with (
        pytest.raises(LlavaStfError, match=r"The server ended with code 2; .*nonsense"),
        serving("transformers", model, kv_blocks=None, arguments=["--nonsense"], log=log),
    ):
        pass


def test_a_server_is_found_with_the_name_of_its_model(target) -> None:
    assert find_target(target.url) == find_target(f"{target.url}/v1/") == target


def test_the_table_compares_with_the_first_model_under_the_same_load(compared) -> None:
    cells = [dict(zip(COLUMNS, line, strict=True)) for line in table(compared)]
    assert [line["model"] for line in cells] == ["tiny", "tiny", "fast", "fast"]
    assert "x)" not in "".join(cells[0].values()) + "".join(cells[1].values())
    assert cells[2]["requests/s"].endswith("(2.00x)")
    assert "x)" not in cells[3]["requests/s"]  # of a Poisson load, as many come as come
    assert all(line["first token, ms"].endswith("(2.00x)") for line in cells[2:])
    assert cells[2]["requests that fit"] == "18 (3.00x)"
    assert cells[2]["KV blocks used"] == "30 of 37, 2 preempted"
    lines = markdown(compared).splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert "client llava-stf; 4 requests of each load" in lines[-1]


def test_failures_stand_in_table_and_sentences(compared) -> None:
    compared["rows"][0] |= {"completed": 3, "failed": 1, "errors": {"503: busy": 1}}
    assert failures(compared) == ["tiny, 2 clients: 1 of 4 requests failed: 503: busy"]
    assert table(compared)[0][1] == "2 clients, 1 failed"


def test_a_load_without_an_answer_is_shown_as_none(compared, tmp_path) -> None:
    empty = {"p50": None, "p99": None}
    compared["rows"][0] |= {
        "completed": 0, "failed": 4, "errors": {"503: busy": 4}, "requests_per_second": 0.0, "prompt_tokens": None,
        "first_token_ms": empty, "inter_token_ms": empty, "fits": None,
    }  # fmt: skip
    assert "–" in table(compared)[0]
    assert save_figure(tmp_path, compared).read_bytes().startswith(b"\x89PNG")


def test_results_are_copied_to_where_their_tables_are_made(compared, tmp_path) -> None:
    for name in ("b-run", "a-run"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / RESULT, compared)
        save_figure(tmp_path / name, compared)
    found = collect(tmp_path, tmp_path / "docs")
    assert sorted(file.name for file in (tmp_path / "docs").iterdir()) == [
        "a-run.json", "a-run.png", "b-run.json", "b-run.png",
    ]  # fmt: skip
    assert section(found).startswith("**a-run**\n\n| model |")
    assert "\n**b-run**\n\n| model |" in section(found)
    write_json(tmp_path / "b-run" / RESULT, {**compared, "complete": False})
    with pytest.raises(LlavaStfError, match="broken off; finish it with bench serve --resume"):
        collect(tmp_path, tmp_path / "docs")
    with pytest.raises(LlavaStfError, match="holds no results"):
        collect(tmp_path / "docs", tmp_path / "other")


def test_command_starts_a_server_measures_it_and_ends_it(tmp_path, capsys) -> None:
    arguments = ["bench", "serve", "--model", "tiny", "--client", "own", "--clients", "2", "--requests", "2"]
    arguments += ["--new-tokens", "2", "--output", str(tmp_path / "run")]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "run" / "serving.json").read_text())
    assert [(row["model"], row["vision_tokens"], row["completed"]) for row in printed["rows"]] == [("tiny", 16, 2)] * 2
    assert sorted(file.name for file in Path(tmp_path / "run").iterdir()) == [
        "server-0.log", "serving.json", "serving.png",
    ]  # fmt: skip
    broken = {**printed, "complete": False, "rows": printed["rows"][:1]}
    write_json(tmp_path / "run" / "serving.json", broken)
    assert main([*arguments, "--resume", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["complete"]
    assert resumed["rows"][0] == printed["rows"][0]
    assert [row["load"]["name"] for row in resumed["rows"]] == [row["load"]["name"] for row in printed["rows"]]
    assert main(arguments) == 2
    assert "holds an earlier measurement" in capsys.readouterr().err
