"""What vLLM's configuration of a LLaVA-STF needs beyond the checkpoint's own: checked and set before anything loads."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from llava_stf.vllm_plugin import TOKENIZER_MODE
from llava_stf.vllm_plugin.served import check_served


class LlavaStfModelConfig(VerifyAndUpdateConfig):
    """Refuses what vLLM cannot serve and chooses the tokenisation of LLaVA-STF."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Check that vLLM has the vision tower. Raises `FusionError` if not, see `check_served`."""
        check_served(model_config.hf_config)
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = TOKENIZER_MODE

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Check that the model can be spread over the ranks. Raises `FusionError` if not, see `check_served`."""
        check_served(vllm_config.model_config.hf_config, vllm_config.parallel_config.tensor_parallel_size)
