"""Settings of the Serve application: validated once, without open defaults, and handed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ochat_ray.serve.adapters import AdapterSettings
from ochat_ray.serve.keys import ApiKey
from ochat_ray.serve.protocol.responses import Training

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of a model replica; without a `model_type`, the directory's is taken."""

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
    adapters: AdapterSettings | None = None
    embeddings: bool = False
    model_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class IngressSettings:
    """Settings of an ingress replica.

    `created` is in seconds since the epoch; `fingerprint` identifies the model and engine settings.
    `embedding_size` is None if embeddings are not served.
    """

    directory: str
    engine: str
    served_model_name: str
    model_type: str
    context_length: int
    vocabulary: int
    created: int
    fingerprint: str = ""
    training: Training | None = None
    adapters: AdapterSettings | None = None
    embedding_size: int | None = None
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
    """Validated settings of one application, without open defaults."""

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
    http_host: str | None = None
    http_port: int | None = None
