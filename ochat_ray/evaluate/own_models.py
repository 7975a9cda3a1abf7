"""Models of the suite `own` that no option names: the only one served, and a local baseline."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate import steps
from ochat_ray.evaluate.client import CallFailedError, Client, sendable_key
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.identities import EMPTY
from ochat_ray.evaluate.key_files import key_for
from ochat_ray.models.model_directory import is_hub_name

Served = Callable[[Mapping[str, str]], AbstractContextManager[Mapping[str, str]]]
"""Context manager that serves model directories and yields their base URLs, by name."""


def run(config: EvaluateConfig, served: Served) -> dict[str, Any]:
    """Run the steps of the suite `own`.

    Without `--model`, the only model at `--url` is scored, apart from the baseline. A baseline that
    is not served there, but is a model of this machine (a directory, or fetched from the Hub), is
    served by `served` for the time of the run.

    Raises:
        UserError: As in `steps.run`; or no model is named, and not just one is served.
    """
    if not config.model and config.step in ("all", "answer"):
        replace(config, model=("unknown",)).with_output().check()  # before a call is made
        config = replace(config, model=(only_model(config),)).with_output()
    config.check()
    with _baseline_url(config, served) as (url, names):
        return steps.run(replace(config, baseline_url=url), endpoint_names=names)


def only_model(config: EvaluateConfig) -> str:
    """Return the name of the only model at `--url`, apart from the baseline.

    Raises:
        UserError: The endpoint does not list its models, or lists no other or several.
    """
    try:
        names = [name for name in asyncio.run(_names(config)) if name != config.baseline]
    except (UserError, CallFailedError) as error:
        raise UserError(f"--model is needed, since no list of models could be had: {error}") from (
            error
        )
    if len(names) != 1:
        found = f"serves {', '.join(names[:5])}" if names else "lists no other model"
        raise UserError(f"--model is needed: {config.url} {found}")
    return names[0]


async def _names(config: EvaluateConfig) -> list[str]:
    key = sendable_key(key_for("models", config.url, config.url), config.url)
    async with Client(config.url, key, timeout_s=min(config.timeout_s, 60)) as client:
        return [str(entry["id"]) for entry in await client.models() if "id" in entry]


@contextmanager
def _baseline_url(
    config: EvaluateConfig, served: Served
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the base URL of the baseline, empty for that of the models, and names of URLs."""
    if not _is_local(config):
        yield config.baseline_url, EMPTY
        return
    name = config.baseline
    place = name if is_hub_name(name) else str(Path(name).expanduser().absolute())
    print(f"{name} is served from {place} for this evaluation", file=sys.stderr, flush=True)
    with served({name: place}) as urls:
        yield urls[name], {urls[name]: place}


def _is_local(config: EvaluateConfig) -> bool:
    """Return whether the baseline is a model of this machine, and not a name at `--url`."""
    asks = config.step in ("all", "answer") and not config.dry_run
    elsewhere = config.baseline_url or config.baseline_answers
    if not asks or not config.baseline or elsewhere:
        return False
    if not _is_on_this_machine(config.baseline):
        return False
    try:
        return config.baseline not in asyncio.run(_names(config))
    except (UserError, CallFailedError):
        return False  # the run reports what is wrong with the endpoint


def _is_on_this_machine(model: str) -> bool:
    """Return whether a model is a directory, or a Hub repository that was fetched before."""
    if not is_hub_name(model):
        return (Path(model).expanduser() / "config.json").is_file()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)
