"""DeepSpeed on its CPU accelerator, in an environment of its own (`make test-deepspeed`), against one process.

Tolerances as in `test_sharded.py`. ZeRO-3 leaves small weights whole by default, and all of these are small: it is run
so, and with every weight cut up.
"""

import json
import shutil

import pytest

pytest.importorskip("deepspeed", reason="needs DeepSpeed: make test-deepspeed")
pytestmark = pytest.mark.distributed
ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "zero_force_ds_cpu_optimizer": False,
}
STAGES = {
    "instruct": {},
    "lora": {"lora_rank": 1, "lora_dropout": 0.0},
    "distill": {"stage": "distill"},
    "align": {"stage": "align", "data": "align.json"},
}


@pytest.fixture(params=["zero2", "zero3", "zero3-all-sharded"])
def begin(request, run_in, tmp_path):
    """Starts a run in two processes."""
    config, environment = f"deepspeed-{request.param[:5]}.yaml", {"DS_ACCELERATOR": "cpu"}
    if request.param == "zero3-all-sharded":
        file = tmp_path / "zero3.json"
        file.write_text(json.dumps(ZERO3))
        config = tmp_path / "zero3.yaml"
        told = {"deepspeed_config_file": str(file), "zero3_init_flag": False}
        config.write_text(json.dumps({**COMMON, "deepspeed_config": told}))
    return lambda *flags, **options: run_in(2, *flags, config=config, environment=environment, **options)


COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "DEEPSPEED",
    "num_processes": 2,
    "num_machines": 1,
}


def test_a_step_of_text_alone_leaves_the_projector_as_in_one_process(run, begin, tmp_path, same_run):
    one = run("one", per_device_batch_size=2, max_steps=6)
    two = begin("two", per_device_batch_size=1, max_steps=6, save_steps=3, save_total_limit=2)
    assert two.wait(600) == [0, 0], two.log()
    same_run(tmp_path / "two", one)
    shutil.copytree(tmp_path / "two" / "checkpoint-3", tmp_path / "on" / "checkpoint-3")
    on = begin("on", "--resume", per_device_batch_size=1, max_steps=6)
    assert on.wait(600) == [0, 0], on.log()
    same_run(tmp_path / "on", one)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_end_where_one_does(run, begin, tmp_path, same_run, stage):
    one = run("one", max_steps=4, **STAGES[stage])
    two = begin("two", max_steps=4, save_steps=2, save_total_limit=2, **STAGES[stage])
    assert two.wait(600) == [0, 0], two.log()
    same_run(tmp_path / "two", one)
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "on" / "checkpoint-2")
    on = begin("on", "--resume", max_steps=4, **STAGES[stage])
    assert on.wait(600) == [0, 0], on.log()
    same_run(tmp_path / "on", one)
