"""The page to try a model: an image, a question, the streamed answer, at each of the model's budgets.

Everything that a browser loads comes from this server; gradio draws the page, `page_guard` keeps it to what it is for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse, Response

from llava_stf.errors import LlavaStfError, MissingDependencyError
from llava_stf.loading import BUNDLED
from llava_stf.serving.page_cards import EMPTY, render_error
from llava_stf.serving.page_guard import PageGuard
from llava_stf.serving.page_handler import AnswerHandler, Budget, budgets
from llava_stf.serving.page_login import Login
from llava_stf.world import draw

try:
    import gradio as gr
except ImportError as error:
    raise MissingDependencyError("The page needs gradio: pip install 'llava-stf[serve]'.") from error

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava_stf.serving.engine import Engine
    from llava_stf.serving.options import ServeOptions

PATH = "/ui"
KEEP_SECONDS = 3600  # of an uploaded image
# Held-out images, by their index, each with a question that it suits.
EXAMPLES = (
    (0, "What does the text say?"),
    (23, "How many shapes are there?"),
    (6, "What shape is below the red star?"),
    (22, "What shape is right of the square?"),
)
SIDE_BY_SIDE = "Side by side"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
# Four patches in a window.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<path d="M2 2h12v12H2zM8 2v12M2 8h12" fill="none" stroke="#f59e0b" stroke-width="2"/></svg>'
)
MAX_QUESTION = 4000  # characters
MAX_CALLS = 64  # that gradio holds; the engine has a queue of its own
FOCUS_QUESTION = "() => document.querySelector('#question textarea').focus()"
MARK_STOPPED = "() => window.llavaStfMarkStopped()"


def mount_page(app: FastAPI, engine: Engine, options: ServeOptions, *, compare: Engine | None = None) -> FastAPI:
    """Adds the page to the server at `PATH`; with an API key it asks for that key first.

    Args:
        app: the server; its routes come before the page.
        engine: of the served model.
        options: limits of images, queue and answers, and the key.
        compare: of a second model, the 100 % twin for instance, for answers side by side.
    """
    folder = tempfile.TemporaryDirectory(prefix="llava-stf-page-")
    _clean_up_with(app, folder)
    files = Path(folder.name)
    os.environ["GRADIO_TEMP_DIR"] = str(files)  # the only way to tell gradio; its default is shared by all users
    engines = [engine] if compare is None else [engine, compare]
    handler = AnswerHandler(budgets(engines), options, engine.memory)
    page = build_page(handler, options, _write_examples(files / "examples"))
    middleware = [Middleware(PageGuard, files=files, max_image_bytes=options.max_image_bytes)]
    if options.api_key is not None:
        middleware.insert(0, Middleware(Login, api_key=options.api_key))
    here = Path(__file__).parent
    app.add_api_route("/", lambda: RedirectResponse(f".{PATH}/"))
    app.add_api_route("/favicon.ico", lambda: Response(ICON, media_type="image/svg+xml"))
    return gr.mount_gradio_app(
        app,
        page,
        path=PATH,
        app_kwargs={"middleware": middleware},
        max_file_size=options.max_image_bytes,
        theme=_theme(),
        head=f"<style>{(here / 'page.css').read_text('utf-8')}</style>",  # gradio would rewrite it, and lose some
        js=(here / "page.js").read_text("utf-8"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
    )


def build_page(handler: AnswerHandler, options: ServeOptions, examples: list[tuple[Path, str]]) -> gr.Blocks:
    """The page without a server around it."""
    chosen = {budget.title: [budget] for budget in handler.budgets}
    several = len(chosen) > 1

    # Values come as the browser sent them, so that `load_image` opens the file and nothing before it.
    async def answer(image: Any, question: Any, mode: Any) -> AsyncIterator[tuple[str, gr.Button]]:
        wanted = chosen.get(str(mode), handler.budgets)
        async for html in handler.answer(_path(image), str(question or ""), wanted):
            yield html, gr.Button(visible=True)

    def check(image: Any) -> tuple[Any, str]:
        try:
            handler.check(_path(image))
        except LlavaStfError as error:
            return None, render_error(str(error))
        return gr.skip(), EMPTY

    keep = (KEEP_SECONDS, KEEP_SECONDS)
    with gr.Blocks(title="LLaVA-STF", analytics_enabled=False, fill_width=True, delete_cache=keep) as page:
        gr.HTML(_head(handler.budgets, options), elem_id="head")
        with gr.Row(elem_id="main"):
            with gr.Column(min_width=300, scale=4, elem_id="asked"):
                image = gr.Image(
                    label="Image", sources=["upload", "clipboard"], height=320, elem_id="image", buttons=[],
                    alt_text="The image that is asked about", placeholder="Drop an image here, paste or choose one",
                )  # fmt: skip
                gr.HTML("<h2>Examples</h2>", elem_id="examples-title")
                with gr.Row(elem_id="examples"):
                    shown = [
                        gr.Button(text, icon=path, elem_classes="example", min_width=120) for path, text in examples
                    ]
            with gr.Column(min_width=300, scale=6, elem_id="answered"):
                question = gr.Textbox(
                    label="Question", placeholder="What do you want to know?", max_lines=6, max_length=MAX_QUESTION,
                    elem_id="question",
                )  # fmt: skip
                mode = gr.Radio(
                    [*chosen, SIDE_BY_SIDE], value=next(iter(chosen)), label="Vision tokens", elem_id="mode",
                    visible=several,
                )  # fmt: skip
                with gr.Row(elem_id="actions"):
                    ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=0, min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=120, visible=False)
                gr.HTML('<div class="problem" role="alert" hidden></div>', elem_id="notice")
                answers = gr.HTML(EMPTY, elem_id="answers")

        quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
        asked = gr.on(
            [ask.click, question.submit],
            answer,
            [image, question, mode],
            [answers, stop],
            trigger_mode="once",
            **quiet,
        )
        asked.then(_hide, None, stop, **quiet)  # however it ended
        stop.click(_hide, None, stop, cancels=asked, js=MARK_STOPPED, **quiet)
        image.upload(check, image, [image, answers], **quiet)
        for button, (path, text) in zip(shown, examples, strict=True):
            button.click(partial(_show, path, text), None, [image, question, answers], js=FOCUS_QUESTION, **quiet)
    return page.queue(max_size=MAX_CALLS, default_concurrency_limit=None, api_open=False)


def _clean_up_with(app: FastAPI, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Removes the folder when the server stops: a signal ends the process without Python's own cleaning up."""
    inner = app.router.lifespan_context
    app.state.clean_ups.append(folder.cleanup)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        with folder:
            async with inner(app) as state:
                yield state

    app.router.lifespan_context = lifespan


