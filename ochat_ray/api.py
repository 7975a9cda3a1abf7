"""The four stages as Python functions.

Keyword arguments are the options of the commands, by their names: `--max-steps 10` is
`max_steps=10`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ochat_ray.errors import UserError
from ochat_ray.recipes import DEMO

Config = TypeVar("Config")


def prepare(**options: Any) -> dict[str, Any]:
    """Convert conversations to token tables, as `ochat-ray prepare` does.

    Example:
        >>> from ochat_ray import api
        >>> manifest = api.prepare(
        ...     recipe="chat", input="chats.jsonl", tokenizer="base", output="runs/mine/data"
        ... )

    Args:
        **options: Options of `ochat-ray prepare --help`.

    Returns:
        The manifest of the run directory, which `--json` prints.

    Raises:
        UserError: An option is unknown or invalid, or the inputs cannot be used.
    """
    from ochat_ray.data.config import PrepareConfig
    from ochat_ray.jobs import prepare as job

    return job.work(configured("prepare", PrepareConfig.for_recipe, options))


def train(**options: Any) -> dict[str, Any]:
    """Fine-tune a model on token tables, as `ochat-ray train` does.

    Example:
        >>> from ochat_ray import api
        >>> result = api.train(
        ...     recipe="chat", data="runs/mine/data", model="base", output="runs/mine/model"
        ... )

    Args:
        **options: Options of `ochat-ray train --help`; `dry_run=True` only plans the run.

    Returns:
        The content of the model's ochat.json, which `--json` prints.

    Raises:
        UserError: An option is unknown or invalid, or data, model and cluster do not fit.
    """
    from ochat_ray.jobs import train as job
    from ochat_ray.train.config import TrainConfig

    return job.work(configured("train", TrainConfig.for_recipe, options))


def serve(**options: Any) -> dict[str, Any]:
    """Serve a model behind an OpenAI-compatible API, as `ochat-ray serve` does.

    Returns once the model answers; it is served until `ray.serve.shutdown()`, or until this process
    ends if it started Ray.

    Example:
        >>> from ochat_ray import api
        >>> server = api.serve(model="runs/mine/model", num_gpus=1)

    Args:
        **options: Arguments of `ochat-ray serve --help`.

    Returns:
        `url`, the base URL for OpenAI clients, and `model`, the model's name there.

    Raises:
        UserError: An argument is unknown or invalid, or the model cannot be served.
    """
    from ochat_ray.jobs import serve as job

    return job.work({name: _plain(value) for name, value in options.items()})


def evaluate(**options: Any) -> dict[str, Any]:
    """Score served models with a judge, as `ochat-ray evaluate` does.

    Example:
        >>> from ochat_ray import api
        >>> result = api.evaluate(
        ...     questions="questions.jsonl", model="chat", baseline="base", judge="gpt-4",
        ...     output="runs/mine/evaluation",
        ... )

    Args:
        **options: Options of `ochat-ray evaluate --help`; `step="answer"` is its first argument.

    Returns:
        Scores with confidence intervals, which `--json` prints.

    Raises:
        UserError: An option is unknown or invalid, or an endpoint cannot be used.
    """
    from ochat_ray.evaluate.config import EvaluateConfig
    from ochat_ray.jobs import evaluate as job

    return job.work(configured("evaluate", lambda _recipe: EvaluateConfig(), options))


def configured(stage: str, for_recipe: Callable[[str], Config], options: dict[str, Any]) -> Config:
    """Return the configuration of a stage: the recipe's defaults with these options.

    Paths are accepted for texts, and lists or single values for options that take several.

    Raises:
        UserError: An option does not exist, or its value is of another type.
    """
    default: Any = for_recipe(str(options.get("recipe", DEMO)))
    types = get_type_hints(type(default), include_extras=False)
    known = [name for name in types if name in vars(default) and name != "json"]
    values = {}
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            instead = f"did you mean {near[0]}?" if near else f"options are {', '.join(known)}"
            raise UserError(f"{stage} has no option {name!r}; {instead}")
        values[name] = _checked(stage, name, types[name], _plain(value))
    return replace(default, **values)


def _checked(stage: str, name: str, kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    takes_several = get_origin(kind) is tuple and get_args(kind)[-1] is ...
    if takes_several and not isinstance(value, list | tuple):
        value = [value]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{stage}: {name}={value!r}: {reason}") from None


def _plain(value: Any) -> Any:
    """Return paths as texts, also in lists, and mappings as JSON, as the commands take both."""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
