"""One process of a sharded run on CPUs. Accelerate shards on GPUs alone, so it is told that gloo on CPUs is one.

Not imported: the fixture `start` runs it in a fork. Everything else is what `accelerate launch` and
`llava_stf.training.finetune` do.
"""

import os

import transformers


def main(arguments):
    """Entry point of `llava_stf.training.finetune`, in a process that shards."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    arguments_class = transformers.TrainingArguments
    transformers.TrainingArguments = lambda **fields: arguments_class(**{**fields, "use_cpu": False})
    from llava_stf.training.finetune import main as train

    return train(arguments)
