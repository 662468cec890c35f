#!/usr/bin/env bash
# deepspeed 0.19.8 with torch 2.13.0, on one CPU process; run 2026-11-30.
#
# Two weights, plain SGD with a learning rate of 1. The first step uses both, the second only one of them.
# Expected: the weight without a gradient in the second step stays, as it does without DeepSpeed and under ZeRO-2.
# Happens:  ZeRO-3 takes the gradient of the first step once more: the weight moves again, and counts in the norm.
#
# Seen:
#   torch:  used 2 -> 1 -> 0, unused in the second step 2 -> 1 -> 1
#   ZeRO-2: used 2 -> 1 -> 0, unused in the second step 2 -> 1 -> 1
#   ZeRO-3: used 2 -> 1 -> 0, unused in the second step 2 -> 1 -> 0
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0
DS_BUILD_OPS=0 venv/bin/pip install -q --disable-pip-version-check deepspeed==0.19.8 ninja setuptools numpy
cat > seen.py <<'PY'
import os
import sys

import torch

stage = int(sys.argv[1])


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used = torch.nn.Linear(1, 1, bias=False)
        self.unused = torch.nn.Linear(1, 1, bias=False)
        for layer in (self.used, self.unused):
            torch.nn.init.constant_(layer.weight, 2.0)

    def forward(self, both):
        one = torch.ones(1, 1)
        return (self.used(one) + (self.unused(one) if both else 0)).sum()


def values(model):
    if not stage:
        return [weight.item() for weight in model.parameters()]
    from deepspeed.utils import safe_get_full_fp32_param

    return [safe_get_full_fp32_param(weight).item() for weight in model.parameters()]


model = Two()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
history = [[2.0, 2.0]]
if stage:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
for both in (True, False):
    if stage:
        engine.backward(engine(both))
        engine.step()
    else:
        optimizer.zero_grad()
        model(both).backward()
        optimizer.step()
    history.append(values(model))
shown = [" -> ".join(f"{value:g}" for value in weight) for weight in zip(*history)]
name = f"ZeRO-{stage}:" if stage else "torch: "
print(f"{name} used {shown[0]}, unused in the second step {shown[1]}", flush=True)
assert shown == ["2 -> 1 -> 0", "2 -> 1 -> 0" if stage == 3 else "2 -> 1 -> 1"]
if stage:
    torch.distributed.destroy_process_group()
PY
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu PATH="$dir/venv/bin:$PATH"
for stage in 0 2 3; do
    venv/bin/python seen.py $stage 2> log | grep "^[tZ]" || { cat log; exit 1; }
done
