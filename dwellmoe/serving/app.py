"""The application: its routes, and what they share.

Transformers' own application is not used, only its handlers: its routes also load whatever model a request
names, unload ours, and read sound files.
"""

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from transformers import GenerationConfig

from dwellmoe.errors import UserError, refusal
from dwellmoe.offload.resize import resize
from dwellmoe.serving.body import read_body
from dwellmoe.serving.errors import RequestError, error_fields, unknown_model
from dwellmoe.serving.figures import AnswerLog, Figures
from dwellmoe.serving.generation import Answering, Generation
from dwellmoe.serving.generation_queue import LEFT, STOPPING, GenerationQueue, Place
from dwellmoe.serving.handlers import ChatHandler, Handler, ResponsesHandler, TextHandler, with_end
from dwellmoe.serving.live_figures import LiveFigures
from dwellmoe.serving.live_page import live_routes
from dwellmoe.serving.metrics import Metrics
from dwellmoe.serving.middleware import BearerToken, CountedRequests
from dwellmoe.serving.prompts import token_ids
from dwellmoe.serving.requests import (
    BudgetRequest,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponseRequest,
    checked,
    read_object,
)
from dwellmoe.serving.served_model import ServedModel, Variant
from dwellmoe.serving.settings import ServingSettings

MOST_NEW_TOKENS = 2**20
"""Of a model whose context is not known."""


class Service:
    """One served model, and what the routes share: its queue, its counts, its figures."""

    def __init__(self, served: ServedModel, settings: ServingSettings) -> None:
        self.served, self.settings = served, settings
        self.queue = GenerationQueue(settings.max_waiting)
        self.metrics = Metrics(self.queue, served.engine)
        self.figures = Figures(served.engine, self.metrics.count_token)
        self._tokenising, self._changing_budget = asyncio.Lock(), asyncio.Lock()

    def variant(self, name: str) -> Variant:
        """Raises RequestError for a name that is not served."""
        if name not in self.served.variants:
            raise unknown_model(name, list(self.served.variants))
        return self.served.variants[name]

    async def generation(self, request: GenerationRequest, variant: Variant, place: Place) -> Generation:
        """The generation that a request asks for; it has not begun. Raises RequestError."""
        served = self.served
        async with self._tokenising:  # not in this thread, which writes the answers of others
            given = request, variant.wording, served.tokenizer, served.vocabulary
            prompt = await asyncio.to_thread(token_ids, *given)
        asked = Answering(
            variant=variant,
            prompt=prompt,
            config=self._config(request, len(prompt)),
            seed=request.seed,
            stops=request.stops,
        )
        log = AnswerLog(variant.name, self.figures, place.since)
        return Generation(served, asked, place, log)

    def _config(self, request: GenerationRequest, prompt_tokens: int) -> GenerationConfig:
        """The model's own settings, and those of the request over them."""
        evaluated = self.served.evaluated
        found = copy.deepcopy(evaluated.model.generation_config)
        found.max_new_tokens = self._new_tokens(request, prompt_tokens)
        found.max_length = None
        found.use_cache = True
        found.pad_token_id = evaluated.pad_token_id
        found.eos_token_id = evaluated.end_token_ids or None
        if request.temperature is not None or request.top_p is not None:
            found.do_sample = request.temperature != 0
            found.temperature = request.temperature or 1.0
            found.top_p = 1.0 if request.top_p is None else request.top_p
        return found

    def _new_tokens(self, request: GenerationRequest, prompt_tokens: int) -> int:
        """The most tokens of the answer. Raises RequestError where the context has no room for them."""
        context = self.served.context
        room = MOST_NEW_TOKENS if context is None else context - prompt_tokens + 1
        wanted = request.new_tokens
        if room < 1 or (wanted or 0) > room:
            message = (
                f"the prompt has {prompt_tokens} tokens and the answer may have {wanted or 'at least 1'}: "
                f"the model's context of {context} has room for {max(0, room)} after this prompt"
            )
            raise RequestError(400, message, code="context_length_exceeded")
        return wanted or min(self.settings.max_new_tokens, room)

    async def change_budget(self, budget: str) -> None:
        """Waits for its turn among the generations. Raises RequestError for a budget that cannot work, and
        while another change waits.
        """
        if self._changing_budget.locked():
            raise RequestError(429, "another change of the budget waits already", code="queue_full")
        async with self._changing_budget:
            await self._change_budget(budget)

    async def _change_budget(self, budget: str) -> None:
        try:
            changing = asyncio.get_running_loop().run_in_executor(self.queue.worker, self._resize, budget)
        except RuntimeError:  # the worker has ended
            raise RequestError(503, STOPPING) from None
        try:
            await changing
        except UserError as error:
            raise RequestError(400, str(error).removeprefix("--expert_"), param="budget") from None
        except (MemoryError, OSError, RuntimeError) as error:
            if refused := refusal(error):
                raise RequestError(503, refused, param="budget") from None
            raise

    def _resize(self, budget: str) -> None:
        with self.figures.changing:
            resize(self.served.evaluated.model, budget)

    def models(self) -> list[dict[str, Any]]:
        """As `/v1/models` lists them."""
        created = self.served.created
        return [
            {"id": name, "object": "model", "created": created, "owned_by": "dwellmoe"}
            for name in self.served.variants
        ]

    def end(self) -> None:
        """Ends the thread of the generations, and the engine's."""
        self.queue.end()
        if engine := self.served.engine:
            engine.close()


