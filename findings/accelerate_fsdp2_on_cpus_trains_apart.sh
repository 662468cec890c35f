#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0; run 2026-11-29.
#
# `accelerate launch` with a config of FSDP2, two processes and `use_cpu: true`.
# Expected: two processes that share a model and the rows, or an error that FSDP does not run on CPUs.
# Happens:  two processes start, each believes to be alone (DistributedType.NO, one process), reads all rows and trains a
#           model of its own. Both write their result to the same place at the end. Exit status 0, no warning.
#
# Seen:
#   rank 0 of 2: DistributedType.NO, 1 process, rows [0, 1, 2, 3], Linear of Parameter
#   rank 1 of 2: DistributedType.NO, 1 process, rows [0, 1, 2, 3], Linear of Parameter
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cat >config.yaml <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
mixed_precision: "no"
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: SIZE_BASED_WRAP
  fsdp_min_num_params: 1
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
YAML
cat >train.py <<'PY'
import os

import torch
from accelerate import Accelerator

accelerator = Accelerator()
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
loader = torch.utils.data.DataLoader(torch.arange(4.0)[:, None])
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
rows = []
for x in loader:
    rows.append(int(x.item()))
    accelerator.backward(model(x).square().mean())
    optimizer.step()
    optimizer.zero_grad()
kind = f"{type(model).__name__} of {type(next(model.parameters())).__name__}"
with open(f"rank{os.environ['RANK']}", "w") as file:
    print(
        f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: {accelerator.distributed_type}, "
        f"{accelerator.num_processes} process, rows {rows}, {kind}",
        file=file,
    )
PY
CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1 venv/bin/accelerate launch --config_file config.yaml train.py >log 2>&1 || { cat log; exit 1; }
cat rank0 rank1
for rank in 0 1; do
    grep -qxF "rank $rank of 2: DistributedType.NO, 1 process, rows [0, 1, 2, 3], Linear of Parameter" "rank$rank"
done
