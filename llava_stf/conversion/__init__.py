"""Checkpoint conversion between the authors' format, haotian-liu's LLaVA-1.5 and Hugging Face's layout."""

from llava_stf.conversion.convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
