"""The published document holds: whatever a client makes of it, no answer is the server's own failure."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from pellucid.api import Model
from pellucid.serve.exchange import Limits

from .conftest import Running

PATHS = [("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize", "/detokenize")]
PATHS += [("GET", path) for path in ("/v1/models", "/v1/models/{name}", "/report/{name}", "/health", "/version", "/metrics")]


@pytest.fixture(scope="module")
def document(serve: Callable[..., Running], abc: Model) -> Any:
    return schemathesis.openapi.from_url(f"{serve(Limits(request_seconds=5), abc=abc).url}/openapi.json")


def test_all_paths_are_in_the_document(document: Any) -> None:
    assert {(operation.ok().method.upper(), operation.ok().path) for operation in document.get_all_operations()} == set(PATHS)


def test_what_may_be_streamed_says_so(document: Any) -> None:
    answers = {path: document[path]["POST"].definition.raw["responses"]["200"]["content"] for method, path in PATHS if method == "POST"}
    assert {path for path, content in answers.items() if "text/event-stream" in content} == {
        "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"}
    assert all("application/json" in content for content in answers.values())


@pytest.mark.parametrize(("method", "path"), PATHS, ids=lambda value: value)
def test_no_request_is_answered_by_a_failure_of_the_server(document: Any, method: str, path: str) -> None:
    operation = document[path][method]
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode
             if method == "POST" or mode is schemathesis.GenerationMode.POSITIVE]

    @settings(max_examples=20, deadline=None, database=None, derandomize=True,  # some bodies ask for minutes of work: always the same ones
              suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(modes))
    def ask(case: Any) -> None:
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=[schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance])
    ask()
