"""Vision tokens into the places that the prompt keeps for them."""

from .naive import naive_place_tokens
from .op import check_count, place_tokens

__all__ = ["check_count", "naive_place_tokens", "place_tokens"]
