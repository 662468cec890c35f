"""Chat templates of LLaVAs in the original format, which name their prompt in code: one for each language model.

Images come first in their turn, each followed by a newline. Every answer is closed by a token.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE

_CONTENT = (
    "{%- macro render(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for item in content if item['type'] != 'text' -%}{{- '<' + item['type'] + '>\n' -}}{%- endfor -%}"
    "{%- for item in content if item['type'] == 'text' -%}"
    "{{- item['text'] -}}{%- if not loop.last -%}{{- '\n' -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)


def _marked(system: str, begin: str, between: str, end: str) -> str:
    """A template whose turns are `begin`, role, `between`, text, `end`; `system` is said where nobody says another."""
    turn = f"{{{{- '{begin}' + {{role}} + '{between}' + {{text}} + '{end}' -}}}}"
    return (
        f"{_CONTENT}{{%- if not messages or messages[0]['role'] != 'system' -%}}"
        + turn.replace("{role}", "'system'").replace("{text}", f'"{system}"')
        + "{%- endif -%}{%- for message in messages -%}"
        + turn.replace("{role}", "message['role']").replace("{text}", "render(message['content'])")
        + f"{{%- endfor -%}}{{%- if add_generation_prompt -%}}{{{{- '{begin}assistant{between}' -}}}}{{%- endif -%}}"
    )


CHATML = _marked("You are a helpful assistant.", "<|im_start|>", "\\n", "<|im_end|>\\n")
LLAMA_3 = "{{- '<|begin_of_text|>' -}}" + _marked(
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.",
    "<|start_header_id|>", "<|end_header_id|>\\n\\n", "<|eot_id|>",
)  # fmt: skip
MISTRAL = (
    f"{_CONTENT}{{%- for message in messages -%}}{{%- if message['role'] == 'assistant' -%}}"
    "{{- ' ' + render(message['content']) + '</s>' -}}{%- else -%}"
    "{{- '[INST] ' + render(message['content']) + ' [/INST]' -}}{%- endif -%}{%- endfor -%}"
)


def template_for(text_type: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template of an original LLaVA on a language model of this model type."""
    if text_type == "mistral":
        return MISTRAL
    vocabulary = tokenizer.get_vocab()
    if text_type == "qwen2" and "<|im_end|>" in vocabulary:
        return CHATML
    return LLAMA_3 if "<|eot_id|>" in vocabulary else CHAT_TEMPLATE
