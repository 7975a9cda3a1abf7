"""The application's arguments, and what they come to for one model directory. No Ray here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ochat_ray.errors import UserError
from ochat_ray.serve.admission import ApiKey, read_keys
from ochat_ray.template import END_OF_TURN, template_for

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ServeArgs(BaseModel):
    """Arguments of `serve run ochat_ray.serve:app name=value ...` and of serve.yaml's `args`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str = "runs/demo/model"
    """A trained model's directory; relative to the directory that the builder runs in."""
    engine: str = "auto"
    served_model_name: str | None = None
    """What clients call the model; default: the recipe's name, else the directory's."""
    model_type: str | None = None
    """The conversation template; default: what ochat.json says, else "openchat"."""
    context_length: int | None = Field(None, ge=16)
    """Tokens of prompt and answer together; default: the recipe's, else the model's."""
    dtype: Dtype = "auto"

    min_replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    """Default: 2, or min_replicas if that is more."""
    num_cpus: float = Field(1, gt=0)
    """CPUs of one model replica, and its torch threads."""
    num_gpus: float = Field(0, ge=0)
    max_ongoing: int = Field(16, ge=1)
    """Requests that one replica generates for at a time."""
    max_queued: int = Field(64, ge=0)
    """Requests that wait for a replica before others are refused with 429."""

    max_batch_tokens: int = Field(512, ge=16)
    """Tokens in one forward pass; a longer prompt is read in several."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Memory for keys and values; default: what max_ongoing full contexts need, within limits."""

    keys: str | None = None
    """A file of API keys, one `key` or `name:key` a line; default: none, loopback peers only."""
    max_body_bytes: int = Field(2 * 2**20, ge=1024)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What a model replica needs to know."""

    directory: str
    engine: str
    dtype: Dtype
    context_length: int
    num_cpus: float
    num_gpus: float
    max_ongoing: int
    max_batch_tokens: int
    kv_cache_gib: float | None


@dataclass(frozen=True, kw_only=True)
class IngressSettings:
    """What an ingress replica needs to know. `created` is in seconds since the epoch."""

    directory: str
    served_model_name: str
    model_type: str
    context_length: int
    created: int
    keys: tuple[ApiKey, ...]
    max_body_bytes: int
    max_top_k: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One application, checked and complete."""

    engine: EngineSettings
    ingress: IngressSettings
    min_replicas: int
    max_replicas: int
    max_queued: int


def resolve(args: ServeArgs) -> Settings:
    """Check the arguments against the model directory, and fill in what they leave open.

    Raises:
        UserError: an argument or the directory does not hold.
    """
    if args.model_extra:
        raise UserError(
            f"unknown argument {min(args.model_extra)!r}; "
            f"arguments are {', '.join(ServeArgs.model_fields)}"
        )
    directory = Path(args.model).expanduser().absolute()
    config = check_model_directory(directory)
    card = _read_json(directory / "ochat.json") if (directory / "ochat.json").exists() else {}
    recipe = card.get("recipe")
    if not isinstance(recipe, Mapping):
        recipe = {"name": recipe} if isinstance(recipe, str) else {}

    model_type = args.model_type or card.get("model_type") or recipe.get("model_type") or "openchat"
    template_for(model_type)
    max_replicas = args.max_replicas or max(2, args.min_replicas)
    if max_replicas < args.min_replicas:
        raise UserError(f"max_replicas={max_replicas} is below min_replicas={args.min_replicas}")
    context_length = _context_length(args, recipe, config)
    return Settings(
        engine=EngineSettings(
            directory=str(directory),
            engine=_engine(args.engine),
            dtype=args.dtype,
            context_length=context_length,
            num_cpus=args.num_cpus,
            num_gpus=args.num_gpus,
            max_ongoing=args.max_ongoing,
            max_batch_tokens=args.max_batch_tokens,
            kv_cache_gib=args.kv_cache_gib,
        ),
        ingress=IngressSettings(
            directory=str(directory),
            served_model_name=args.served_model_name or recipe.get("name") or directory.name,
            model_type=model_type,
            context_length=context_length,
            created=int((directory / "config.json").stat().st_mtime),
            keys=read_keys(Path(args.keys).expanduser()) if args.keys else (),
            max_body_bytes=args.max_body_bytes,
            max_top_k=int(config.get("vocab_size", 0)),
        ),
        min_replicas=args.min_replicas,
        max_replicas=max_replicas,
        max_queued=args.max_queued,
    )
