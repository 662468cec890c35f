#!/usr/bin/env bash
# triton 3.9.0, torch 2.13.0; run 2026-12-01.
#
# A kernel computes in float32 and stores bfloat16, on a CPU with TRITON_INTERPRET=1. (That arithmetic of bfloat16
# itself is not supported there is documented, and to compute in float32 is the way around that is named.)
# Expected: the result is rounded to the nearest bfloat16, as torch does and as the kernel does when it is compiled.
# Happens:  the interpreter cuts the lower 16 bits off, also where `fp_downcast_rounding="rtne"` asks for rounding. Half
#           of all numbers differ from torch's in the last bit, all of them towards zero, and a mean is off by 0.3 per
#           cent. float16 is rounded. A test of a kernel against torch needs twice the tolerance there, and a bias that
#           it shows is none of the kernel's.
#
# Seen (of 8,192 numbers: those that differ from torch's, those larger than in float32, the relative error of the mean):
#   interpreted, store to bfloat16             differ  49.6 %   larger   0.0 %   mean -2.9e-03
#   interpreted, cast with rounding "rtne"     differ  49.6 %   larger   0.0 %   mean -2.9e-03
#   interpreted, store to float16              differ   0.0 %   larger  50.1 %   mean  2.2e-06
#   torch, bfloat16                            differ   0.0 %   larger  49.6 %   mean  9.6e-06
#   compiled for CUDA: cvt.rn.bf16.f32
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy==2.4.6
cat > kernels.py <<'PY'
import triton
import triton.language as tl


@triton.jit
def halve(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at) * 0.5)


@triton.jit
def halve_rounded(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, (tl.load(x + at) * 0.5).to(tl.bfloat16, fp_downcast_rounding="rtne"))
PY
cat > interpreted.py <<'PY'
import torch
from kernels import halve, halve_rounded

N = 8192
torch.manual_seed(0)
x = torch.rand(N) + 0.5
exact = x * 0.5


def run(kernel, dtype):
    out = torch.empty(N, dtype=dtype)
    kernel[(1,)](x, out, N)
    return out


def measure(title, out):
    differ = float((out != exact.to(out.dtype)).double().mean())
    larger = float((out.double() > exact.double()).double().mean())
    mean = float(out.double().mean() / exact.double().mean() - 1)
    print(f"{title:42} differ {differ:6.1%}   larger {larger:6.1%}   mean {mean: .1e}".replace("%", " %"))
    return differ, larger, mean


for kernel, title in ((halve, "store to bfloat16"), (halve_rounded, 'cast with rounding "rtne"')):
    differ, larger, mean = measure(f"interpreted, {title}", run(kernel, torch.bfloat16))
    assert differ > 0.4 and larger == 0 and mean < -2e-3
differ, larger, mean = measure("interpreted, store to float16", run(halve, torch.float16))
assert differ == 0 and larger > 0.4
differ, larger, mean = measure("torch, bfloat16", exact.bfloat16())
assert larger > 0.4 and abs(mean) < 1e-4
PY
cat > compiled.py <<'PY'
import re

import triton
from kernels import halve
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

source = ASTSource(halve, signature={"x": "*fp32", "out": "*bf16", "N": "constexpr"}, constexprs={(2,): 128})
assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]  # needs no GPU
casts = set(re.findall(r"cvt\.[a-z0-9.]*bf16[a-z0-9.]*", assembly))
print("compiled for CUDA:", *casts)
assert casts and all(cast.startswith("cvt.rn.") for cast in casts)
PY
TRITON_INTERPRET=1 venv/bin/python interpreted.py
TRITON_CACHE_DIR="$dir/cache" venv/bin/python -W ignore compiled.py
