#!/usr/bin/env bash
# torch 2.13.0 (oneDNN inside); run 2026-11-30 on a Xeon with AMX.
#
# A linear layer is asked about inputs of 500 different numbers of rows, as batches of texts have them, twice each.
# Expected: a product costs what its size says.
# Happens:  in bfloat16 oneDNN compiles a kernel for every number of rows that it meets, exactly that number, and keeps
#           the last 1,024 kernels of a process; in float32 torch asks another library, which compiles nothing. The first
#           product of a size costs six to eleven times the next one. So small models trained on batches of changing size
#           are slow in bfloat16; with sizes rounded up to a multiple of 128 they are not.
#
# Seen (on a busy core; milliseconds are printed, and not compared):
#   bfloat16: 500 sizes, 500 kernels compiled, 500 found; first 15.97 ms, again 2.85 ms
#   bfloat16, rounded up to 128: 500 sizes, 5 kernels compiled, 995 found; first 2.02 ms, again 2.07 ms
#   float32: 500 sizes, 0 kernels compiled, 0 found; first 12.77 ms, again 9.30 ms
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > sizes.py <<'PY'
import sys
import time

import torch

dtype, step = getattr(torch, sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
weight = torch.randn(1024, 192, dtype=dtype)
sizes = range(1301, 1801)
with torch.inference_mode():
    for name in ("first", "again"):
        seconds = 0.0
        for rows in sizes:
            x = torch.randn(rows + -rows % step, 192, dtype=dtype)
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            seconds += time.perf_counter() - start
        print(f"{name} {1000 * seconds / len(sizes):.2f} ms", file=sys.stderr)
PY
cat > show.py <<'PY'
import os
import subprocess
import sys

import torch

if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    sys.exit("This CPU has no bfloat16 products by oneDNN (AVX-512 or newer): nothing to show here.")
seen = {}
for dtype, step in (("bfloat16", 1), ("bfloat16", 128), ("float32", 1)):
    command = [sys.executable, "sizes.py", dtype, str(step)]
    env = os.environ | {"ONEDNN_VERBOSE": "profile_create"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    compiled, found = (run.stdout.count(f"create:{what}") for what in ("cache_miss", "cache_hit"))
    seen[dtype, step] = (compiled, found)
    title = dtype + (f", rounded up to {step}" if step > 1 else "")
    times = ", ".join(run.stderr.strip().splitlines())
    print(f"{title}: 500 sizes, {compiled} kernels compiled, {found} found; {times}")
assert seen == {("bfloat16", 1): (500, 500), ("bfloat16", 128): (5, 995), ("float32", 1): (0, 0)}, seen
PY
venv/bin/python show.py
