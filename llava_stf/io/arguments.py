"""What numbers of a module's command line may be, as `type` of argparse: any other is its sentence and exit code 2."""

from __future__ import annotations

from argparse import ArgumentTypeError


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, "of at least 1", least=1)


def seed(text: str) -> int:
    """A whole number that every generator of random numbers can start from."""
    return _whole(text, "of at least 0 and below 2**32", least=0, below=2**32)


def _whole(text: str, said: str, *, least: int, below: float = float("inf")) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < below:
        raise ArgumentTypeError(f"expected a whole number {said}, found '{text}'")
    return value
