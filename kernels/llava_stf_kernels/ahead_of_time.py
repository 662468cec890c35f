"""Compile every kernel in every configuration for a GPU that is not there, and say what each takes of it.

    python -m llava_stf_kernels.ahead_of_time --capability 90        # a table; --json for one object per line

Needs Triton, no GPU and no driver. What does not fit a chip's shared memory, or spills registers, shows here and not at
a user's first call.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .joined_linear import configs as tiles
from .joined_linear import gradients, product
from .place_tokens import kernel as place
from .pool_tokens import kernel as pool

# Bytes a block may have (CUDA programming guide, technical specifications per compute capability).
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
_POINTERS = {
    "weight": "{}", "bias": "{}", "grad": "{}", "out": "{}", "x": "{}", "embeddings": "{}", "tokens": "{}",
    "out_embeddings": "{}", "out_tokens": "{}", "mask": "i1", "rank": "i32",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """One kernel, configuration and element type, compiled for one capability."""

    name: str
    capability: int
    dtype: str
    blocks: dict[str, int]
    warps: int
    stages: int
    aligned: bool  # widths and strides are multiples of 16, as in every LLaVA
    shared: int  # bytes of shared memory a block takes
    registers: int  # a thread
    stack: int  # bytes of local memory a thread takes: spilled registers

    @property
    def fits(self) -> bool:
        """Whether the device has that much shared memory."""
        return self.shared <= SHARED_MEMORY[self.capability]


def compile_all(capability: int, dtypes: Sequence[str] = ("bf16", "fp32")) -> Iterator[Compiled]:
    """Compile every kernel for `capability` (80 for sm_80), in all configurations that a user's device may try."""
    for dtype in dtypes:
        size = DTYPES[dtype]
        forward = tiles.configs_for(tiles.HALF_CONFIGS, size)
        recomputed = tiles.configs_for(tiles.HALF_CONFIGS, size, True)
        gradient = tiles.configs_for(tiles.HALF_GRADIENT_CONFIGS, size)
        for operation, sources in _SOURCES.items():
            for part, function, configs, constants in (
                ("", product.product_kernel, forward, _FORWARD),
                (", recomputed", product.product_kernel, recomputed, _BACKWARD),
                (", weight gradient", gradients.weight_grad_kernel, gradient, {"EVEN_ROWS": True}),
                (", source gradient", gradients.source_grad_kernel, gradient, {"EVEN_OUTPUTS": True}),
            ):
                constants = {"PRECISION": "ieee", "SOURCES": sources, **constants}
                for config in configs:
                    yield _compile(operation + part, function, config, constants, capability, dtype, aligned=True)
                odd = {key: False if key.startswith("EVEN") else value for key, value in constants.items()}
                yield _compile(operation + part, function, configs[0], odd, capability, dtype, aligned=False)
        for name, function in (("pool", pool.pool_kernel), ("pool, gradient", pool.spread_kernel)):
            for config in pool.CONFIGS:
                yield _compile(name, function, config, {"window": 2}, capability, dtype, aligned=True)
        blocks = triton.Config({"BLOCK_P": place.BLOCK_P, "BLOCK_H": place.BLOCK_H}, num_warps=4, num_stages=3)
        for name, function in (("place", place.place_kernel), ("place, gradient", place.collect_kernel)):
            yield _compile(name, function, blocks, {}, capability, dtype, aligned=True)


_SOURCES = {"fuse_blocks": 8, "fuse_windows": 1}
_FORWARD: dict[str, Any] = {"HAS_BIAS": True, "BACKWARD": False, "EVEN_CHANNELS": True, "grad": None}
_BACKWARD: dict[str, Any] = {"HAS_BIAS": True, "BACKWARD": True, "EVEN_CHANNELS": True}


def _compile(
    name: str,
    function: Any,
    config: triton.Config,
    constants: dict[str, Any],
    capability: int,
    dtype: str,
    *,
    aligned: bool,
) -> Compiled:
    while not isinstance(function, triton.JITFunction):  # under the autotuner
        function = function.fn
    constants = constants | config.kwargs
    signature: dict[str, Any] = {}
    divisible: list[tuple[int, ...]] = []
    for index, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument == "tensors":
            signature[argument] = ("*" + dtype,) * constants["SOURCES"]
            divisible += [(index, tensor) for tensor in range(constants["SOURCES"])]
        elif argument in _POINTERS:
            signature[argument] = "*" + _POINTERS[argument].format(dtype)
            divisible.append((index,))
        else:
            signature[argument] = "i32"
            divisible.append((index,))
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(function.arg_names.index(key),): value for key, value in constants.items()},
        attrs={path: [["tt.divisibility", 16]] for path in divisible} if aligned else {},
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return Compiled(
        name, capability, dtype, dict(config.kwargs), config.num_warps, config.num_stages, aligned,
        compiled.metadata.shared, registers, stack,
    )  # fmt: skip


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread takes, as the disassembler in Triton's wheel reads them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])


def main() -> None:
    """Compile for the device of the command line and print what each kernel needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=sorted(SHARED_MEMORY), default=90)
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["bf16", "fp32"])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set: interpreted kernels are not compiled. Unset it.")
    for compiled in compile_all(arguments.capability, arguments.dtypes):
        if arguments.json:
            print(json.dumps(asdict(compiled) | {"fits": compiled.fits}), flush=True)
        else:
            blocks = "x".join(str(size) for size in compiled.blocks.values())
            print(
                f"{compiled.name:24} {compiled.dtype} {blocks:12} {compiled.warps} warps {compiled.stages} stages "
                f"{'' if compiled.aligned else 'odd '}shared {compiled.shared / 1024:5.0f} KiB "
                f"registers {compiled.registers:3} stack {compiled.stack}{'' if compiled.fits else '  DOES NOT FIT'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
