"""Errors as answers: a status and OpenAI's shape of an error. No traceback leaves the house."""
from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from pellucid.errors import (
    BadRequest,
    BadTemplate,
    BadTokenizer,
    ConstraintFailed,
    MissingExtra,
    ModelNotFound,
    OutOfMemoryBudget,
    PellucidError,
    PromptTooLong,
    UnsupportedModel,
)
from pellucid.serve.desk import Busy, Closing

log = logging.getLogger("pellucid.serve")


class Refused(PellucidError):
    """An answer that is no error of the engine's: a status, a code and words."""

    def __init__(self, status: int, message: str, code: str | None = None, *, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_seconds = status, code, retry_seconds


STATUS: tuple[tuple[type[Exception], int, str, str | None], ...] = (  # the first that fits
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (BadRequest, 400, "invalid_request_error", None),
    (BadTemplate, 400, "invalid_request_error", "bad_template"),
    (BadTokenizer, 400, "invalid_request_error", "no_tokenizer"),
    (UnsupportedModel, 400, "invalid_request_error", "unsupported"),
    (ConstraintFailed, 400, "invalid_request_error", "constraint_failed"),
    (MissingExtra, 501, "server_error", "missing_extra"),
    (Busy, 429, "rate_limit_error", "queue_full"),
    (Closing, 503, "server_error", "closing"),
    (OutOfMemoryBudget, 503, "server_error", "out_of_memory"),
)


# What OpenAI calls what we call so. Tools are held by two kinds of grammar.
SPELLED: dict[str | None, str] = {"schema": "response_format", "lark": "grammar", "compact": "tools", "tags": "tools", "template_args": "chat_template_kwargs"}


def told(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers. What nobody meant to raise is logged whole, and answered with nothing of it."""
    if isinstance(error, Refused):
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}.get(error.status, "invalid_request_error")
        headers = {} if error.retry_seconds is None else {"Retry-After": str(math.ceil(error.retry_seconds))}
        return error.status, _body(str(error), kind, None, error.code), headers
    for known, status, kind, code in STATUS:
        if isinstance(error, known):
            headers = {"Retry-After": str(error.retry_seconds)} if isinstance(error, Busy) else {"Retry-After": "1"} if status == 503 else {}
            field = getattr(error, "field", None)
            return status, _body(str(error), kind, SPELLED.get(field, field), code), headers
    log.error("a request failed in a way nobody expected", exc_info=error)
    words = str(error) if isinstance(error, PellucidError) else f"the server failed ({type(error).__name__}); its log says more"
    return 500, _body(words, "server_error", None, None), {}


def as_anthropic(body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's shape of an error as Anthropic's: https://docs.anthropic.com/en/api/errors."""
    error = body["error"]
    kind = {"server_error": "api_error"}.get(error["type"], error["type"])
    return {"type": "error", "error": {"type": "not_found_error" if error["code"] == "model_not_found" else kind, "message": error["message"]}}


def answered(scope: Scope, error: BaseException, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What a request that reaches no handler is answered, in the shape its path's clients read."""
    status, body, more = told(error)
    return JSONResponse(as_anthropic(body) if scope["path"].startswith("/v1/messages") else body, status, {**more, **(headers or {})})


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
