"""The processor of ViP-LLaVA on fused tokens, which is LLaVA-STF's: square images of one size."""

from __future__ import annotations

from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor


class VipLlavaStfProcessor(LlavaStfProcessor):
    """Prepares images and prompts, see `LlavaStfProcessor`."""
