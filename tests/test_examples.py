"""Each example, as a reader would run it, against the endpoint on a real HTTP server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ochat_ray.serve.engines.base import EngineOverloadedError
from ochat_ray.serve.keys import ApiKey, hash_key
from tests.serve.script import Script, app_for
from tests.serve.ui.conftest import serve

EXAMPLES = Path(__file__).parent.parent / "examples"
KEY = "a-key-for-the-examples"
ANSWER = "The sea is a lot of salt water."


@pytest.fixture
def backend(tokenizer, request):
    return Script(tokenizer, getattr(request, "param", ANSWER))


@pytest.fixture
def environment(tokenizer, backend):
    keys = (ApiKey(name="a", digest=hash_key(KEY)),)
    with serve(app_for(tokenizer, backend, keys=keys, context_length=512)) as url:
        yield os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY}


def run(environment, *command):
    done = subprocess.run(
        command, env=environment, cwd=EXAMPLES, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(environment, *arguments):
    return run(environment, sys.executable, *arguments)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_curl(environment):
    out = run(environment, "bash", "curl.sh")
    assert out.startswith("model: tiny\n")
    assert ANSWER in out
    assert out.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("backend", ['{"name": "Oslo", "inhabitants": 5}'], indirect=True)
def test_openai_client_with_a_schema(environment, backend):
    output = python(environment, "openai_client.py", "schema")
    assert output == "--- schema\n{'name': 'Oslo', 'inhabitants': 5}\n"
    assert '"inhabitants"' in backend.seen[0][1].json_schema


def test_openai_client(environment, backend):
    steps = ["chat", "stream", "several", "errors"]
    output = python(environment, "openai_client.py", *steps)
    chat, stream, several, errors = output.split("---")[1:]
    tokens = len(backend.ids) + 1
    assert chat == f" chat\n{ANSWER}\n{tokens} tokens, stop\n"
    assert stream == f" stream\n{ANSWER}\n{tokens} tokens\n"
    assert several == " several\n" + "".join(f"{index}: {ANSWER}\n" for index in range(3))
    assert "404 model_not_found: there is no model 'no-such-model' here" in errors
    assert "400 temperature: " in errors


def test_httpx_client(environment):
    assert python(environment, "httpx_client.py") == f"{ANSWER}\n"


def test_httpx_client_comes_back_when_it_is_told_to(environment, backend):
    generate, refusals = backend.generate, [EngineOverloadedError()]

    async def at_capacity_once(*arguments, **options):
        if refusals:
            raise refusals.pop()
        async for delta in generate(*arguments, **options):
            yield delta

    backend.generate = at_capacity_once
    assert python(environment, "httpx_client.py") == f"{ANSWER}\n"
    assert refusals == []


@pytest.mark.skipif(
    importlib.util.find_spec("langchain_openai") is None, reason="langchain-openai is not installed"
)
def test_langchain_openai_client(environment):
    first, usage, second = python(environment, "langchain_openai_client.py").splitlines()
    assert (first, second) == (ANSWER, ANSWER)
    assert "'output_tokens'" in usage
