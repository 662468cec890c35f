"""The namespace of the operations in torch: `torch.ops.llava_stf`.

A build for Hugging Face's kernel hub replaces this file by one with a namespace of its own, so that several versions
can be loaded side by side; the two names here are the ones that its builder writes.
"""

import torch

ops = torch.ops.llava_stf


def add_op_namespace_prefix(op_name: str) -> str:
    """An operation's full name: `"pool_tokens"` -> `"llava_stf::pool_tokens"`."""
    return f"llava_stf::{op_name}"
