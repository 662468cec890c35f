"""When a linear layer's weight may be read past the layer itself, and a sentence where it may not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llava_stf.errors import FusionError


def unreadable_reason(layer: nn.Module) -> str | None:
    """Why the weight of a layer is not what the layer computes with; `None` for a plain linear layer.

    A quantized weight is a code, an adapter's layer adds to its weight, a sharded one is a part, and that of a layer
    that accelerate offloads stands on the device meta and holds nothing outside the layer's own forward pass.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, DTensor):
        return "is sharded"
    if isinstance(weight, Tensor) and weight.device.type == "meta":
        return "is offloaded"
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        return f"is quantized ({type(layer).__name__})"
    if type(layer) is not nn.Linear or type(weight) is not nn.Parameter:
        return f"is quantized, wrapped or sharded (a {type(layer).__name__} with a {type(weight).__name__})"
    if weight.shape != (layer.out_features, layer.in_features):
        return "is sharded"
    return None


def is_plain_layer(layer: nn.Module) -> bool:
    """Whether a kernel may stand in for a layer's forward pass: its weight is all there is to it."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return unreadable_reason(layer) is None and not hooked


def plain_weight(layer: nn.Module, name: str) -> Tensor:
    """The weight [out, in] of a plain linear layer.

    Args:
        layer: the layer.
        name: what the message calls it.

    Raises:
        FusionError: the layer is quantized, wrapped by an adapter, sharded or offloaded.
    """
    found = unreadable_reason(layer)
    if found is not None:
        raise FusionError(
            f"Expected a plain linear layer on a device at {name}, found one that {found}; load the model with its "
            "projector whole and unquantized, and wrap, shard or offload it afterwards."
        )
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
