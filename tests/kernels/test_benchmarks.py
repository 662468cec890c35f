"""The benchmark scripts without a GPU: what they count, that implementations agree, and what is refused."""

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "kernels" / "benchmarks"))  # the scripts import one another as siblings

import bench_model  # noqa: E402
import bench_ops  # noqa: E402
import bench_projector  # noqa: E402
import cases  # noqa: E402
import competitors  # noqa: E402
import shapes  # noqa: E402
from shapes import MODELS, WIDTHS, Rates  # noqa: E402

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")


def run_script(script, monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *options])
    status = script.main()
    return status, capsys.readouterr().out


class TestCounts:
    """Against the specification's figures for one image, FLOPs being two per multiply-add."""

    @pytest.mark.parametrize(("model", "mbtf", "stf"), [("7b", 43.5, 38.7), ("13b", 43.5, 43.5)])
    def test_projector_flops(self, model, mbtf, stf):
        assert round(shapes.mbtf_flops(WIDTHS[model], 1) / 1e9, 1) == mbtf
        assert round(shapes.stf_flops(WIDTHS[model], 1) / 1e9, 1) == stf

    @pytest.mark.parametrize(("model", "flops", "parameters"), [("7b", 82.1, 171_992_064), ("13b", 87.0, 188_770_304)])
    def test_projector(self, model, flops, parameters):
        work = shapes.projector_work(WIDTHS[model], 1, 2, False)
        assert round(work.flops / 1e9, 1) == flops
        assert shapes.projector_parameters(WIDTHS[model]) == parameters
        states, tokens = 8 * 576 * 1024, 144 * WIDTHS[model].llm
        assert work.bytes == 2 * (states + parameters + tokens)

    def test_projector_grows_with_the_batch_but_for_its_weights(self):
        one, many = (shapes.projector_work(WIDTHS["7b"], batch, 2, False) for batch in (1, 16))
        assert many.flops == 16 * one.flops
        assert many.bytes == 16 * one.bytes - 15 * 2 * shapes.projector_parameters(WIDTHS["7b"])

    def test_backward_of_a_frozen_tower_needs_no_gradient_of_the_states(self):
        # Three products in each layer, but two in the first, of 2 * 576 * 8192 * 4096 = 38.65 GFLOP.
        forward, both = (shapes.projector_work(WIDTHS["7b"], 1, 2, backward) for backward in (False, True))
        assert 3 * forward.flops - both.flops == 2 * 576 * 8192 * 4096

    def test_first_layers(self):
        assert shapes.fuse_blocks_work(WIDTHS["7b"], 1, 2, False).flops == 2 * 576 * 8192 * 4096
        assert shapes.fuse_windows_work(WIDTHS["7b"], 1, 2, False).flops == 2 * 144 * 4096 * 16384
        assert shapes.fuse_windows_work(WIDTHS["7b"], 1, 2, True).flops == 3 * 2 * 144 * 4096 * 16384

    def test_pooling_moves_patches_and_tokens(self):
        assert shapes.pool_tokens_work(WIDTHS["7b"], 3, 2, False) == shapes.Work(0, 3 * (576 + 144) * 1024 * 2)

    def test_tower_and_prefill(self):
        model = MODELS["7b"]
        assert [round(model.tower_flops(blocks) / 1e9) for blocks in (24, 23)] == [382, 366]
        assert [round(model.prefill_flops(tokens) / 1e12, 2) for tokens in (576, 144)] == [7.63, 1.88]
        assert [round(model.prefill_flops(tokens) / 1e12, 2) for tokens in (640, 208)] == [8.50, 2.72]

    def test_floor_is_the_larger_of_both_times(self):
        rates = Rates(copy_tb_s=4.0, matmul_tflop_s=800.0)
        assert shapes.Work(flops=1_600_000_000, bytes=4_000_000).floor_ms(rates) == pytest.approx(0.002)
        assert shapes.Work(flops=800_000_000, bytes=8_000_000).floor_ms(rates) == pytest.approx(0.002)


