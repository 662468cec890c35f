"""Static caches that are kept from one request to the next, and the lengths that requests are rounded up to.

A CUDA graph is of one shape and writes to fixed addresses, so lengths come in buckets and a cache is used again.
"""

from __future__ import annotations

from transformers import LlavaForConditionalGeneration, StaticCache

MAX_CACHES = 4


def prompt_bucket(length: int) -> int:
    """Length that a prompt is padded to: multiples of 32, from 512 on of an eighth of the power of two below."""
    return _round_up(length, 32, 8)


def cache_bucket(length: int) -> int:
    """Length of the static cache for prompt and answer together: 256, 512, 768, 1024, 1536, 2048, 3072, ..."""
    return _round_up(length, 256, 2)


def _round_up(length: int, smallest: int, steps: int) -> int:
    """Next multiple of the larger of `smallest` and one `steps`-th of the power of two that is not above `length`."""
    step = max(smallest, (1 << (length.bit_length() - 1)) // steps)
    return -(-length // step) * step


class StaticCaches:
    """The caches of one model, those used last.

    Args:
        model: what writes them.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._model = model
        self._caches: dict[tuple[int, int], StaticCache] = {}  # by rows and length, the one used last at the end

    def get(self, rows: int, length: int) -> StaticCache:
        """An empty cache for `rows` rows of at least `length` tokens, at the addresses that it had before."""
        fitting = [key for key in self._caches if key[0] == rows and key[1] >= length]
        key = min(fitting, default=(rows, cache_bucket(length)))
        cache = self._caches.pop(key, None)
        if cache is None:
            if len(self._caches) == MAX_CACHES:
                del self._caches[next(iter(self._caches))]
            cache = self._new_cache(*key)
        self._caches[key] = cache
        cache.reset()
        return cache

    def _new_cache(self, rows: int, length: int) -> StaticCache:
        text = self._model.config.text_config
        cache = StaticCache(config=text, max_cache_len=length)
        # Allocated here and not while tracing: CUDA graphs need addresses that torch was told are fixed.
        cache.early_initialization(
            batch_size=rows,
            num_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            dtype=self._model.dtype,
            device=self._model.device,
        )
        return cache
