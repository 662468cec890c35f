"""`place_tokens` as an operation that torch knows: autograd, `torch.compile`, the count check, the backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix, ops
from ..dispatch import choose_backend, kernel_module, launches_directly
from .naive import naive_place_tokens


def place_tokens(embeddings: Tensor, tokens: Tensor, mask: Tensor, *, backend: str | None = None) -> Tensor:
    """The LLM's input: `embeddings` with the projector's `tokens` in the places of `mask`, in raster order.

    Args:
        embeddings: [B, T, H] of the prompt.
        tokens: [R, H], in the dtype of `embeddings`.
        mask: bool [B, T], true in exactly R places.
        backend: `"triton"`, `"torch"`, or `None` for `LLAVA_STF_KERNELS`, else the best that the device has.

    Returns:
        [B, T, H], a new tensor.

    Raises:
        ValueError: shapes do not fit, the mask does not have R places, or Triton was asked for where it cannot run
            (`BackendError`). On a CUDA device, and in a compiled graph, the count is checked without waiting for the
            device: there a wrong one is a failed device assertion (`RuntimeError`) at a later synchronisation.
    """
    if tokens.dim() != 2 or embeddings.shape != (*mask.shape, tokens.shape[-1]):
        raise ValueError(
            f"Expected embeddings [B, T, H], tokens [R, H] and a mask [B, T], found {tuple(embeddings.shape)}, "
            f"{tuple(tokens.shape)} and {tuple(mask.shape)}."
        )
    check_count(mask, len(tokens))
    if choose_backend(backend, embeddings, tokens) == "torch":
        return naive_place_tokens(embeddings, tokens, mask)
    if launches_directly(embeddings, tokens):
        return kernel_module(__package__).forward(embeddings, tokens, mask)
    return ops.place_tokens(embeddings, tokens, mask)


def check_count(mask: Tensor, tokens: int) -> None:
    """Check that `mask` has `tokens` places; on a device, assert it there without waiting.

    Raises:
        ValueError: it has another number.
    """
    places = mask.sum()
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(places == tokens, f"The prompt must have {tokens} image places, one for each vision token.")
    elif places != tokens:
        raise ValueError(
            f"The prompt has {int(places)} image places for {tokens} vision tokens: each image needs one <image>, "
            "expanded to the number of tokens that the model gives an image."
        )


@torch.library.custom_op(add_op_namespace_prefix("place_tokens"), mutates_args=())
def _forward(embeddings: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return kernel_module(__package__).forward(embeddings, tokens, mask)


@_forward.register_fake
def _(embeddings: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return embeddings.new_empty(embeddings.shape)


@torch.library.custom_op(add_op_namespace_prefix("place_tokens_backward"), mutates_args=())
def _backward(grad: Tensor, mask: Tensor, rows: int) -> list[Tensor]:
    return kernel_module(__package__).backward(grad, mask, rows)


@_backward.register_fake
def _(grad: Tensor, mask: Tensor, rows: int) -> list[Tensor]:
    return [grad.new_empty(grad.shape), grad.new_empty(rows, grad.shape[-1])]


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    _, tokens, mask = inputs
    ctx.rows = len(tokens)
    ctx.save_for_backward(mask)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    (mask,) = ctx.saved_tensors
    of_embeddings, of_tokens = ops.place_tokens_backward(grad, mask, ctx.rows)
    return of_embeddings, of_tokens, None


_forward.register_autograd(_differentiate, setup_context=_save)
