"""Mean of adjacent patches."""

from .naive import naive_pool_tokens
from .op import pool_tokens

__all__ = ["naive_pool_tokens", "pool_tokens"]
