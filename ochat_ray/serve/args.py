"""The application's arguments, and what they come to for one model directory."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
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
from ochat_ray.model_directory import local_directory
from ochat_ray.serve.engines.base import UNSUPPORTED
from ochat_ray.serve.keys import ApiKey, parse_keys, read_keys
from ochat_ray.serve.responses import Training
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
    """A trained model's directory, relative to the one that the builder runs in; or its URI, from
    which each host fetches it once."""
    engine: str = "auto"
    served_model_name: str | None = None
    """What clients call the model; default: ochat.json's recipe, else the directory's name."""
    model_type: str | None = None
    """The conversation template; default: what ochat.json says, else "openchat"."""
    context_length: int | None = Field(None, ge=16)
    """Tokens of prompt and answer together; default: what ochat.json says, else the model's."""
    dtype: Dtype = "auto"

    min_replicas: int = Field(1, ge=0)
    """0 lets the last replica go when nobody asks; the next request waits for a new one."""
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

    routing: Literal["balanced", "session"] = "balanced"
    """Which replica answers: the one with less to do, or always the same one for a conversation,
    whose cache then still holds its beginning. A client's `x-session-id` names a session."""
    upscale_delay_s: float = Field(3, ge=0)
    downscale_delay_s: float = Field(60, ge=0)
    max_surge_percent: int = Field(100, ge=0, le=100)
    """Replicas of a new version that start before old ones stop; on a cluster without the room
    for them they wait, and 0 stops old ones first."""
    ingress_replicas: int = Field(1, ge=1)
    """Limits a minute are counted by each of them for itself."""

    keys: str | None = None
    """A file of API keys, one `key`, `name:key` or `name:sha256:DIGEST` a line, read again when it
    changes; or env:NAME, an environment variable with such lines. Default: none, and only this
    machine is answered."""
    insecure_open: bool = False
    """Answer everyone without keys."""
    cors_origins: str | None = None
    """Origins, separated by commas, whose pages may ask; default: none."""
    strict: bool = True
    """Refuse unknown fields of a request; otherwise they are named in a header of the response."""
    ui: bool | None = None
    """The chat page at /ui; default: where gradio is installed and ingress_replicas is 1."""

    max_body_bytes: int = Field(2 * 2**20, ge=1024)
    max_messages: int = Field(1024, ge=1)
    requests_per_minute: int | None = Field(None, ge=1)
    """For each key."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """For each key, of prompts and answers."""
    request_timeout_s: float = Field(600, gt=0)
    keep_alive_s: float = Field(10, gt=0)
    """How long a stream may be silent before a comment keeps its connection alive."""
    log_text: bool = False
    """Write prompts and answers into the log of requests."""

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
    engine: str
    served_model_name: str
    model_type: str
    context_length: int
    vocabulary: int
    created: int
    training: Training | None = None
    keys: tuple[ApiKey, ...] = ()
    keys_path: str | None = None
    insecure_open: bool = False
    cors_origins: tuple[str, ...] = ()
    strict: bool = True
    ui: bool = False
    max_body_bytes: int
    max_messages: int
    choices_at_once: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    request_timeout_s: float
    keep_alive_s: float
    log_text: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One application, checked and complete."""

    engine: EngineSettings
    ingress: IngressSettings
    min_replicas: int
    max_replicas: int
    max_queued: int
    upscale_delay_s: float
    downscale_delay_s: float
    routing: Literal["balanced", "session"]
    ingress_replicas: int
    max_surge_percent: int


