"""Ask a LLaVA about images: one question, a batch in order, a stream of text, or a conversation of several turns."""

from llava_stf.inference.pipeline import (
    Chat,
    Conversation,
    Images,
    LlavaStf,
    Message,
    VisionTokens,
    measure_first_token,
    user_turn,
)

__all__ = [
    "Chat",
    "Conversation",
    "Images",
    "LlavaStf",
    "Message",
    "VisionTokens",
    "measure_first_token",
    "user_turn",
]
