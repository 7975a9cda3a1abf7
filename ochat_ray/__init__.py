"""Fine-tune, serve and evaluate a chat model from raw conversations, on Ray.

The stages are functions, whose keyword arguments are the options of the commands:

    ochat_ray.prepare(recipe="chat", input="chats.jsonl", tokenizer="base", output="runs/mine/data")
    ochat_ray.train(recipe="chat", data="runs/mine/data", model="base", output="runs/mine/model")
    ochat_ray.serve(model="runs/mine/model")
    ochat_ray.evaluate(questions="questions.jsonl", model="chat", ...)

`help(ochat_ray.api)` describes them.
"""

from typing import Any

__version__ = "0.1.0"

_STAGES = ("train", "serve", "evaluate")


def prepare(**options: Any) -> dict[str, Any]:
    """Convert conversations to token tables; see `ochat_ray.api.prepare`."""
    from ochat_ray import api

    return api.prepare(**options)


def __getattr__(name: str) -> Any:
    """Import a stage's package, or the functions' module, when it is first used."""
    if name in (*_STAGES, "api"):
        from importlib import import_module

        return import_module(f"ochat_ray.{name}")
    raise AttributeError(f"module 'ochat_ray' has no attribute {name!r}")