OPTIONS = ["--widths", "tiny", "--batches", "3", "--dtype", "fp32", "--implementations", "ours", "eager", "conv"]
OPERATIONS = competitors.operations("torch")
TINY_CASES = [
    case
    for ops in (bench_ops.OPS, ["projector"])
    for case in bench_ops.cases_of(bench_ops.parse_options("", ops, OPTIONS), OPERATIONS)
]


class TestImplementations:
    @pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: "-".join(map(str, case.values())))
    def test_agrees_with_the_reference(self, case):
        assert cases.check(case, OPERATIONS[case["op"]], torch.device("cpu")) < 1e-6

    def test_all_are_there(self):
        found = {(case["op"], case["direction"], case["implementation"]) for case in TINY_CASES}
        assert {("projector", cases.BACKWARD, name) for name in competitors.QUICK} <= found
        assert ("pool_tokens", cases.FORWARD, "ours") in found
        assert ("pool_tokens", cases.BACKWARD, "ours") not in found

    def test_what_13b_shares_with_7b_is_measured_once(self):
        options = bench_ops.parse_options("", bench_ops.OPS, [])
        found = list(bench_ops.cases_of(options, OPERATIONS))
        assert {case["op"] for case in found if case["model"] == "13b"} == {"place_tokens"}
        assert {case["op"] for case in found if case["model"] == "7b"} == set(bench_ops.OPS)

    @pytest.mark.parametrize("poison", [float("nan"), 1.0])
    def test_a_wrong_result_is_an_error(self, poison):
        def wrong(states, window):
            pooled = OPERATIONS["pool_tokens"].eager(states, window).clone()
            pooled[0, 0, 0] += poison
            return pooled

        operation = dataclasses.replace(OPERATIONS["pool_tokens"], ours=competitors.Implementation(wrong))
        case = next(case for case in TINY_CASES if case["op"] == "pool_tokens" and case["implementation"] == "ours")
        with pytest.raises(cases.WrongResultError, match="expected under 1e-05"):
            cases.check(case, operation, torch.device("cpu"))

    def test_a_wrong_gradient_is_an_error(self):
        def wrong(states, weight, bias):
            return OPERATIONS["fuse_blocks"].eager(states, weight, bias.detach() + 0 * bias)

        operation = dataclasses.replace(OPERATIONS["fuse_blocks"], ours=competitors.Implementation(wrong))
        case = next(case for case in TINY_CASES if (case["op"], case["direction"]) == ("fuse_blocks", cases.BACKWARD))
        with pytest.raises(cases.WrongResultError):
            cases.check(case, operation, torch.device("cpu"))

    @pytest.mark.parametrize("tokens", [16, 4])
    def test_parts_of_the_model_give_what_the_model_gives(self, tokens):
        bench = bench_model.Bench(MODELS["tiny"], torch.device("cpu"))
        case = {"model": "tiny", "tokens": tokens, "batch": 2, "mode": "eager"}
        projected = bench.call(case | {"part": "projector"})[0]()
        assert projected.shape == (2, tokens, MODELS["tiny"].projector.llm)
        hidden = bench.call(case | {"part": "prefill"})[0]().last_hidden_state
        assert hidden.shape == (2, tokens + shapes.TEXT_TOKENS, MODELS["tiny"].projector.llm)
        generate, error = bench.call(case | {"part": "first_token"})
        assert error == 0
        assert generate().shape == (2, tokens + shapes.TEXT_TOKENS + 1)

    def test_a_wrong_first_token_is_an_error(self):
        bench = bench_model.Bench(MODELS["tiny"], torch.device("cpu"))
        bench.call({"model": "tiny", "tokens": 4, "batch": 2, "mode": "eager", "part": "first_token"})
        [model] = bench._models.values()
        inputs = bench_model.build_inputs(model, MODELS["tiny"], 2)
        with torch.no_grad():
            worst = model(**inputs).logits[:, -1, :100].argmin(1, keepdim=True)
        with pytest.raises(cases.WrongResultError, match="deviations below the best"):
            bench_model.check_first_token(model, inputs, torch.cat([inputs["input_ids"], worst], 1), [])