class GenerationRoute:
    """Answers the requests of one path. An ASGI application of its own, since it has to notice a client that
    leaves before its answer has begun.
    """

    def __init__(self, service: Service, request: type[GenerationRequest], handler: type[Handler]) -> None:
        self._service, self._request, self._handler = service, request, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = read_object(await read_body(Request(scope, receive)))
        request = checked(self._request, body)
        variant = self._service.variant(request.model)
        with self._service.queue.place() as place:
            async with _noticing_departure(receive, place) as receive_after_body:
                response = await self._respond(request, variant, place, body)
                await response(scope, receive_after_body, send)

    async def _respond(
        self, request: GenerationRequest, variant: Variant, place: Place, body: dict[str, Any]
    ) -> Response:
        handler = self._handler(await self._service.generation(request, variant, place))
        body = body | request.without_prompt() | {"stream": bool(request.stream)}
        body.pop("chat_template_kwargs", None)
        request_id = f"{request.id_prefix}{uuid.uuid4().hex}"
        response: Response = await handler.handle_request(body, request_id)
        if isinstance(response, StreamingResponse):
            response.body_iterator = with_end(response.body_iterator, handler)
        response.headers["x-request-id"] = request_id
        return response


@asynccontextmanager
async def _noticing_departure(receive: Receive, place: Place) -> AsyncIterator[Receive]:
    """Gives a place up when the client leaves within the block; yields a `receive` that then says so."""
    left = asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        place.give_up(LEFT)
        left.set()

    async def receive_after_body() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    watching = asyncio.create_task(watch())
    try:
        yield receive_after_body
    finally:
        watching.cancel()


def application(service: Service) -> Starlette:
    """The ASGI application."""

    async def health(_: Request) -> Response:
        stopping = service.queue.closed
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    async def prometheus(_: Request) -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": service.models()})

    async def model(request: Request) -> Response:
        name = service.variant(request.path_params["name"]).name
        return JSONResponse(next(each for each in service.models() if each["id"] == name))

    async def expert_cache(request: Request) -> Response:
        if request.method == "POST":
            body = checked(BudgetRequest, read_object(await read_body(request)))
            await service.change_budget(body.budget)
        queue = {"running": service.queue.running, "waiting": service.queue.waiting}
        return JSONResponse(service.figures.fields() | {"queue": queue})

    routes = [
        *live_routes(LiveFigures(service.served, service.figures), service.queue),
        Route("/health", health),
        Route("/metrics", prometheus),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/expert_cache", expert_cache, methods=["GET", "POST"]),
    ]
    for path, request, handler in (
        ("/v1/chat/completions", ChatRequest, ChatHandler),
        ("/v1/completions", CompletionRequest, TextHandler),
        ("/v1/responses", ResponseRequest, ResponsesHandler),
    ):
        routes.append(Route(path, GenerationRoute(service, request, handler), methods=["POST"]))
    paths = {route.path for route in routes}
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(CountedRequests, counter=service.metrics.requests, paths=paths),
            Middleware(BearerToken, token=service.settings.api_key, open_paths={"/", "/health"}),
        ],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _our_fault,
        },
    )


# Coroutines, since Starlette starts a thread for any other handler: forty where a crowd is refused.
async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.fields(), error.status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_fields(error.status_code, str(error.detail)), error.status_code, error.headers)


async def _gone(_: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _our_fault(_: Request, error: Exception) -> Response:
    return JSONResponse(error_fields(500, "the server made a mistake: its log says which"), 500)
