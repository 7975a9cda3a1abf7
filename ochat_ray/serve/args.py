"""The application's arguments, and what they come to for one model directory."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import click
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from ray.serve.exceptions import RayServeException

from ochat_ray.errors import UserError
from ochat_ray.serve.admission import ApiKey, read_keys
from ochat_ray.serve.engines.base import UNSUPPORTED
from ochat_ray.template import template_for
from ochat_ray.tokenizer import END_OF_TURN

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ConfigurationError(click.ClickException, RayServeException):
    """What is wrong with the arguments, in one line.

    Ray Serve has two readers for it. `serve run` is a click command: a ClickException is printed
    as one line and ends with its exit code. `serve deploy` builds in a Ray task, where a
    RayServeException's text becomes the application's status message, without a traceback.
    Not a ValueError: pydantic would wrap that in a ValidationError of several lines.
    """

    exit_code = 2


class ServeArgs(BaseModel):
    """Arguments of `serve run ochat_ray.serve:app name=value ...` and of serve.yaml's `args`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = "runs/demo/model"
    """A trained model's directory; relative to the directory that the builder runs in."""
    engine: str = "auto"
    served_model_name: str | None = None
    """What clients call the model; default: ochat.json's recipe, else the directory's name."""
    model_type: str | None = None
    """The conversation template; default: what ochat.json says, else "openchat"."""
    context_length: int | None = Field(None, ge=16)
    """Tokens of prompt and answer together; default: what ochat.json says, else the model's."""
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

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "arguments"
            if first["type"] == "extra_forbidden":
                text = f"unknown argument {name!r}; arguments are {', '.join(cls.model_fields)}"
            else:
                text = f"argument {name}={first['input']!r}: {first['msg']}"
            raise ConfigurationError(text) from None


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
    vocabulary: int
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
    vocabulary: int


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
    directory = Path(args.model).expanduser().absolute()
    config = check_model_directory(directory)
    card = _read_json(directory / "ochat.json") if (directory / "ochat.json").exists() else {}
    model_type = args.model_type or card.get("model_type") or "openchat"
    template_for(model_type)
    max_replicas = args.max_replicas or max(2, args.min_replicas)
    if max_replicas < args.min_replicas:
        raise UserError(f"max_replicas={max_replicas} is below min_replicas={args.min_replicas}")
    context_length = _context_length(args, card, config)
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
            vocabulary=config["vocab_size"],
            kv_cache_gib=args.kv_cache_gib,
        ),
        ingress=IngressSettings(
            directory=str(directory),
            served_model_name=args.served_model_name or card.get("recipe") or directory.name,
            model_type=model_type,
            context_length=context_length,
            created=int((directory / "config.json").stat().st_mtime),
            keys=read_keys(Path(args.keys).expanduser()) if args.keys else (),
            max_body_bytes=args.max_body_bytes,
            vocabulary=config["vocab_size"],
        ),
        min_replicas=args.min_replicas,
        max_replicas=max_replicas,
        max_queued=args.max_queued,
    )


def check_model_directory(directory: Path) -> dict[str, Any]:
    """The directory's config.json, once all that serving needs is there.

    Raises:
        UserError: something is missing; the line says what, and what makes it.
    """
    if not directory.is_dir():
        raise UserError(
            f"no model directory at {directory}; train one with `python jobs/train.py`, "
            "or give model=DIR"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"no {name} in {directory}; is that a directory that train wrote?")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"no *.safetensors in {directory}; is that a directory that train wrote?")
    added = _read_json(directory / "tokenizer.json").get("added_tokens", [])
    if END_OF_TURN not in {token["content"] for token in added}:
        raise UserError(
            f"the tokenizer in {directory} has no {END_OF_TURN} token, so the model was not "
            "trained for this template; serve a directory that train wrote"
        )
    config = _read_json(directory / "config.json")
    if not isinstance(config.get("vocab_size"), int):
        raise UserError(f"config.json in {directory} has no vocab_size; is it a language model?")
    return config


def _engine(name: str) -> str:
    """The engine itself; "auto" is vLLM where it is installed."""
    installed = importlib.util.find_spec("vllm") is not None
    if name == "auto":
        return "vllm" if installed else "transformers"
    if name not in UNSUPPORTED:
        raise UserError(f"unknown engine {name!r}; choose auto, {', '.join(UNSUPPORTED)}")
    if name == "vllm" and not installed:
        raise UserError("engine=vllm needs vLLM; pip install 'ochat-ray[gpu]'")
    return name


def _context_length(args: ServeArgs, card: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if args.context_length and positions and args.context_length > positions:
        raise UserError(
            f"context_length={args.context_length} is above the model's {positions} positions"
        )
    length = args.context_length or card.get("context_length") or positions
    if not length:
        raise UserError("config.json does not say how long a context is; give context_length=N")
    return int(length)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value
