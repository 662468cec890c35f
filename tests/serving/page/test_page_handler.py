"""What the page says of a model that has no windows to draw."""

import asyncio
from collections.abc import AsyncIterator

from PIL import Image

from llava_stf import apply_stf
from llava_stf.inference import LlavaStf
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.serving.memory import Memory
from llava_stf.serving.page import _head
from llava_stf.serving.page_handler import AnswerHandler, budgets
from llava_stf.serving.rows import GenerationRequest, Piece

from .conftest import OPTIONS


class TealEngine:
    """Says "Teal" to everything."""

    def __init__(self, llava: LlavaStf) -> None:
        self.llava = llava

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Piece]:
        yield Piece("Teal", 20, 16, 1, "stop")


def test_a_model_that_cuts_images_into_tiles_answers_and_counts_the_tokens_of_the_image(tmp_path):
    model, processor = tiny_llava_next()
    apply_stf(model, processor)
    engine = TealEngine(LlavaStf(model, processor))
    (budget,) = budgets([engine])
    assert (budget.title, budget.vision_tokens, budget.patches) == ("25 %", 4, 16)
    image = Image.new("RGB", (120, 100), "teal")
    image.save(tmp_path / "image.png")

    async def ask() -> str:
        handler = AnswerHandler([budget], OPTIONS, Memory())
        return [html async for html in handler.answer(str(tmp_path / "image.png"), "What colour?", [budget])][-1]

    html = asyncio.run(ask())
    count = processor(images=image, text="<image>").input_ids[0].count(model.config.image_token_id)
    assert f"{count} vision tokens" in html
    assert ">Teal<" in html
    assert "<rect" not in html
    assert "into tiles and reads each as 4 vision tokens instead of 16" in _head([budget], OPTIONS)