def _path(image: Any) -> str | None:
    return image.get("path") if isinstance(image, dict) else None


def _hide() -> gr.Button:
    return gr.Button(visible=False)


def _show(path: Path, text: str) -> tuple[str, str, str]:
    return str(path), text, EMPTY


def _write_examples(folder: Path) -> list[tuple[Path, str]]:
    folder.mkdir()
    written = []
    for index, question in EXAMPLES:
        path = folder / f"image-{index}.png"
        Image.fromarray(draw(index, split="held_out")[1]).save(path)
        written.append((path, question))
    return written


def _head(choices: list[Budget], options: ServeOptions) -> str:
    first = choices[0]
    name = escape(options.served_name)
    unit = "cuts it into tiles and reads each" if first.in_tiles else "reads it"
    said = f"<b>{name}</b> {unit} as {first.vision_tokens:,} vision tokens"
    said += f" instead of {first.patches:,}." if first.vision_tokens < first.patches else "."
    if options.served_name in BUNDLED:
        said += " This small model knows only drawn images like the examples."
    return f'<h1>Ask about an image</h1><p data-max-bytes="{options.max_image_bytes}">{said}</p>'


def _theme() -> gr.themes.Base:
    """Greys and the fonts of the reader's own system: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="slate", secondary_hue="slate", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=MONO
    )
