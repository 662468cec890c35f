"""How vLLM makes token ids of messages and prompts: as the model's processor does, each chunk around an image alone."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vllm.renderers.hf import HfRenderer, resolve_chat_template
from vllm.transformers_utils.processor import cached_processor_from_config

from llava_stf.errors import PromptError
from llava_stf.models.llava_stf.quoting import control_pattern, quote_messages, without_quotes
from llava_stf.models.registry import family_of_config


class LlavaStfRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face models, with the token ids that the model was trained on.

    A prompt begins with the beginning-of-sequence id where the processor says so, also if no template wrote it. What
    messages say is text: a control token in it (`</s>`) is quoted while the chat template is filled, and has the ids of
    its characters. A prompt that comes without a template is read as it is.
    """

    def render_messages(self, messages: Any, params: Any) -> Any:
        """As vLLM's, with quoted texts in the prompt. Raises `PromptError` for a text that is none."""
        conversation, prompt = super().render_messages(self._quoted(messages, params), params)
        return without_quotes(conversation), prompt

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        """As `render_messages`."""
        conversation, prompt = await super().render_messages_async(self._quoted(messages, params), params)
        return without_quotes(conversation), prompt

    def _quoted(self, messages: Any, params: Any) -> list[Any]:
        tokenizer, processor = self.get_tokenizer(), self._processor
        template = resolve_chat_template(tokenizer, params.chat_template, None, model_config=self.model_config)
        markers = {processor.image_token, processor.video_token}
        try:
            return quote_messages(messages, control_pattern(tokenizer, str(template), markers))
        except UnicodeEncodeError as error:
            raise PromptError(f"A message is no valid Unicode text: {error.reason}.") from error

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        """Token ids of a text prompt, one for each image and video. Raises `PromptError` for markers without them."""
        processor = self._processor
        ids = processor.ids_of(prompt["prompt"])
        found = sum(map(ids.count, {processor.image_token_id, processor.video_token_id} - {None}))
        if found and not prompt.get("multi_modal_data"):
            raise PromptError(f"Expected one image per marker, found {found} markers in the text and no image.")
        return self._build_tokens_prompt(ids, {**prompt, "prompt": without_quotes(prompt["prompt"])})

    @cached_property
    def _processor(self) -> Any:
        """That of the model, with the tokenizer that several threads may use."""
        kind = family_of_config(self.model_config.hf_config).processor
        return cached_processor_from_config(
            self.model_config, processor_cls=kind, tokenizer=self.get_tokenizer(), backend="pil"
        )
