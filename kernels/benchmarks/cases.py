"""One case of `bench_ops` or `bench_projector`: checked against the reference, then its memory and time measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from competitors import Arguments, Implementation, Operation
from measuring import peak_bytes, relative_error, rotation, time_calls, time_replays
from records import Case, Row
from shapes import WIDTHS, WORK, Work
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of the relative norm. float32 differs by the order of sums; half precision by its roundings, of 2**-9 in bfloat16, in
# the operands of every product.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
FORWARD, BACKWARD = DIRECTIONS = ("forward", "forward+backward")


class WrongResultError(RuntimeError):
    """An implementation differs from the reference by more than its dtype explains: there is nothing to time."""


def work_of(case: Case) -> Work:
    """FLOPs and least bytes of a case."""
    widths, batch = WIDTHS[str(case["model"])], int(case["batch"])
    itemsize = DTYPES[str(case["dtype"])].itemsize
    return WORK[str(case["op"])](widths, batch, itemsize, case["direction"] == BACKWARD)


def check(case: Case, operation: Operation, device: torch.device) -> float:
    """The largest relative error of a case's outputs, nothing timed. Raises `WrongResultError`."""
    implementation, run = _implementation(case, operation)
    [arguments] = _draw(case, operation, implementation, device, copies=1)
    return _error(case, operation, implementation, run, arguments)


def measure(case: Case, operation: Operation, device: torch.device, seconds: float) -> Row:
    """Check a case on a CUDA device, then measure it for about `seconds`. Raises `WrongResultError`."""
    implementation, run = _implementation(case, operation)
    [arguments] = _draw(case, operation, implementation, device, copies=1)
    changing = [value for index, value in enumerate(arguments) if index not in operation.shared]
    copies = rotation(sum(tensor.numel() * tensor.itemsize for tensor in _tensors(changing)))
    error = _error(case, operation, implementation, run, arguments)
    peak = None if implementation.own_graphs else peak_bytes(run, arguments)
    sets = [arguments, *_draw(case, operation, implementation, device, copies=copies - 1, like=arguments)]
    timing = time_calls(run, sets, seconds=seconds)
    graph = None
    if implementation.capturable and case["direction"] == FORWARD:
        graph = time_replays(run, sets, seconds=seconds)
    work = work_of(case)
    return Row(
        case=case, ms=timing.ms, spread_ms=timing.spread_ms, repeats=timing.repeats, launches=timing.launches,
        flops=work.flops, bytes=work.bytes, graph_ms=graph, peak_bytes=peak, error=error,
    )  # fmt: skip


def _implementation(case: Case, operation: Operation) -> tuple[Implementation, Callable[..., list[Tensor]]]:
    """The case's implementation, and a function that runs it on one set of arguments: output, then gradients."""
    implementation = operation.implementation(str(case["implementation"]))

    def forward(*arguments: Any) -> list[Tensor]:
        with torch.no_grad():
            return [implementation.call(*arguments)]

    return implementation, forward if case["direction"] == FORWARD else _differentiated(implementation.call, operation)


def _differentiated(call: Callable[..., Tensor], operation: Operation) -> Callable[..., list[Tensor]]:
    """The last argument becomes the output's gradient, the gradients of the leaves follow the output."""

    def run(*arguments: Any) -> list[Tensor]:
        *inputs, gradient = arguments
        output = call(*inputs)
        return [output.detach(), *torch.autograd.grad(output, _leaves(inputs, operation), gradient)]

    return run


def _leaves(arguments: Any, operation: Operation) -> list[Tensor]:
    return _tensors([arguments[index] for index in operation.leaves])


def _tensors(arguments: Any) -> list[Tensor]:
    """The tensors among the arguments, those in lists included."""
    found: list[Tensor] = []
    for value in arguments:
        found += value if isinstance(value, list) else [value] if isinstance(value, Tensor) else []
    return found


def _draw(
    case: Case,
    operation: Operation,
    implementation: Implementation,
    device: torch.device,
    *,
    copies: int,
    like: Arguments | None = None,
) -> list[Arguments]:
    """Sets of random arguments, the window weight prepared; those that are shared are taken from `like`.

    Backward's sets end in a gradient of the output.
    """
    widths, batch, dtype = WIDTHS[str(case["model"])], int(case["batch"]), DTYPES[str(case["dtype"])]
    sets = []
    for _ in range(copies):
        arguments = list(operation.draw(widths, batch, device, dtype))
        gradient = []
        if case["direction"] == BACKWARD:
            with torch.no_grad():
                gradient = [torch.randn_like(operation.eager(*arguments) if like is None else like[-1])]
        if operation.window_weight is not None:
            weight = arguments[operation.window_weight]
            with torch.no_grad():
                arguments[operation.window_weight] = implementation.prepare(weight, widths.window)
        if like is not None:
            for index in operation.shared:
                arguments[index] = like[index]
        if gradient:
            for leaf in _leaves(arguments, operation):
                leaf.requires_grad_()
        sets.append((*arguments, *gradient))
    return sets


def _error(
    case: Case,
    operation: Operation,
    implementation: Implementation,
    run: Callable[..., list[Tensor]],
    arguments: Arguments,
) -> float:
    """Largest relative error over the outputs (and gradients) against the eager formulation in float32."""
    index = operation.window_weight

    def restored(*exact: Any) -> Tensor:
        values = list(exact)
        if index is not None:
            values[index] = implementation.restore(values[index])
        return operation.eager(*values)

    exact = _in_float32(arguments)
    if case["direction"] == BACKWARD:
        for leaf in _leaves(exact, operation):
            leaf.requires_grad_()
        expected = _differentiated(restored, operation)(*exact)
    else:
        with torch.no_grad():
            expected = [restored(*exact)]
    for _ in range(2):  # a compiled graph computes its first calls in another way than the later, timed ones
        run(*arguments)
    errors = [relative_error(found, wanted) for found, wanted in zip(run(*arguments), expected, strict=True)]
    tolerance = TOLERANCES[DTYPES[str(case["dtype"])]]
    wrong = [error for error in errors if not error < tolerance]  # NaN is wrong, too
    if wrong:
        raise WrongResultError(f"relative errors of output and gradients {errors}, expected under {tolerance}")
    return max(errors)


def _in_float32(arguments: Arguments) -> Arguments:
    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(torch.float32, copy=True)
        return value

    return tuple(cast(value) for value in arguments)
