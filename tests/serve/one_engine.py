"""The application over one transformers engine in this process."""

from contextlib import contextmanager
from pathlib import Path

from ochat_ray.serve.adapters import AdapterCatalog
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.engines.transformers import TransformersEngine
from tests.serve.script import app_for


class OneEngine:
    """The engine in this process as the only replica."""

    def __init__(self, engine):
        self.engine = engine

    async def generate(self, request_id, prompt_ids, sampling, *, session):
        yield Accepted(replica="r1")
        async for delta in self.engine.submit(request_id, prompt_ids, sampling):
            yield delta

    async def ready(self):
        return True

    async def loads(self):
        return {"r1": self.engine.capacity()}


def settings_of(model, **args):
    return resolve(ServeArgs(model=str(model), engine="transformers", dtype="float32", **args))


@contextmanager
def opened(settings):
    engine = TransformersEngine(settings.engine)
    yield engine
    engine.close()


def app_with_adapters(settings, engine, tokenizer, **options):
    """The application with the adapters that the settings' directory has now."""
    rules = settings.engine.adapters.rules(Path(settings.ingress.directory))
    catalog = AdapterCatalog(settings.engine.adapters.directory, rules, reserved="tiny")
    catalog.scan()
    catalog.scan()  # an adapter is served once two scans saw the same files
    return app_for(tokenizer, OneEngine(engine), catalog, **options)
