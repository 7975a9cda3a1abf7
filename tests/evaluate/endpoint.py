"""An endpoint that speaks the protocol and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ochat_ray.evaluate.records import key_of


class Endpoint:
    """Answers with `answer(body)`; what `misbehave(body, times asked before)` returns comes first.

    It may return a Response, "hang", "half" (an answer that is cut off) or None. `asked` has the
    body of every call, `askers` their addresses, and `answered` how often each was answered.
    `models` are the entries of its list of models; without them it has none.
    """

    def __init__(self, answer, misbehave=lambda body, before: None):
        self.answer, self.misbehave = answer, misbehave
        self.asked, self.answered, self.seen = [], Counter(), Counter()
        self.at_once = self.most_at_once = 0
        self.url = ""
        self.askers = set()
        self.models = None

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.askers.add(request.client.host)
        key = key_of(body)
        before = self.seen[key]
        self.seen[key] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0.005)
            trouble = self.misbehave(body, before)
            if trouble == "hang":
                await asyncio.sleep(3600)
            if isinstance(trouble, Response):
                return trouble
            whole = json.dumps(completion(self.answer(body)))
            if trouble == "half":
                return StreamingResponse(
                    iter([whole[: len(whole) // 2]]),
                    headers={"content-length": str(len(whole))},
                    media_type="application/json",
                )
            self.answered[key] += 1
            return Response(whole, media_type="application/json")
        finally:
            self.at_once -= 1

    async def list_models(self, request: Request) -> Response:
        return refusal(404) if self.models is None else JSONResponse({"data": self.models})

    @contextmanager
    def serving(self, host="127.0.0.1"):
        """Serves on a port of the host; the address is in `url`."""
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.list_models),
        ]
        app = Starlette(routes=routes)
        with served(app, host) as self.url:
            yield self


@contextmanager
def served(app, host="127.0.0.1"):
    """The base URL of an application, served on a port of the host."""
    config = uvicorn.Config(app, host=host, port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(10)


def completion(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def refusal(status, message="no", **headers):
    """A response with OpenAI's error body; headers with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=named)
