"""The page on a real HTTP server, in front of a backend that a test leads by the hand."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

from ochat_ray.serve.engines.base import Delta
from ochat_ray.serve.keys import ApiKey, hash_key
from tests.serve.script import app_for

KEY = "a-key-for-the-page"
KEYS = (ApiKey(name="ada", digest=hash_key(KEY)),)


class Led:
    """A backend that answers with the next text, and waits at each `|` until it is told to go on.

    It remembers what it was asked, and how many answers are being generated.
    """

    def __init__(self, tokenizer, *texts):
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.end_of_turn = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
        self.prompts, self.samplings = [], []
        self.open, self.go = 0, threading.Semaphore(0)

    async def generate(self, request_id, prompt_ids, sampling, *, session):
        self.prompts.append(self.tokenizer.decode(prompt_ids))
        self.samplings.append(sampling)
        self.open += 1
        try:
            for number, part in enumerate(self.texts.pop(0).split("|")):
                while number and not self.go.acquire(blocking=False):
                    await asyncio.sleep(0.01)
                if isinstance(part, Exception):
                    raise part
                for token_id in self.tokenizer(part, add_special_tokens=False)["input_ids"]:
                    yield Delta(token_ids=(token_id,))
            yield Delta(token_ids=(self.end_of_turn,), finish_reason="stop")
        finally:
            self.open -= 1

    async def ready(self):
        return True

    async def loads(self):
        return {}


def page_app(tokenizer, backend, **settings):
    """The endpoint with the page."""
    defaults = {"ui": True, "context_length": 2048, "max_body_bytes": 100_000}
    return app_for(tokenizer, backend, **(defaults | settings))


@contextmanager
def serve(app):
    """The app on a free port of this machine, in a thread; its URL."""
    import uvicorn

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def wait_until(condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
