"""A backend over the scripted engine, and the application over it: no Ray, no model."""

from __future__ import annotations

import asyncio

from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.engines.scripted import ScriptedEngine
from ochat_ray.serve.routes import build_app
from ochat_ray.serve.settings import IngressSettings


class Script:
    """Says a text, one token a delta, and remembers what it was asked.

    `error` is raised after `fail_after` deltas, or at once; `hang` waits an hour after the first;
    `late_s` waits before it.
    """

    def __init__(
        self,
        tokenizer,
        text="Hello 🙂 there",
        *,
        error=None,
        fail_after=0,
        hang=False,
        late_s=0.0,
    ):
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        self.end_of_turn = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
        self.engine = ScriptedEngine(vocabulary=301, context_length=10**6, script=self.ids)
        self.error, self.fail_after, self.hang, self.late_s = error, fail_after, hang, late_s
        self.seen, self.sessions, self.is_ready = [], [], True

    @property
    def open(self):
        return self.engine.capacity().running

    async def generate(self, request_id, prompt_ids, sampling, *, session):
        self.seen.append((prompt_ids, sampling))
        self.sessions.append(session)
        yield Accepted(replica="r1")
        stream = self.engine.submit(request_id, prompt_ids, sampling)
        try:
            await asyncio.sleep(self.late_s)
            if self.error is not None and not self.fail_after:
                raise self.error
            count = 0
            async for delta in stream:
                yield delta
                count += 1
                if self.error is not None and count == self.fail_after:
                    raise self.error
                if self.hang:
                    await asyncio.sleep(3600)
        finally:
            await stream.aclose()

    async def ready(self):
        return self.is_ready

    async def loads(self):
        return {"r1": self.engine.capacity()}


def app_for(tokenizer, backend, adapters=None, **settings):
    defaults = {
        "directory": "", "engine": "transformers", "served_model_name": "tiny",
        "model_type": "openchat", "context_length": 64, "vocabulary": 301, "created": 5,
        "max_body_bytes": 10_000, "max_messages": 8, "request_timeout_s": 60, "keep_alive_s": 60,
        "choices_at_once": 8,
    }  # fmt: skip
    return build_app(IngressSettings(**(defaults | settings)), tokenizer, backend, adapters)
