"""Projectors of other papers under the same training: what is trained, saved, loaded and asked at each budget."""

import json

import pytest
import torch
from PIL import Image

from llava_stf import load_model
from llava_stf.analysis.visualise import block_contributions
from llava_stf.conversion.convert import convert_checkpoint
from llava_stf.errors import CheckpointError, FusionError, LlavaStfError
from llava_stf.io.runs import newest_checkpoint
from llava_stf.loading import read_config
from llava_stf.serving.vllm import vllm_command
from llava_stf.training.config import from_values

from .test_distill import changed_parts, losses, weights

PICTURE = Image.radial_gradient("L").convert("RGB")
RANDOM = {"init": "random", "vision_tokens": (4, 1)}


@pytest.mark.parametrize("reduction", ["tokenpacker", "mqt"])
@pytest.mark.parametrize("stage", ["align", "instruct", "distill"])
def test_every_stage_trains_loads_and_answers_at_each_budget(run, stage, reduction):
    data = "align.json" if stage == "align" else "instruct.json"
    output = run(data=data, stage=stage, reduction=reduction, max_steps=2, **RANDOM)
    llava = load_model(output)
    assert (llava.model.config.fusion, llava.model.config.vision_token_counts) == (reduction, [4, 1])
    for count in (4, 1):
        one = load_model(output, vision_tokens=count)
        assert one.vision_tokens == count
        questions = [(PICTURE, "What is it?"), (PICTURE.rotate(90), "Where is the circle now?")]
        together = one.ask_batch(questions, batch_size=2, max_new_tokens=4)
        assert together == [one.ask(*question, max_new_tokens=4) for question in questions]
        assert llava.ask(*questions[0], vision_tokens=count, max_new_tokens=4) == together[0]


@pytest.mark.parametrize("reduction", ["tokenpacker", "mqt"])
def test_the_stages_train_their_parts(run, reduction):
    first = run("first", data="align.json", stage="align", reduction=reduction, max_steps=1, **RANDOM)
    second = run("second", data="align.json", stage="align", base=str(first), max_steps=2)
    assert changed_parts(weights(first), weights(second)) == {"projector"}
    third = run("third", base=str(second), max_steps=2)
    assert changed_parts(weights(second), weights(third)) == {"projector", "language_model"}
    assert read_config(third).fusion == reduction


def test_adapters_are_trained_beside_a_resampler(run):
    output = run(reduction="tokenpacker", init="random", vision_tokens=4, lora_rank=2, max_steps=1)
    assert load_model(output).ask(PICTURE, "What is it?", max_new_tokens=2) is not None


def test_a_seed_is_one_start(run):
    starts = [run(name, reduction="mqt", init="random", seed=seed, max_steps=1, learning_rate=0.0)
              for name, seed in (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    one, same, other = (weights(folder)["multi_modal_projector.queries"] for folder in starts)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_m3_has_all_nested_budgets_and_is_saved_as_pooling(run, llava_base):
    output = run(reduction="m3", vision_tokens=16, vision_tokens_schedule="all", max_steps=2)
    config = read_config(output)
    assert (config.fusion, config.vision_token_counts) == ("pool", [16, 4, 1])
    assert changed_parts(weights(llava_base), weights(output)) == {"projector", "language_model"}
    assert [load_model(output, vision_tokens=count).vision_tokens for count in (16, 4, 1)] == [16, 4, 1]


@pytest.mark.parametrize("stage", ["instruct", "distill"])
def test_all_budgets_in_a_step_are_the_mean_of_one_after_the_other(run, stage):
    """With one step on one batch: the loss, and so the gradient, is the mean of those at single budgets."""
    options = {"stage": stage, "reduction": "pool", "per_device_batch_size": 12, "max_steps": 1}
    singles = [losses(run(f"{stage}{count}", vision_tokens=count, **options))[0] for count in (16, 4, 1)]
    together = run(f"{stage}all", vision_tokens=(16, 4, 1), vision_tokens_schedule="all", **options)
    assert losses(together)[0] == pytest.approx(sum(singles) / 3, rel=1e-4)
    assert stage == "distill" or len(set(singles)) == 3


def test_all_budgets_resume_where_they_stood(run):
    options = {"reduction": "m3", "vision_tokens": 4, "vision_tokens_schedule": "all", "save_steps": 1}
    whole = run("whole", max_steps=2, **options)
    cut = run("cut", max_steps=1, **options)
    run("cut", max_steps=2, resume=True, **options)
    assert newest_checkpoint(cut).name == "checkpoint-2"
    assert changed_parts(weights(whole), weights(cut)) == set()
    assert json.loads((cut / "config.json").read_text())["fusion_windows"] == [2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "tokenpacker"}, "reduction tokenpacker starts at random: give init random"),
        ({"reduction": "mqt", "init": "adapter.bin"}, "reduction mqt starts at random"),
        ({"reduction": "m3", "init": "random"}, "reduction m3 keeps the base's projector"),
        ({"reduction": "pool", "init": "random"}, "reduction pool keeps the base's projector"),
        ({"reduction": "mqt", "init": "random", "vision_tokens": "all"}, "reduction mqt does not"),
        ({"reduction": "q-former"}, "reduction"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(options, message):
    with pytest.raises(LlavaStfError, match=message) as error:
        from_values({"base": "tiny-full", "data": "d", "output": "o", **options})
    assert "\n" not in str(error.value)


def test_a_fused_base_takes_no_other_reduction(run, stf_folder):
    with pytest.raises(FusionError, match="fused projector of its own"):
        run(base=str(stf_folder), reduction="mqt", init="random")


def test_where_a_resampler_does_not_go_is_one_sentence(run, tmp_path):
    output = run(reduction="tokenpacker", init="random", max_steps=1)
    with pytest.raises(LlavaStfError, match="The plugin for vLLM knows the projectors of STF and pooling"):
        vllm_command(str(output), {})
    with pytest.raises(CheckpointError, match="A projector of kind 'tokenpacker' has no original format"):
        convert_checkpoint(output, tmp_path / "original", to="original")
    with pytest.raises(FusionError, match="only its projector joins several blocks"):
        block_contributions(load_model(output).model, torch.zeros(1, 3, 56, 56))
