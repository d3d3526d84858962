"""The application: which paths there are, and what each is answered by."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import pellucid
from pellucid.errors import BadRequest, PellucidError
from pellucid.serve import anthropic, openai, responses
from pellucid.serve.answers import Spelled
from pellucid.serve.cards import Cards
from pellucid.serve.door import Door, Hosts
from pellucid.serve.exchange import Exchange, Limits
from pellucid.serve.faults import Refused, answered, as_anthropic
from pellucid.serve.keys import Checked
from pellucid.serve.metrics import metrics
from pellucid.serve.openai import Served
from pellucid.serve.page import add_page
from pellucid.serve.shapes import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, Shape, TokenizeRequest

Handler = Callable[[Served, Exchange], Awaitable[None]]
POSTS: dict[str, tuple[Handler, type[Shape], str]] = {
    "/v1/completions": (openai.completions, CompletionRequest, "A text that goes on"),
    "/v1/chat/completions": (openai.chat, ChatRequest, "An answer to a conversation"),
    "/v1/responses": (responses.responses, responses.ResponsesRequest, "An answer, in OpenAI's newer shape"),
    "/v1/messages": (anthropic.messages, anthropic.MessagesRequest, "An answer, in Anthropic's shape"),
    "/v1/embeddings": (openai.embeddings, EmbeddingRequest, "Vectors of texts"),
}
HOW: dict[str, dict[str, Any]] = {"/v1/responses": {"done": None}, "/v1/messages": {"done": None, "fault": as_anthropic}}


def app_of(served: Served, limits: Limits | None = None, keys: Checked | None = None, hosts: frozenset[str] | None = None) -> FastAPI:
    """The ASGI application, behind a door that asks for keys where there are any. Its desks are closed when it shuts down.

    hosts: the names it may be called by; None = any.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await served.close(limits.drain_seconds)
    app = FastAPI(title="Pellucid", version=pellucid.__version__, lifespan=lifespan, redoc_url=None, docs_url=None)
    if keys is not None:
        app.add_middleware(Door, keys=keys)
    if hosts is not None:
        app.add_middleware(Hosts, names=hosts)
    exchange = partial(Exchange, limits=limits)

    def post(path: str, handler: Handler, shape: type[Shape], about: str) -> None:
        how = HOW.get(path, {})
        spelled = how.get("fault", dict)

        def fault(body: dict[str, Any]) -> Any:
            return spelled({"error": {**body["error"], "message": served.by_name(body["error"]["message"])}})

        async def endpoint(request: Request) -> Response:
            return exchange(request, partial(handler, served), **{**how, "fault": fault})
        schema = shape.model_json_schema(ref_template=f"#/components/schemas/{shape.__name__}/$defs/{{model}}")
        app.add_api_route(path, endpoint, methods=["POST"], summary=about, response_class=JSONResponse, name=path, responses={**_FAULTS, **_streams(shape)},
                          openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema)}}}})
    for path, (handler, shape, about) in {**POSTS, "/tokenize": (_tokenize, TokenizeRequest, "Token ids of a text or a conversation"),
                                          "/detokenize": (_detokenize, DetokenizeRequest, "The text of token ids")}.items():
        post(path, handler, shape, about)
    _plain_routes(app, served)
    add_page(app)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(PellucidError, _unexpected)  # by name: what only `Exception` answers also ends the connection
    app.add_exception_handler(Exception, _unexpected)
    return app


_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"], "properties": {
    "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}}
_WORDS = {400: "What was asked cannot be done", 401: "No key, or one that is not known", 403: "The key may not do this", 404: "No such model",
          405: "Not this method", 408: "It took too long", 413: "The body is too long", 429: "Too much is under way", 501: "A part is not installed",
          503: "The server is stopping"}
_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/json": {"schema": _ERROR}}} for status, words in _WORDS.items()}


def _streams(shape: type[Shape]) -> dict[int | str, dict[str, Any]]:
    """An answer that may also come in pieces."""
    return {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}} if "stream" in shape.model_fields else {}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose definitions stand where they are used, as OpenAPI has one place for them all and shapes share names."""
    definitions = schema.pop("$defs", {})

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                return filled(definitions[ref.rsplit("/", 1)[-1]])
            return {key: filled(each) for key, each in value.items()}
        return [filled(each) for each in value] if isinstance(value, list) else value
    return filled(schema)


def _plain_routes(app: FastAPI, served: Served) -> None:
    cards = Cards(served)

    @app.get("/v1/models", summary="The models that are served")
    async def models() -> Any:
        return {"object": "list", "data": [cards.card(name) for name in served.names]}

    @app.get("/v1/models/{name:path}", summary="One of them", responses={404: _FAULTS[404]})
    async def model(name: str) -> Any:
        return cards.card(name)

    @app.get("/report/{name:path}", summary="What loading a model decided, and what it was made from", responses={404: _FAULTS[404]})
    def report(name: str) -> Any:  # in a thread of its own: it may hash files
        return cards.report(name)

    @app.get("/health", summary="Whether it takes requests")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/version", summary="Of Pellucid")
    async def version() -> Any:
        return {"version": pellucid.__version__}

    @app.get("/metrics", summary="Prometheus' numbers", response_class=Response)
    def numbers() -> Response:  # in a thread of its own: it waits for a step to end
        return Response(metrics(served), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _tokenize(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(TokenizeRequest)
    _, desk = served.find(asked.model)
    model = desk.model
    if (asked.prompt is None) == (asked.messages is None):
        raise BadRequest("either a prompt or messages, and not both", field="prompt")
    if asked.messages is not None and (given := [name for name in ("special", "as_prompt") if getattr(asked, name)]):
        raise BadRequest(f"{given[0]} is of prompts: messages are always read as a chat has them. Leave it out", field=given[0])

    def read() -> dict[str, Any]:
        if asked.messages is not None:
            ids = model.chat_prompt_ids([message.plain() for message in asked.messages])
        elif asked.as_prompt:
            ids = model.prompt_ids(asked.prompt or "")
        else:
            ids = model.tokenizer.encode(asked.prompt or "", special=asked.special)
        pieces = {"pieces": list(Spelled(model.tokenizer).pieces(ids))} if asked.pieces else {}
        return {"tokens": ids, "count": len(ids), "max_model_len": model.engine.capacity, **pieces}
    await exchange.json(await asyncio.to_thread(read))


async def _detokenize(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(DetokenizeRequest)
    _, desk = served.find(asked.model)
    n = desk.model.spec.n_vocab
    if wrong := [i for i in asked.tokens if not 0 <= i < n]:
        raise BadRequest(f"tokens has {wrong[0]}, and this model's vocabulary has ids 0 to {n - 1}", field="tokens")
    await exchange.json({"prompt": await asyncio.to_thread(desk.model.tokenizer.decode, asked.tokens, special=asked.special)})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answered(request.scope, Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}"), error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    return answered(request.scope, error)
