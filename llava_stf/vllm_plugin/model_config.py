"""What vLLM's configuration of a LLaVA-STF needs beyond the checkpoint's own: checked and set before anything loads."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from llava_stf.errors import FusionError
from llava_stf.vllm_plugin import TOKENIZER_MODE

# The vision towers that vLLM has, by model type.
TOWERS = ("clip_vision_model", "siglip_vision_model")


class LlavaStfModelConfig(VerifyAndUpdateConfig):
    """Refuses what vLLM cannot serve and chooses the tokenisation of LLaVA-STF."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Check that vLLM has the vision tower.

        Raises:
            FusionError: it does not.
        """
        tower = model_config.hf_config.vision_config.model_type
        if tower not in TOWERS:
            raise FusionError(
                f"vLLM serves LLaVA-STF with the vision towers {' and '.join(TOWERS)}, found {tower}; serve this model "
                "on transformers: llava-stf serve."
            )
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = TOKENIZER_MODE
