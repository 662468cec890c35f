"""Training in this process."""

import pytest


@pytest.fixture
def run(tmp_path, llava_base, data_folder):
    """Trains in this process and returns the output folder."""

    from llava_stf.training.config import from_values
    from llava_stf.training.finetune import finetune

    def start(name="out", data="instruct.json", **options):
        values = {
            "base": str(llava_base),
            "data": str(data_folder / data),
            "output": str(tmp_path / name),
            "per_device_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "num_workers": 0,
            "cpu_threads": 1,
            "logging_steps": 1,
            "bf16": False,
        }
        finetune(from_values({**values, **options}))
        return tmp_path / name

    return start