@needs_no_gpu
class TestWithoutGpu:
    @pytest.mark.parametrize("script", [bench_ops, bench_projector, bench_model], ids=lambda script: script.__name__)
    def test_prints_floors_and_writes_nothing(self, script, tmp_path, monkeypatch, capsys):
        status, out = run_script(script, monkeypatch, capsys, "--results", str(tmp_path / "results"))
        assert status == 0
        assert "not measured" in out
        assert "TFLOP/s, rates that are given" in out
        assert not (tmp_path / "results").exists()

    def test_floor_of_the_projector(self, monkeypatch, capsys):
        options = ["--widths", "7b", "--batches", "1", "--directions", "forward", "--matmul-tflop-s", "100"]
        _, out = run_script(bench_projector, monkeypatch, capsys, *options)
        assert "82.1 GFLOP" in out
        assert "floor   0.8214 ms" in out

    def test_dry_run_times_nothing(self, tmp_path, monkeypatch, capsys):
        options = [*OPTIONS, "--dry-run", "--results", str(tmp_path / "results")]
        status, out = run_script(bench_projector, monkeypatch, capsys, *options)
        assert status == 0
        assert out.count("agrees with the reference") == 6
        assert " ms" not in out
        assert not (tmp_path / "results").exists()

    def test_gpu_check_says_that_it_cannot(self, tmp_path):
        done = run_gpu_check(tmp_path, python=sys.executable)
        assert done.returncode == 2
        assert "no torch that sees a CUDA device" in done.stderr
        assert not (tmp_path / "state").exists()


def run_gpu_check(tmp_path, python, *options):
    environment = os.environ | {"PYTHON": str(python), "STATE": str(tmp_path / "state")}
    command = [ROOT / "scripts" / "gpu_check.sh", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


class TestGpuCheck:
    """Its steps, with a stand-in for the interpreter that sees a GPU and ends as its argument says."""

    @pytest.fixture
    def python(self, tmp_path):
        path = tmp_path / "python"
        path.write_text(
            '#!/bin/sh\necho "$*" >>"$STATE/calls"\n'
            'case "$*" in *bench_ops*--budget*) exit 1 ;; *bench_model*) exit 3 ;; esac\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        (tmp_path / "state").mkdir()
        return path

    def calls(self, tmp_path):
        return (tmp_path / "state" / "calls").read_text().splitlines()

    def test_goes_on_after_a_failure_and_says_how_it_went(self, tmp_path, python):
        done = run_gpu_check(tmp_path, python, "--out", str(tmp_path / "out"))
        assert done.returncode == 1
        summary = done.stdout.partition("== summary")[2]
        assert len([line for line in summary.splitlines() if line.endswith("  FAILED")]) == 2
        assert len([line for line in summary.splitlines() if line.endswith("  incomplete, run again to go on")]) == 2
        assert summary.rstrip().endswith("done")
        assert (tmp_path / "out" / "summary.txt").read_text().strip() == summary.strip()

    def test_a_finished_step_is_not_run_again(self, tmp_path, python):
        run_gpu_check(tmp_path, python)
        first = self.calls(tmp_path)
        assert any("-m pytest" in call for call in first)
        run_gpu_check(tmp_path, python)
        second = self.calls(tmp_path)[len(first) :]
        assert not any("-m pytest" in call or "bench_projector" in call for call in second)
        assert any("bench_ops" in call for call in second)
        assert any("tables.py" in call for call in second)

    def test_an_unknown_option_is_refused(self, tmp_path, python):
        assert run_gpu_check(tmp_path, python, "--nonsense").returncode == 2
