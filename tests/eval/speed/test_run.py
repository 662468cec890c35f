"""`llava-stf bench speed`: what is timed, what is read off the cache, and what it says about a gain or none."""

import json
from copy import deepcopy

import pytest
import torch
import typer
from PIL import Image
from transformers import LlavaImageProcessorPil

from llava_stf import apply_stf
from llava_stf.analysis.counting import count
from llava_stf.errors import FusionError, LlavaStfError, PromptError
from llava_stf.reduction import METHODS
from llava_stf_eval.cli.speed import speed
from llava_stf_eval.speed.measuring import PARTS, STAGES
from llava_stf_eval.speed.plan import Plan
from llava_stf_eval.speed.run import measure
from llava_stf_eval.speed.shapes import IMAGE_TOKEN, build_model, shape_config
from llava_stf_eval.speed.variants import Variant, build_variants, settings_of, share_weights
from llava_stf_eval.speed.verdict import verdicts

CPU = torch.device("cpu")
EVERY_METHOD = ["full", *METHODS]


@pytest.fixture(scope="module")
def tiny():
    return build_model("tiny", device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def result():
    plan = Plan(methods=EVERY_METHOD, batch_sizes=[2], text_tokens=[12], new_tokens=[3], repeats=2, device="cpu")
    return measure(plan)


def prompt(places: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, IMAGE_TOKEN, (2, places + 8), generator=torch.Generator().manual_seed(0))
    ids[:, 4 : 4 + places] = IMAGE_TOKEN
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(speed)
    app([*arguments], standalone_mode=False)


def test_every_method_has_every_stage_and_parts_add_up(result) -> None:
    assert [row["method"] for row in result["rows"]] == EVERY_METHOD
    for row in result["rows"]:
        stages = row["stages"]
        assert tuple(stages) == STAGES
        assert all(len(stage["seconds"]) == 2 and stage["median"] > 0 for stage in stages.values())
        for run_index in range(2):
            seconds = {name: stage["seconds"][run_index] for name, stage in stages.items()}
            assert sum(seconds[part] for part in PARTS) + seconds["rest"] == pytest.approx(seconds["first_token"])
            longest = seconds["preprocessing"] + seconds["first_token"] + 2 * seconds["decode"]
            assert seconds["end_to_end"] == pytest.approx(longest)


def test_the_first_token_is_over_before_the_second_pass_begins(tiny, monkeypatch) -> None:
    from llava_stf_eval.speed import measuring

    now, passes, seen = measuring._now, [], []
    model = share_weights(tiny)
    model.model.language_model.register_forward_pre_hook(lambda *_: passes.append(now(CPU, "wall")))
    original = measuring._generate
    monkeypatch.setattr(measuring, "_generate", lambda *rest: seen.append(original(*rest)) or seen[-1])
    crop = {"height": 112, "width": 112}
    image_processor = LlavaImageProcessorPil(crop_size=crop, size={"shortest_edge": 112})
    request = measuring.Request([[Image.new("RGB", (112, 112))]], torch.full((1, 4), 5), image_processor)
    variant, case = Variant(settings_of(model.config, ["full"], None)[0], model), measuring.Case("sdpa", 1, 4, 3)
    measuring.measure_once(variant, request, case)
    clock = seen[0][1]
    assert passes[0] < clock.first < passes[1] < passes[2] < clock.end


def test_cache_of_every_method_is_the_one_that_is_counted(result) -> None:
    for row in result["rows"]:
        assert row["llm_tokens"] == row["counted"]["llm_tokens"], row["method"]
        assert row["kv_bytes"] == row["counted"]["kv_bytes"], row["method"]
    tokens = {row["method"]: row["llm_tokens"] for row in result["rows"]}
    assert tokens["full"] == [76] * 4
    assert tokens["stf"] == [28] * 4
    assert tokens["fastv"] == [76, 76, 28, 28]


def test_ratio_is_that_of_runs_that_stood_side_by_side(result) -> None:
    full, stf = result["rows"][:2]
    for stage in STAGES:
        pairs = zip(full["stages"][stage]["seconds"], stf["stages"][stage]["seconds"], strict=True)
        ratios = [before / now for before, now in pairs]
        assert stf["stages"][stage]["times_faster"] == pytest.approx(sum(ratios) / 2)
        assert full["stages"][stage]["times_faster"] == 1


def test_result_says_where_and_with_what(result) -> None:
    assert json.loads(json.dumps(result)) == result
    machine = result["machine"]
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"] == torch.__version__
    assert len(machine["load_average"]) == 3
    assert result["plan"]["repeats"] == 2
    assert all(row["peak_bytes"] > result["models"][0]["weights_bytes"] for row in result["rows"])


@pytest.mark.gpu
def test_parts_of_the_first_token_on_a_gpu_are_timed_apart_from_the_whole() -> None:
    plan = Plan(text_tokens=[12], new_tokens=[3], repeats=2, attention=["sdpa", "eager"], device="cuda")
    measured = measure(plan)
    assert [row["error"] for row in measured["rows"]] == [None] * 4
    for row in measured["rows"]:
        assert all(row["stages"][stage]["median"] > 0 for stage in (*PARTS, "first_token", "decode", "end_to_end"))
        assert row["llm_tokens"] == row["counted"]["llm_tokens"]
        assert row["peak_bytes"] > measured["models"][0]["weights_bytes"]


def test_variants_share_weights_and_nothing_else(tiny) -> None:
    inputs = prompt(64)
    with torch.no_grad():
        before = tiny(**inputs).logits
        other = share_weights(tiny)
        own = {parameter.data_ptr() for parameter in tiny.parameters()}
        assert all(parameter.data_ptr() in own for parameter in other.parameters())
        apply_stf(other)
        other(**prompt(16))
        assert torch.equal(tiny(**inputs).logits, before)


def test_shapes_of_llava_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        from transformers import LlavaForConditionalGeneration

        model = LlavaForConditionalGeneration(shape_config("7b"))
    llm = sum(parameter.numel() for parameter in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    assert llm - 2 * 64 * 4096 == 6_738_415_616  # without the 64 rows beyond LLaMA's vocabulary
    assert sum(parameter.numel() for parameter in model.model.multi_modal_projector.parameters()) == 20_979_712
    assert sum(parameter.numel() for parameter in model.model.vision_tower.parameters()) == 303_507_456


def test_random_weights_give_finite_logits_that_depend_on_image_and_text(tiny) -> None:
    inputs = prompt(64)
    with torch.no_grad():
        logits = tiny(**inputs).logits[:, -1]
        inputs["pixel_values"] = -inputs["pixel_values"]
        other = tiny(**inputs).logits[:, -1]
    assert logits.isfinite().all()
    assert not torch.equal(logits, other)
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_variants_give_the_logits_of_the_model_they_share(quantization) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    model = build_model("tiny", device=CPU, dtype=torch.bfloat16, quantization=quantization)
    kind = bnb.nn.Linear8bitLt if quantization == "8bit" else bnb.nn.Linear4bit
    assert sum(isinstance(module, kind) for module in model.modules()) == 4 * 7
    assert type(model.lm_head) is torch.nn.Linear
    inputs = prompt(64)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.no_grad():
        variants = build_variants(model, settings_of(model.config, ["full", "stf"], None))
        first, again = (variants[0].model(**inputs).logits for _ in range(2))
        torch.testing.assert_close(model(**inputs).logits, first, atol=0, rtol=0)
        torch.testing.assert_close(again, first, atol=0, rtol=0)


def test_settings_combine_methods_and_budgets() -> None:
    settings = settings_of(shape_config("7b"), ["full", "stf", "fastv"], [144, 64])
    assert [setting.name for setting in settings] == ["full 576", "stf 144", "stf 64", "fastv 144", "fastv 64"]
    assert [setting.places for setting in settings] == [576, 144, 64, 576, 576]


@pytest.mark.parametrize(
    ("plan", "kind", "sentence"),
    [
        (Plan(shape="8b"), LlavaStfError, "7b, 13b, tiny"),
        (Plan(shape=None), LlavaStfError, "a shape or a model"),
        (Plan(methods=["full", "fastvv"]), FusionError, "did you mean 'fastv'"),
        (Plan(methods=["full", "divprune"], vision_tokens=[65]), FusionError, "65"),
        (Plan(vision_tokens=[15]), FusionError, "15 vision tokens"),
        (Plan(batch_sizes=[0]), LlavaStfError, "batch_sizes must be at least 1, found 0"),
        (Plan(text_tokens=[4096]), PromptError, "positions for 4096"),
        (Plan(shape=None, models=["tiny"]), LlavaStfError, "fused already"),
        (Plan(attention=["sdpa", "flash_attention_9"]), LlavaStfError, "'flash_attention_9' cannot run here"),
        (Plan(device="cuda:99" if not torch.cuda.is_available() else "nowhere"), LlavaStfError, "device"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused_before_weights_are_made(monkeypatch, plan, kind, sentence) -> None:
    monkeypatch.setattr("llava_stf_eval.speed.bench._load", lambda *_: pytest.fail("weights were made"))
    with pytest.raises(kind, match=sentence):
        measure(plan)


def test_a_shape_larger_than_memory_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("llava_stf_eval.speed.shapes.available_memory", lambda: 2**30)
    with pytest.raises(LlavaStfError, match=r"take 1\d\.\d GiB, and cpu has 1\.0 GiB"):
        build_model("7b", device=CPU, dtype=torch.bfloat16)


def test_memory_that_runs_out_costs_one_case(monkeypatch) -> None:
    from llava_stf_eval.speed import bench as module

    timed = module.measure_once

    def small(variant, request, case):
        if case.batch_size > 1:
            raise torch.OutOfMemoryError("too large")
        return timed(variant, request, case)

    monkeypatch.setattr(module, "measure_once", small)
    plan = Plan(batch_sizes=[1, 2], text_tokens=[4], new_tokens=[1], repeats=1, warm_up=0, device="cpu")
    rows = measure(plan)["rows"]
    assert [row["error"] for row in rows] == [None, None, "out of memory", "out of memory"]


def made_up(method: str, **milliseconds: float) -> dict:
    """A row of LLaVA-1.5-7B with 64 text and 32 new tokens; stages that are not told take no time."""
    config = shape_config("7b")
    tokens = 576 if method == "full" else 144
    counted = count(config, tokens, text_tokens=64)
    seconds = {stage: milliseconds.get(stage, 0.0) / 1000 for stage in STAGES}
    seconds["first_token"] = sum(seconds[part] for part in (*PARTS, "rest"))
    seconds["end_to_end"] = seconds["preprocessing"] + seconds["first_token"] + 31 * seconds["decode"]
    return {
        "case": {"attention": "sdpa", "batch_size": 1, "text_tokens": 64, "new_tokens": 32},
        "method": method,
        "run_by": "pytorch bfloat16",
        "vision_tokens": tokens,
        "error": None,
        "stages": {stage: {"median": value, "spread": 0.0, "seconds": [value]} for stage, value in seconds.items()},
        "llm_tokens": list(counted.llm_tokens),
        "counted": {"prefill_flops": counted.prefill_flops},
    }


def verdict_on(full: dict, other: dict) -> str:
    rows = deepcopy([full, other])
    for row in rows:
        for name, stage in row["stages"].items():
            before = full["stages"][name]["median"]
            stage["times_faster"] = before / stage["median"] if stage["median"] else None
    (sentence,) = verdicts({"rows": rows})
    return sentence


def test_a_gain_is_said_without_excuse() -> None:
    sentence = verdict_on(made_up("full", tower=10, prefill=90), made_up("stf", tower=10, prefill=30))
    assert "first token 2.50x" in sentence
    assert "no gain" not in sentence


@pytest.mark.parametrize(
    ("full", "stf", "reason"),
    [
        ({"prefill": 50, "decode": 30}, {"prefill": 20, "decode": 30}, "is decoding"),
        ({"prefill": 20, "tower": 5}, {"prefill": 20, "tower": 5}, "a larger batch would show more"),
        ({"prefill": 9, "tower": 90}, {"prefill": 6, "tower": 90}, "vision tower"),
        ({"prefill": 30, "rest": 1}, {"prefill": 20, "rest": 12}, "the method's own work takes 11.0 ms more"),
        (
            {"prefill": 90, "preprocessing": 4000},
            {"prefill": 30, "preprocessing": 4000},
            "preprocessing of the image",
        ),
    ],
)
def test_no_gain_is_said_with_its_reason(full, stf, reason) -> None:
    sentence = verdict_on(made_up("full", **full), made_up("stf", **stf))
    assert "no gain" in sentence
    assert reason in sentence


def test_a_prompt_that_is_mostly_text_is_the_reason() -> None:
    full, stf = made_up("full", prefill=50), made_up("stf", prefill=49)
    full["llm_tokens"], stf["llm_tokens"] = [2576] * 32, [2144] * 32
    assert "only 17% fewer tokens" in verdict_on(full, stf)


def test_a_difference_within_the_spread_is_no_finding() -> None:
    full, stf = made_up("full", prefill=50), made_up("stf", prefill=40)
    full["stages"]["first_token"]["spread"] = 0.02
    assert "within the spread" in verdict_on(full, stf)


def test_command_leaves_json_table_and_figure(tmp_path, capsys) -> None:
    folder = tmp_path / "speed"
    small = ("--text-tokens", "4", "--new-tokens", "2", "--repeats", "1", "--device", "cpu", "--output", str(folder))
    run("--shape", "tiny", "--batch-sizes", "1,2", "--attention", "sdpa,eager", *small)
    printed = capsys.readouterr().out
    written = json.loads((folder / "speed.json").read_text())
    assert len(written["rows"]) == 8
    assert len(written["verdicts"]) == 4
    assert all(sentence in " ".join(printed.split()) for sentence in written["verdicts"])
    assert printed.count("stf 16") == 8  # in both tables of each case
    assert Image.open(folder / "speed.png").width > 800
    with pytest.raises(LlavaStfError, match="holds an earlier measurement"):
        run(*small)
    run("--resume", "--shape", "tiny", "--batch-sizes", "1,2", "--attention", "sdpa,eager", *small)
    assert json.loads((folder / "speed.json").read_text()) == written  # nothing was left to measure
    capsys.readouterr()
    run("--json", "--overwrite", *small)
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


def test_a_measurement_that_was_broken_off_says_so_and_is_finished_by_resume(tmp_path, monkeypatch, capsys) -> None:
    from llava_stf_eval.speed import run as module

    folder = tmp_path / "speed"
    small = (
        "--text-tokens",
        "4,5,6",
        "--new-tokens",
        "2",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--output",
        str(folder),
    )
    whole = module._measure_case

    def stopped(case, *rest):
        if case.text_tokens == 5:
            raise RuntimeError
        return whole(case, *rest)

    monkeypatch.setattr(module, "_measure_case", stopped)
    with pytest.raises(RuntimeError):
        run(*small)
    monkeypatch.setattr(module, "_measure_case", whole)
    before = json.loads((folder / "speed.json").read_text())
    assert (before["complete"], [row["case"]["text_tokens"] for row in before["rows"]]) == (False, [4, 4])
    with pytest.raises(LlavaStfError, match="broken off; finish it with --resume"):
        run(*small)
    with pytest.raises(LlavaStfError, match=r"another repeats of the plan \(1, and now 2\)"):
        run(*small, "--repeats", "2", "--resume")
    older = deepcopy(before)
    for row in older["rows"]:
        del row["mean_tokens"]
    (folder / "speed.json").write_text(json.dumps(older))
    with pytest.raises(LlavaStfError, match="older version's, whose rows do not say mean_tokens: take another folder"):
        run(*small, "--resume")
    assert json.loads((folder / "speed.json").read_text()) == older
    (folder / "speed.json").write_text(json.dumps(before))
    run(*small, "--resume", "--json")
    after = json.loads(capsys.readouterr().out)
    assert after == json.loads((folder / "speed.json").read_text())
    assert (after["complete"], [row["case"]["text_tokens"] for row in after["rows"]]) == (True, [4, 4, 5, 5, 6, 6])
    assert after["rows"][:2] == before["rows"]


def test_command_refuses_counts_that_are_none(tmp_path) -> None:
    with pytest.raises(typer.BadParameter, match="expected counts such as '1,8'"):
        run("--batch-sizes", "1,x", "--output", str(tmp_path / "speed"))
    assert not (tmp_path / "speed").exists()


def test_command_measures_a_checkpoint(tmp_path) -> None:
    folder = tmp_path / "speed"
    small = ("--text-tokens", "4", "--new-tokens", "2", "--repeats", "1", "--device", "cpu", "--output", str(folder))
    run("--model", "tiny-full", "--vision-tokens", "16,4", *small)
    rows = json.loads((folder / "speed.json").read_text())["rows"]
    assert [(row["method"], row["vision_tokens"]) for row in rows] == [("full", 64), ("stf", 16), ("stf", 4)]


def test_options_go_to_the_methods_that_have_them():
    config = shape_config("tiny")
    settings = settings_of(config, ["full", "fastv", "dart", "stf"], [16], {"full_layers": "1"})
    assert [setting.name for setting in settings] == [
        "full 64", "fastv 16, full_layers=1", "dart 16, full_layers=1", "stf 16",
    ]  # fmt: skip
    assert settings[1].per_layer == (64, *[16] * (config.text_config.num_hidden_layers - 1))
    variants = build_variants(build_model("tiny", device=CPU, dtype=torch.float32), settings[:2])
    assert variants[1].model.model.reduction.method.full_layers == 1
    with pytest.raises(FusionError, match="None of the methods full, stf has an option 'full_layers'"):
        settings_of(config, ["full", "stf"], [16], {"full_layers": "1"})


@pytest.mark.parametrize(
    ("model_type", "shown", "full", "stf"),
    [
        ("llava_next", {"image_size": [100, 220]}, 64 + 8 * 17, 16 + 4 * 9),
        ("llava_onevision", {"image_size": [90, 90]}, 49 + 7 * 8, 16 + 4 * 5),
        ("llava_onevision", {"frames": 3}, 3 * 16 + 1, 3 * 4 + 1),
        ("llava_next_video", {"frames": 2}, 2 * 16, 2 * 4),
    ],
)
def test_tiles_and_frames_are_timed_beside_the_class_of_transformers(model_type, shown, full, stf) -> None:
    options = {"text_tokens": [4], "new_tokens": [2], "repeats": 1, "warm_up": 0, "device": "cpu"}
    rows = measure(Plan(model_type=model_type, **shown, **options))["rows"]
    assert [row["llm_tokens"][0] - 4 for row in rows] == [full, stf]
    for row in rows:
        assert row["llm_tokens"] == row["counted"]["llm_tokens"]
        assert row["kv_bytes"] == row["counted"]["kv_bytes"]
        assert all(row["stages"][part]["median"] > 0 for part in PARTS)


def test_frames_and_sizes_that_a_class_does_not_take_are_refused() -> None:
    with pytest.raises(FusionError, match="images alone"):
        measure(Plan(model_type="llava_next", frames=4))
    with pytest.raises(LlavaStfError, match="model_type is of a shape"):
        measure(Plan(model_type="llava_two"))
    with pytest.raises(FusionError, match="cuts images into tiles"):
        measure(Plan(model_type="llava_next", methods=["full", "fastv"]))
    with pytest.raises(typer.BadParameter, match="height x width"):
        run("--image-size", "672")


@pytest.mark.parametrize("model_type", ["llava_next", "llava_onevision"])
def test_an_llm_of_4_bits_takes_tiles(model_type) -> None:
    options = {"text_tokens": [4], "new_tokens": [2], "repeats": 1, "warm_up": 0, "device": "cpu"}
    rows = measure(Plan(model_type=model_type, image_size=[100, 200], quantization="4bit", **options))["rows"]
    assert [row["error"] for row in rows] == [None, None]
    assert rows[1]["llm_tokens"][0] < rows[0]["llm_tokens"][0] / 2
