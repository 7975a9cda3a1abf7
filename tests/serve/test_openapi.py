"""Whatever is sent: no 5xx, and every response as the OpenAPI document says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.asking import ASK
from tests.serve.script import Script, app_for

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


ASKED = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
}


@pytest.mark.parametrize("path", ASKED)
def test_a_stream_is_as_the_document_says(tokenizer, path):
    app = app_for(tokenizer, Script(tokenizer, "ab"), context_length=256, insecure_open=True)
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path]["POST"]
    body = ASKED[path] | {"model": "tiny", "stream": True}
    case = operation.Case(body=body, media_type="application/json")
    response = case.call_and_validate(checks=CHECKS)
    assert response.text.endswith("data: [DONE]\n\n")


# A made-up model is 404 before anything else is looked at; few made-up messages have what their
# role needs.
REAL = ({}, {"model": "tiny"}, {"model": "tiny", "messages": ASK["messages"]})


def test_no_request_breaks_the_server_or_its_word(tokenizer):
    app = app_for(tokenizer, Script(tokenizer, "ab"), context_length=256, insecure_open=True)
    document = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 8
    answered = set()
    for operation in operations:

        @given(case=operation.as_strategy(), real=st.sampled_from(REAL))
        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(case, real):
            if isinstance(case.body, dict):
                case.body |= {name: value for name, value in real.items() if name in case.body}
            if case.call_and_validate(checks=CHECKS).status_code == 200:
                answered.add(case.operation.path)

        ask()
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize"} <= answered
