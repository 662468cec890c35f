"""A run that goes on has the options it began with, or says which one is another, before anything is loaded."""

import json
from pathlib import Path

import pytest

from llava_stf.errors import LlavaStfError
from llava_stf.training.config import FREE, FinetuneConfig, from_values

LORA = {"lora_rank": 2, "vision_tokens": 4, "max_steps": 2, "save_steps": 1}


@pytest.fixture(scope="module")
def begun(llava_base, data_folder, tmp_path_factory):
    """The options and the output of a LoRA run of two steps."""
    from llava_stf.training.finetune import finetune

    values = {
        "base": str(llava_base), "data": str(data_folder / "instruct.json"), "per_device_batch_size": 4,
        "output": str(tmp_path_factory.mktemp("runs") / "lora"), "num_workers": 0, "cpu_threads": 1, "bf16": False,
        **LORA,
    }  # fmt: skip
    finetune(from_values(values))
    return values


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora_rank": None}, "lora_rank 2 is now None"),
        ({"lora_rank": 4}, "lora_rank 2 is now 4"),
        ({"vision_tokens": (4, 1)}, r"vision_tokens 4 is now \[4, 1\]"),
        ({"learning_rate": 1e-5}, "learning_rate None is now 1e-05"),
        ({"stage": "distill"}, "stage 'instruct' is now 'distill'"),
        ({"seed": 1}, "seed 0 is now 1"),
        ({"base": "tiny-full"}, "base 'base0' is now 'tiny-full'"),
        ({"per_device_batch_size": 3}, "samples_per_step 4 is now 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_is_another_is_named(begun, changes, sentence):
    from llava_stf.training.finetune import finetune

    with pytest.raises(LlavaStfError, match=rf"checkpoint-2 .*other options \({sentence}\): resume with the old"):
        finetune(from_values({**begun, "max_steps": 4, "resume": True, **changes}))


def test_what_does_not_change_the_result_may_change(begun, tmp_path, data_folder):
    from llava_stf.training.finetune import finetune

    moved = tmp_path / "instruct.json"
    moved.write_bytes((data_folder / "instruct.json").read_bytes())
    changes = {"data": str(moved), "images": str(data_folder), "max_steps": 3, "per_device_batch_size": 2}
    finetune(from_values({**begun, **changes, "gradient_accumulation": 2, "save_steps": 9, "resume": True}))
    state = Path(begun["output"]) / "checkpoint-3" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 3


def test_every_field_is_compared_or_free():
    config = FinetuneConfig(base="b", data="d", output="o")
    known = {*config.identity(1), *FREE} - {"samples_per_step", "sharding"}
    assert known == set(FinetuneConfig.__dataclass_fields__)


def test_a_checkpoint_that_does_not_say_what_it_is_from_is_refused(begun, tmp_path):
    from llava_stf.training.finetune import finetune

    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    with pytest.raises(LlavaStfError, match="does not say what its run was like"):
        finetune(from_values({**begun, "output": str(tmp_path), "resume": True}))