def resolve(args: ServeArgs) -> Settings:
    """Check the arguments against the model directory, and fill in what they leave open.

    Raises:
        UserError: an argument or the directory does not hold.
    """
    directory = local_directory(args.model)
    # A replica may be on another host, with a copy of its own.
    place = args.model if "://" in args.model else str(directory)
    config = check_model_directory(directory)
    card = _read_json(directory / "ochat.json") if (directory / "ochat.json").exists() else {}
    model_type = args.model_type or card.get("model_type") or "openchat"
    template_for(model_type)
    max_replicas = args.max_replicas or max(2, args.min_replicas)
    if max_replicas < args.min_replicas:
        raise UserError(f"max_replicas={max_replicas} is below min_replicas={args.min_replicas}")
    context_length = _context_length(args, card, config)
    keys, keys_path = _keys(args)
    return Settings(
        engine=EngineSettings(
            directory=place,
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
            directory=place,
            engine=_engine(args.engine),
            served_model_name=args.served_model_name or card.get("recipe") or Path(place).name,
            model_type=model_type,
            context_length=context_length,
            vocabulary=config["vocab_size"],
            created=int((directory / "config.json").stat().st_mtime),
            training=_training(card),
            keys=keys,
            keys_path=keys_path,
            insecure_open=args.insecure_open,
            cors_origins=tuple(filter(None, (args.cors_origins or "").split(","))),
            strict=args.strict,
            ui=_ui(args),
            max_body_bytes=args.max_body_bytes,
            max_messages=args.max_messages,
            choices_at_once=max(1, args.max_ongoing // 2),
            requests_per_minute=args.requests_per_minute,
            tokens_per_minute=args.tokens_per_minute,
            request_timeout_s=args.request_timeout_s,
            keep_alive_s=args.keep_alive_s,
            log_text=args.log_text,
        ),
        min_replicas=args.min_replicas,
        max_replicas=max_replicas,
        max_queued=args.max_queued,
        upscale_delay_s=args.upscale_delay_s,
        downscale_delay_s=args.downscale_delay_s,
        routing=args.routing,
        ingress_replicas=args.ingress_replicas,
        max_surge_percent=args.max_surge_percent,
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
    installed = _installed("vllm")
    if name == "auto":
        return "vllm" if installed else "transformers"
    if name not in UNSUPPORTED:
        raise UserError(f"unknown engine {name!r}; choose auto, {', '.join(UNSUPPORTED)}")
    if name == "vllm" and not installed:
        raise UserError("engine=vllm needs vLLM; pip install 'ochat-ray[gpu]'")
    return name


def _keys(args: ServeArgs) -> tuple[tuple[ApiKey, ...], str | None]:
    """The API keys, and the file to look at for new ones."""
    if args.keys is None:
        if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not args.insecure_open:
            raise UserError(
                "behind HAProxy every client seems to be this machine, so an open server cannot "
                "keep others out; give keys=FILE, or insecure_open=true to answer everyone"
            )
        return (), None
    if args.insecure_open:
        raise UserError("keys and insecure_open=true contradict each other; give one of them")
    if args.keys.startswith("env:"):
        name = args.keys.removeprefix("env:")
        if name not in os.environ:
            raise UserError(f"keys={args.keys}: there is no environment variable {name}")
        return parse_keys(os.environ[name], f"environment variable {name}"), None
    path = Path(args.keys).expanduser().absolute()
    return read_keys(path), str(path)


def _ui(args: ServeArgs) -> bool:
    installed = _installed("gradio")
    if args.ui and not installed:
        raise UserError("ui=true needs gradio; pip install 'ochat-ray[ui]'")
    if args.ui and args.ingress_replicas > 1:
        raise UserError("ui=true needs ingress_replicas=1: its sessions live in one process")
    return installed and args.ingress_replicas == 1 if args.ui is None else args.ui


def _training(card: Mapping[str, Any]) -> Training | None:
    known = {name: card[name] for name in Training.model_fields if name in card}
    if not known:
        return None
    whole = json.dumps(card, sort_keys=True, separators=(",", ":"))
    known["digest"] = hashlib.sha256(whole.encode()).hexdigest()
    try:
        return Training.model_validate(known)
    except ValidationError:
        raise UserError("ochat.json does not hold what train writes; train again") from None


def _installed(name: str) -> bool:
    # A mere folder of that name is a namespace package, without an origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


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
