"""OpenAI's routes over one model: the FastAPI application that `llava-stf serve` runs.

transformers' own server answers vision models one request after the other and has no bound on its queue, on images or
on bodies; hence this one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse

from llava_stf.errors import LlavaStfError
from llava_stf.inference import LlavaStf
from llava_stf.models.fusion.budget import token_budgets
from llava_stf.serving.auth import AuthMiddleware
from llava_stf.serving.body_limit import Body, BodyLimiter
from llava_stf.serving.engine import Engine
from llava_stf.serving.errors import ClientGoneError, ModelUnknownError
from llava_stf.serving.images import ImageReader
from llava_stf.serving.memory import Memory
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.protocol import ChatRequest, CompletionRequest, parse
from llava_stf.serving.replies import Reply, error_body, error_reply
from llava_stf.serving.rows import GenerationRequest, Piece

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked", ChatRequest, CompletionRequest)


def create_app(llava: LlavaStf, options: ServeOptions, *, compare: LlavaStf | None = None) -> FastAPI:
    """The application; `app.state.engine` answers its routes from start-up to shutdown.

    `compare` is a second model that no route asks; the page does, by `app.state.compare`, an engine of its own.

    Raises:
        CheckpointError: a model has no tokenizer.
    """
    metrics, memory = Metrics(), Memory()
    engine = Engine(llava, options, metrics, memory)
    other = None if compare is None else Engine(compare, options, memory=memory)
    engines = [engine] if other is None else [engine, other]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for each in engines:
            await asyncio.to_thread(each.warm_up)
            each.start()
        trimming = asyncio.create_task(memory.give_back())
        try:
            yield
        finally:
            trimming.cancel()
            for each in engines:
                await asyncio.to_thread(each.close)

    app = FastAPI(title="llava-stf", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine, app.state.compare = engine, other
    app.state.clean_ups = []  # called where the process ends without shutdown
    app.add_middleware(AuthMiddleware, api_key=options.api_key, metrics=metrics)
    routes = Routes(engine, options)
    read = ["GET", "HEAD"]
    app.add_api_route("/health", routes.health, methods=read)
    app.add_api_route("/metrics", routes.metrics, methods=read)
    app.add_api_route("/v1/models", routes.models, methods=read)
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=read)
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"])
    app.add_api_route("/v1/completions", routes.complete, methods=["POST"])
    app.add_exception_handler(LlavaStfError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_failure)
    return app


class Routes:
    """The routes of one engine."""

    def __init__(self, engine: Engine, options: ServeOptions) -> None:
        self._engine = engine
        self._options = options
        self._bodies = BodyLimiter(options.max_body_bytes, engine.memory)
        self._images = ImageReader(options)
        self._created = int(time.time())

    async def health(self) -> Response:
        """200 as long as the engine lives."""
        alive = self._engine.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(self._engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        """The model of that name."""
        self._check_model(name)
        return self._model()

    def _model(self) -> dict[str, Any]:
        """The model with its longest prompt and the tokens that an image can take."""
        return {
            "id": self._options.served_name,
            "object": "model",
            "created": self._created,
            "owned_by": "llava-stf",
            "max_model_len": self._engine.llava.positions,
            "vision_tokens": token_budgets(self._engine.llava.model.config),
        }

    async def chat(self, request: Request) -> Response:
        """The next answer of a conversation."""
        self._engine.check_room()
        async with self._bodies.body(request) as body:
            asked, images = await self._read(ChatRequest, body)
            return await self._reply(request, asked, asked.request(images), chat=True)

    async def complete(self, request: Request) -> Response:
        """How a text goes on."""
        self._engine.check_room()
        async with self._bodies.body(request) as body:
            asked, _ = await self._read(CompletionRequest, body)
            return await self._reply(request, asked, asked.request(), chat=False)

    async def _read(self, kind: type[Asked], body: Body) -> tuple[Asked, list[bytes]]:
        """What is asked, and the files of its images; the body is emptied."""
        asked, parsed = await asyncio.to_thread(parse, kind, body.data, self._engine.bounds)
        self._check_model(asked.model)
        urls: list[str] = asked.urls() if isinstance(asked, ChatRequest) else []
        images = await self._images.read(urls, parsed)
        body.data = bytearray()
        return asked, images

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._options.served_name):
            raise ModelUnknownError(
                f"The model '{name:.100}' is not served here, '{self._options.served_name}' is.", param="model"
            )

    async def _reply(
        self, request: Request, asked: ChatRequest | CompletionRequest, generation: GenerationRequest, *, chat: bool
    ) -> Response:
        reply = Reply(self._options.served_name, chat=chat)
        pieces = while_connected(request, self._logged(generation))
        first = await anext(pieces)  # what is refused is refused here, with a status of its own
        if not asked.stream:
            return JSONResponse(reply.whole([first, *[piece async for piece in pieces]]))
        events = _events(reply, first, pieces, include_usage=asked.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _logged(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """The engine's pieces, and a line in the log at the end: counts, and texts only where that was asked for."""
        started = time.perf_counter()
        said = []
        images = len(request.images)
        async with aclosing(self._engine.stream(request)) as pieces:
            async for piece in pieces:
                said.append(piece.text)
                yield piece
        logger.info(
            "answered %d images, %d + %d tokens, %.3f s, finish %s",
            images, piece.prompt_tokens, piece.completion_tokens,
            time.perf_counter() - started, piece.finish_reason,
        )  # fmt: skip
        if self._options.log_prompts:
            logger.info("asked %s, answered %r", json.dumps(request.conversation, ensure_ascii=False), "".join(said))


async def while_connected(request: Request, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The pieces as long as the client is there; `ClientGoneError` when it leaves."""
    gone = asyncio.create_task(_disconnect(request))
    coming: asyncio.Task[Piece | None] | None = None
    try:
        while True:
            coming = asyncio.create_task(_next(pieces))
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise ClientGoneError("The client has closed the connection.")
            piece = coming.result()
            if piece is None:
                return
            yield piece
    finally:
        gone.cancel()
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait({coming})
        await pieces.aclose()


async def _next(pieces: AsyncGenerator[Piece, None]) -> Piece | None:
    return await anext(pieces, None)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    reply: Reply, first: Piece, pieces: AsyncGenerator[Piece, None], *, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; an error behind the first one is an event, too."""
    try:
        yield _event(reply.chunk(first, first=True))
        last = first
        async for last in pieces:
            yield _event(reply.chunk(last, first=False))
        if include_usage:
            yield _event(reply.usage_chunk(last))
    except ClientGoneError:
        return
    except LlavaStfError as error:
        yield _event(error_body(str(error), 500))
    finally:
        await pieces.aclose()
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlavaStfError)
    return error_reply(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path:.100} is not served here: {error.detail}."
    return JSONResponse(error_body(sentence, error.status_code), error.status_code, error.headers)


async def _on_failure(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body("The server failed at this request; its log says why.", 500), 500)
