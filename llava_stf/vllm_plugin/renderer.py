"""How vLLM turns a prompt into token ids: as `LlavaStfProcessor` does, each text chunk around an image on its own."""

from __future__ import annotations

from typing import Any

from vllm.renderers.hf import HfRenderer

from llava_stf.errors import PromptError
from llava_stf.models.llava_stf.conversation import tokenize_chunks


class LlavaStfRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face models, with the token ids that LLaVA was trained on.

    Every prompt begins with the beginning-of-sequence id, also one that a chat template wrote without it.
    """

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        """Token ids of a text prompt, one id for each image. Raises `PromptError` for markers without images."""
        tokenizer = self.get_tokenizer()
        image_token_id = self.model_config.hf_config.image_token_id
        ids = tokenize_chunks(
            tokenizer,
            prompt["prompt"],
            image_token_id=image_token_id,
            image_token=tokenizer.decode([image_token_id]),
        )
        if image_token_id in ids and not prompt.get("multi_modal_data"):
            raise PromptError(
                f"Expected one image per marker, found {ids.count(image_token_id)} markers in the text and no image."
            )
        return self._build_tokens_prompt(ids, prompt)
