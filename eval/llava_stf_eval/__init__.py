"""Evaluation of llava_stf models. Holds no public name yet."""

__all__: list[str] = []
