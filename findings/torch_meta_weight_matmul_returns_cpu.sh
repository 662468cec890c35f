#!/usr/bin/env bash
# torch 2.13.0; run 2026-11-28.
#
# A CPU tensor meets a weight on the meta device, which has a shape and no values (as where a loader left a weight
# behind or an offloading hook did not run).
# Expected: an error about two devices for every operation.
# Happens:  add, mul and layer_norm raise; F.linear and matmul return a CPU tensor of the right shape. No value can be
#           right, since the weight has none: a forward pass of linear layers goes on without an error.
#
# Seen:
#   F.linear:   cpu, shape (2, 3)
#   matmul:     cpu, shape (2, 3)
#   add:        RuntimeError
#   mul:        RuntimeError
#   layer_norm: RuntimeError
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from torch.nn import functional as F

x = torch.ones(2, 4)
weight = torch.empty(3, 4, device="meta")
operations = {
    "F.linear": lambda: F.linear(x, weight),
    "matmul": lambda: x @ weight.t(),
    "add": lambda: x + weight[:2],
    "mul": lambda: x * weight[:2],
    "layer_norm": lambda: F.layer_norm(x, (4,), weight[0]),
}
seen = {}
for name, operation in operations.items():
    try:
        result = operation()
        seen[name] = f"{result.device}, shape {tuple(result.shape)}"
    except RuntimeError:
        seen[name] = "RuntimeError"
    print(f"{name + ':':11} {seen[name]}")
assert seen == {
    "F.linear": "cpu, shape (2, 3)",
    "matmul": "cpu, shape (2, 3)",
    "add": "RuntimeError",
    "mul": "RuntimeError",
    "layer_norm": "RuntimeError",
}
PY
