"""Ask a LLaVA about images: one question, a batch in order, a stream of text, or a conversation of several turns."""

from llava_stf.inference.chat import Chat
from llava_stf.inference.first_token import measure_first_token
from llava_stf.inference.pipeline import LlavaStf
from llava_stf.inference.turns import Conversation, Images, Message, user_turn
from llava_stf.models.fusion.budget import VisionTokens
from llava_stf.models.fusion.detail import Detail

__all__ = [
    "Chat",
    "Conversation",
    "Detail",
    "Images",
    "LlavaStf",
    "Message",
    "VisionTokens",
    "measure_first_token",
    "user_turn",
]
