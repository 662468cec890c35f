#!/usr/bin/env bash
# torch 2.13.0; run 2026-11-29.
#
# A module sharded by `fully_shard` (FSDP2) is evaluated once before its optimizer is made, or after.
# Expected: the same training.
# Happens:  the root unit keeps its gathered parameters after a forward pass, so `parameters()` gives plain tensors
#           instead of the shards. An optimizer made then holds those: it steps, nothing is raised, and the parameters
#           of the root unit (of a language model its embeddings, last norm and head) are never trained.
#
# Seen (loss of four steps; type of the parameter when the optimizer is made):
#   optimizer, then evaluation: DTensor    1.392 0.501 0.180 0.065
#   evaluation, then optimizer: Parameter  1.392 1.392 1.392 1.392
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import os
import socket

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (1,))
x = torch.ones(1, 4)


def evaluate(model):
    with torch.no_grad():
        model(x)


def losses(evaluation_first):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4, bias=False)
    fully_shard(model, mesh=mesh)
    if evaluation_first:
        evaluate(model)
    kind = type(model.weight).__name__
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if not evaluation_first:
        evaluate(model)
    seen = []
    for _ in range(4):
        loss = model(x).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    order = "evaluation, then optimizer:" if evaluation_first else "optimizer, then evaluation:"
    print(f"{order} {kind:10}", *(f"{loss:.3f}" for loss in seen))
    return seen


right, late = losses(False), losses(True)
dist.destroy_process_group()
assert right[0] > right[1] > right[2] > right[3]
assert len(set(late)) == 1
PY
