"""Arguments of the Serve application, and the settings resolved from them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
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
from ochat_ray.models.model_directory import is_hub_name, local_directory, weight_files
from ochat_ray.serve.adapters import AdapterSettings
from ochat_ray.serve.engines.base import UNSUPPORTED
from ochat_ray.serve.keys import ApiKey, parse_keys, read_keys
from ochat_ray.serve.model_files import check_model_directory, context_length_of, training_of
from ochat_ray.serve.protocol.fields import MOST_MESSAGES
from ochat_ray.serve.served_model import model_type_of, read_card, served_name
from ochat_ray.serve.settings import Dtype, EngineSettings, IngressSettings, Settings


class ConfigurationError(click.ClickException, RayServeException):
    """Invalid arguments, described in one line.

    Ray Serve handles it in two places. `serve run` is a click command: a ClickException is printed
    as one line and sets the exit code. `serve deploy` builds in a Ray task, where the text of a
    RayServeException becomes the application's status message, without a traceback. It is not a
    ValueError, which pydantic would wrap in a ValidationError of several lines.
    """

    exit_code = 2


class ServeArgs(BaseModel):
    """Arguments of `serve run ochat_ray.serve:app name=value ...` and of serve.yaml's `args`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = "runs/demo/model"
    """Directory of a trained model, relative to the builder's working directory; or its URI or Hub
    name, which each host fetches once."""
    engine: str = "auto"
    served_model_name: str | None = None
    """Model name for clients; default: the recipe in ochat.json, else the directory's name."""
    model_type: str | None = None
    """Conversation template; default: the one in ochat.json, else "openchat"."""
    context_length: int | None = Field(None, ge=16)
    """Maximum tokens of prompt and answer together; default: the value in ochat.json, else the
    model's."""
    dtype: Dtype = "auto"
    adapters: str | None = None
    """Directory of LoRA adapters, one per sub-directory, served under its name; scanned every few
    seconds. Every host needs it under the same path."""
    max_adapter_rank: int = Field(64, ge=1, le=512)
    embeddings: bool = False
    """Answer /v1/embeddings; with the transformers engine only."""

    min_replicas: int = Field(1, ge=0)
    """Minimum model replicas; 0 scales to zero when idle, and the next request waits for a new
    replica."""
    max_replicas: int | None = Field(None, ge=1)
    """Maximum model replicas; default: 2, or min_replicas if larger."""
    num_cpus: float = Field(1, gt=0)
    """CPUs per model replica; also its number of torch threads."""
    num_gpus: float = Field(0, ge=0)
    max_ongoing: int = Field(16, ge=1)
    """Maximum requests that one replica processes concurrently."""
    max_queued: int = Field(64, ge=0)
    """Maximum requests that wait for a replica; further ones are rejected with 429."""

    max_batch_tokens: int = Field(512, ge=16)
    """Maximum tokens per forward pass; longer prompts are prefilled in chunks."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the key-value cache in GiB; default: enough for max_ongoing full contexts, within
    limits."""

    routing: Literal["balanced", "session"] = "balanced"
    """Request routing: to the less loaded replica, or always to the same replica per conversation,
    whose cache then still holds its beginning. A client's `x-session-id` names a session."""
    upscale_delay_s: float = Field(3, ge=0)
    downscale_delay_s: float = Field(60, ge=0)
    max_surge_percent: int = Field(100, ge=0, le=100)
    """Replicas of a new version, in percent, that start before old ones stop. On a cluster without
    room for them they wait; 0 stops old ones first."""
    ingress_replicas: int = Field(1, ge=1)
    """Ingress replicas; each counts rate limits separately."""

    http_host: str | None = None
    http_port: int | None = Field(None, ge=1, le=65535)
    """The address in `http_options`. A running Serve keeps its own: another one is rejected."""
    keys: str | None = None
    """File of API keys (mode 600), one `key`, `name:key` or `name:sha256:DIGEST` per line, reloaded
    when it changes; or env:NAME, an environment variable with such lines. Without keys only clients
    on this machine are served."""
    insecure_open: bool = False
    """Serve all clients without keys."""
    cors_origins: str | None = None
    """Comma-separated origins whose pages may send requests (CORS); default: none."""
    strict: bool = True
    """Reject unknown fields of a request; otherwise ignore them and list them in a response
    header."""
    ui: bool | None = None
    """Serve the chat page at /ui; default: if gradio is installed and ingress_replicas is 1."""

    max_body_bytes: int = Field(2 * 2**20, ge=1024)
    max_messages: int = Field(1024, ge=1, le=MOST_MESSAGES)
    requests_per_minute: int | None = Field(None, ge=1)
    """Request limit per key."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Token limit per key, prompts and answers together."""
    request_timeout_s: float = Field(600, gt=0)
    keep_alive_s: float = Field(10, gt=0)
    """Seconds of silence in a stream after which a comment keeps the connection alive."""
    log_text: bool = False
    """Include prompts and answers in the request log."""

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
                value = "..." if name == "keys" else repr(first["input"])  # never shown
                text = f"argument {name}={value}: {first['msg']}"
            raise ConfigurationError(text) from None


def resolve(args: ServeArgs) -> Settings:
    """Validate the arguments against the model directory and resolve the defaults.

    Raises:
        UserError: An argument or the directory is invalid.
    """
    # Replicas alone read the weights, and fetch them.
    directory, weights = local_directory(args.model, weights=False), weight_files(args.model)
    # A replica may run on another host, with its own copy.
    elsewhere = "://" in args.model or is_hub_name(args.model)
    place = args.model if elsewhere else str(directory)
    config = check_model_directory(directory, has_weights=bool(weights))
    card = read_card(directory)
    model_type = model_type_of(directory, card, args.model_type)
    max_replicas = args.max_replicas or max(2, args.min_replicas)
    if max_replicas < args.min_replicas:
        raise UserError(f"max_replicas={max_replicas} is below min_replicas={args.min_replicas}")
    context_length = context_length_of(args.context_length, card, config)
    keys, keys_path = _keys(args)
    name = args.served_model_name or served_name(place)
    engine_name = _engine(args.engine)
    engine = EngineSettings(
        directory=place,
        engine=engine_name,
        dtype=args.dtype,
        context_length=context_length,
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
        max_ongoing=args.max_ongoing,
        max_batch_tokens=args.max_batch_tokens,
        vocabulary=config["vocab_size"],
        kv_cache_gib=args.kv_cache_gib,
        adapters=_adapters(args, engine_name, (served_name(place), place, name)),
        embeddings=args.embeddings,
        model_type=model_type,
    )
    return Settings(
        engine=engine,
        ingress=IngressSettings(
            directory=place,
            engine=engine.engine,
            served_model_name=name,
            model_type=model_type,
            context_length=context_length,
            vocabulary=config["vocab_size"],
            created=int((directory / "config.json").stat().st_mtime),
            fingerprint=fingerprint(directory, engine, weights),
            training=training_of(card),
            adapters=engine.adapters,
            embedding_size=_embedding_size(engine, config),
            keys=keys,
            keys_path=keys_path,
            insecure_open=args.insecure_open,
            cors_origins=tuple(filter(None, re.split(r"[,\s]+", args.cors_origins or ""))),
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
        http_host=args.http_host,
        http_port=args.http_port,
    )


def fingerprint(directory: Path, engine: EngineSettings, weights: list[tuple[str, int]]) -> str:
    """Return a digest of the model's files and the engine's settings, for `system_fingerprint`.

    Weights, which may be large, count with their names and sizes; ochat.json, which a training
    writes, differs for other weights. The path does not matter, nor do adapters and embeddings.
    """
    settings = asdict(replace(engine, directory="", adapters=None))
    del settings["adapters"], settings["embeddings"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(version("ochat-ray").encode())
    for name in ("config.json", "tokenizer.json", "ochat.json"):
        path = directory / name
        digest.update(path.read_bytes() if path.exists() else b"")
    digest.update(json.dumps(weights).encode())
    return f"fp_{digest.hexdigest()[:16]}"


def _engine(name: str) -> str:
    """Return the engine's name; "auto" is vLLM if it is installed."""
    installed = _installed("vllm")
    if name == "auto":
        return "vllm" if installed else "transformers"
    if name not in UNSUPPORTED:
        raise UserError(f"unknown engine {name!r}; choose auto, {', '.join(UNSUPPORTED)}")
    if name == "vllm" and not installed:
        raise UserError("engine=vllm needs vLLM; pip install 'ochat-ray[gpu]'")
    return name


def _adapters(args: ServeArgs, engine: str, base_names: tuple[str, ...]) -> AdapterSettings | None:
    if args.adapters is None:
        if "max_adapter_rank" in args.model_fields_set:
            raise UserError("max_adapter_rank: only with adapters")
        return None
    if "adapters" in UNSUPPORTED[engine]:
        raise UserError(f"adapters: the {engine} engine has none; transformers and vllm do")
    path = Path(args.adapters).expanduser().absolute()
    if not args.adapters or "://" in args.adapters or not path.is_dir():
        raise UserError(f"adapters={args.adapters} is not a directory")
    return AdapterSettings(
        directory=str(path),
        base_names=base_names,
        most_rank=args.max_adapter_rank,
        patterns=engine == "transformers",
    )


def _embedding_size(engine: EngineSettings, config: Mapping[str, Any]) -> int | None:
    if not engine.embeddings:
        return None
    if "embeddings" in UNSUPPORTED[engine.engine]:
        raise UserError(
            f"embeddings=true: the {engine.engine} engine has none; give engine=transformers"
        )
    size = config.get("hidden_size")
    if not isinstance(size, int):
        raise UserError("embeddings=true: config.json has no hidden_size")
    return size


def _keys(args: ServeArgs) -> tuple[tuple[ApiKey, ...], str | None]:
    """Return the API keys, and the file to watch for changes."""
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
            shown = name if re.fullmatch("[A-Z][A-Z0-9_]*", name) else "of that name"
            raise UserError(f"keys=env:NAME: there is no environment variable {shown}")
        return parse_keys(os.environ[name], f"environment variable {name}"), None
    path = Path(os.path.expanduser(args.keys)).absolute()
    read_keys(path)
    return (), str(path)  # each ingress replica reads the file as it is when it starts


def _ui(args: ServeArgs) -> bool:
    installed = _installed("gradio")
    if args.ui and not installed:
        raise UserError("ui=true needs gradio; pip install 'ochat-ray[ui]'")
    if args.ui and args.ingress_replicas > 1:
        raise UserError("ui=true needs ingress_replicas=1: its sessions live in one process")
    return installed and args.ingress_replicas == 1 if args.ui is None else args.ui


def _installed(name: str) -> bool:
    # A plain folder of that name is a namespace package, without an origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
