"""Read and check LoRA adapters in peft's format: adapter_config.json, adapter_model.safetensors.

Only what changes nothing else than the outputs of linear layers is accepted; an adapter that needs
more is rejected by name. Both files are read once, so the digest is that of the checked content.

Source: peft 0.21, `LoraConfig` and `save_pretrained`; safetensors' format description.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ochat_ray.errors import UserError
from ochat_ray.serve.model_files import ADAPTER
from ochat_ray.serve.served_model import CARD, served_name, trained_template
from ochat_ray.tokenization.template import TEMPLATES

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"

MOST_CONFIG_BYTES = 2**20
MOST_HEADER_BYTES = 2**24
MOST_ALPHA = 10**6

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the base's weights, by name."""

_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""Data types of matrices: as unsigned integers, and the exponent of infinities and NaN."""

_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight")
_PATTERN = re.compile(r"\^?[\w.]+")

_WITHOUT_EFFECT = frozenset(
    # Checked below, or for training and bookkeeping only.
    "peft_type task_type base_model_name_or_path r lora_alpha use_rslora rank_pattern alpha_pattern"
    " bias target_modules exclude_modules layers_to_transform layers_pattern init_lora_weights"
    " lora_dropout inference_mode revision peft_version auto_mapping runtime_config megatron_core"
    " qalora_group_size eva_config".split()
)

_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base's weights as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrices:
    """Change of one linear layer: its output gains `scaling` x B A x, for an input x.

    A is [rank, inputs] and B is [outputs, rank], each as a safetensors type and its bytes.
    """

    rank: int
    scaling: float
    shape_a: tuple[int, int]
    shape_b: tuple[int, int]
    a: tuple[str, memoryview]
    b: tuple[str, memoryview]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterContent:
    """Checked content of an adapter: its digest, matrices by the layer's name, and its files."""

    digest: str
    rank: int
    layers: Mapping[str, Matrices]
    config: bytes
    weights: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterRules:
    """Rules for the adapters of a base.

    Attributes:
        base: Shapes of the base's weights.
        base_names: Names by which an adapter may refer to the base, the preferred one first.
        most_rank: Maximum rank.
        patterns: Whether layers may differ in rank and alpha.
        template: The server's `served_template`; None: not compared with an adapter's.
    """

    base: Shapes
    base_names: tuple[str, ...]
    most_rank: int
    patterns: bool = True
    template: tuple[str, str] | None = None


def base_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights, from the headers of its *.safetensors.

    Raises:
        UserError: A file is not in this format.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= MOST_HEADER_BYTES else b""
        shapes |= {name: shape for name, (_, shape, _) in _entries(header, path.name).items()}
    return shapes


def read_adapter(directory: Path, rules: AdapterRules) -> AdapterContent:
    """Return the checked content of the adapter in a directory.

    Raises:
        UserError: It is incomplete, damaged or not for this base; the line begins with the reason.
    """
    if not (directory / CONFIG).is_file():
        raise UserError(f"has no {CONFIG}")
    if not (directory / WEIGHTS).is_file():
        if any(directory.glob("adapter_model.bin")):
            raise UserError(
                f"has adapter_model.bin, a pickle, which is never loaded; save it as {WEIGHTS}"
            )
        raise UserError(f"has no {WEIGHTS}")
    sizes = [sum(shape) for shape in rules.base.values() if len(shape) == 2]
    most_bytes = 4 * rules.most_rank * sum(sizes)
    try:
        config_bytes = _read(directory / CONFIG, MOST_CONFIG_BYTES)
        weights = _read(directory / WEIGHTS, most_bytes + MOST_HEADER_BYTES)
    except OSError as error:
        raise UserError(f"cannot be read: {type(error).__name__}") from error
    config = _config(config_bytes)
    _check_config(config, rules)
    _check_template(directory / CARD, rules)
    layers = _layers(weights, config, rules)
    _check_complete(config, layers, rules.base)
    digests = [hashlib.sha256(content).digest() for content in (config_bytes, weights)]
    return AdapterContent(
        digest=hashlib.sha256(b"".join(digests)).hexdigest(),
        rank=max(matrices.rank for matrices in layers.values()),
        layers=layers,
        config=config_bytes,
        weights=weights,
    )


def check_content(digest: str, content: AdapterContent) -> None:
    """Check that a content has the digest for which it was read.

    Raises:
        UserError: It has not, since the files have changed.
    """
    if content.digest != digest:
        raise UserError("is being replaced")


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path.name} is above {most} bytes, more than any adapter of this base")
    return content


def _config(content: bytes, name: str = CONFIG) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{name} is not a JSON object")
    return config


def _check_config(config: Mapping[str, Any], rules: AdapterRules) -> None:
    """Reject everything that is not a plain LoRA adapter of this base."""
    if config.get("peft_type") != "LORA":
        raise UserError(f"peft_type={_shown(config.get('peft_type'))} is not LORA")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"task_type={_shown(config['task_type'])} is not CAUSAL_LM")
    base = config.get("base_model_name_or_path")
    if base and not (isinstance(base, str) and _is_named(base, rules.base_names)):
        raise UserError(
            f"base_model_name_or_path={_shown(base)} is not this server's model; if it is the same "
            f"model, write {_shown(rules.base_names[0])}"
        )
    if config.get("bias", "none") != "none":
        raise UserError(f"bias={_shown(config['bias'])} is not supported, only none")
    init = config.get("init_lora_weights")
    if not any(type(init) is type(plain) and init == plain for plain in _PLAIN_INITS):
        raise UserError(f"init_lora_weights={_shown(init)} changes the base's weights")
    for name, value in config.items():
        if name not in _WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            raise UserError(f"{name}={_shown(value)} is not supported")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{name} is not an object")
        if patterns and not rules.patterns:
            raise UserError(f"{name} is not supported by this engine; transformers does")
        for pattern in patterns:
            if not _PATTERN.fullmatch(pattern):
                raise UserError(f"{name} has the regular expression {_shown(pattern)}; give names")


def _check_template(card: Path, rules: AdapterRules) -> None:
    """Reject an adapter that was trained here with another template: its prompts would be others.

    The server renders every prompt with one template, that of the base.
    """
    if rules.template is None or not card.is_file():
        return
    trained = trained_template(_config(_read(card, MOST_CONFIG_BYTES), CARD))
    if trained != rules.template:
        # A base with a template of its own is served with that one unless another is named.
        named = f"serve the base with model_type={trained[0]}, or " * (trained[0] in TEMPLATES)
        raise UserError(
            "was trained with another chat template, or other --template-arguments, than this "
            f"server applies; {named}train it with --merge and serve the merged model"
        )


def _layers(weights: bytes, config: Mapping[str, Any], rules: AdapterRules) -> dict[str, Matrices]:
    """Return the matrices by layer, checked against the base."""
    length = int.from_bytes(weights[:8], "little")
    if len(weights) < 8 or not 2 <= length <= min(len(weights) - 8, MOST_HEADER_BYTES):
        raise UserError(f"{WEIGHTS} is incomplete or damaged: its header is not there")
    entries = _entries(weights[8 : 8 + length], WEIGHTS)
    data = memoryview(weights)[8 + length :]
    pairs: dict[str, dict[str, tuple[str, tuple[int, ...], memoryview]]] = {}
    end = 0
    for key, (dtype, shape, (start, stop)) in sorted(entries.items(), key=lambda e: e[1][2]):
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{_shown(key)} is not a LoRA matrix of a linear layer")
        if dtype not in _EXPONENTS:
            raise UserError(f"{_shown(key)} is {_shown(dtype)}, and not F32, F16 or BF16")
        kind, exponent = _EXPONENTS[dtype]
        size = math.prod(shape) * np.dtype(kind).itemsize
        if start != end or stop - start != size or stop > len(data):
            raise UserError(f"{WEIGHTS} is incomplete or damaged at {_shown(key)}")
        end = stop
        if ((np.frombuffer(data[start:stop], kind) & exponent) == exponent).any():
            raise UserError(f"{_shown(key)} has values that are not finite")
        pairs.setdefault(match["module"], {})[match["side"]] = (dtype, shape, data[start:stop])
    if end != len(data) or not pairs:
        raise UserError(f"{WEIGHTS} is incomplete or damaged: {len(data)} bytes, not {end}")
    return {module: _matrices(module, pair, config, rules) for module, pair in pairs.items()}


def _matrices(
    module: str, pair: Mapping[str, Any], config: Mapping[str, Any], rules: AdapterRules
) -> Matrices:
    if set(pair) != {"A", "B"}:
        raise UserError(f"{module} has only one of its two matrices")
    wide = rules.base.get(f"{module}.weight")
    if wide is None or len(wide) != 2:
        raise UserError(f"the base has no linear layer {module}")
    outputs, inputs = wide
    if "." not in module or module.endswith(("embed_tokens", "lm_head", "embed_out", "embed_in")):
        raise UserError(f"{module} is a layer of the vocabulary, which is not supported")
    (dtype_a, shape_a, a), (dtype_b, shape_b, b) = pair["A"], pair["B"]
    rank = _number(config, "r", "rank_pattern", module, int)
    alpha = _number(config, "lora_alpha", "alpha_pattern", module, float)
    if shape_a != (rank, inputs) or shape_b != (outputs, rank):
        raise UserError(
            f"{module} has matrices of {list(shape_a)} and {list(shape_b)}; rank {rank} and this "
            f"base need {[rank, inputs]} and {[outputs, rank]}"
        )
    if rank > rules.most_rank:
        raise UserError(f"rank {rank} is above max_adapter_rank={rules.most_rank}")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Matrices(
        rank=rank, scaling=scaling, shape_a=shape_a, shape_b=shape_b, a=(dtype_a, a), b=(dtype_b, b)
    )


def _number(config: Mapping[str, Any], field: str, patterns: str, module: str, kind: type) -> Any:
    """Return a number of the config for a layer; the first pattern that matches it counts."""
    value: Any = config.get(field)
    name = field
    for pattern, own in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            value, name = own, f"{patterns} {pattern}"
            break
    valid = type(value) is int or (kind is float and type(value) is float)
    if not valid or not (1 if kind is int else -MOST_ALPHA) <= value <= MOST_ALPHA:
        raise UserError(f"{name}={_shown(value)} is not a valid number")
    return value


def _check_complete(
    config: Mapping[str, Any], layers: Mapping[str, Matrices], base: Shapes
) -> None:
    """Reject an adapter whose matrices are not those of the layers that its config names."""
    targets = config.get("target_modules")
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        return
    wanted = [
        module
        for module in (name.removesuffix(".weight") for name, shape in base.items())
        if any(f".{module}".endswith(f".{target}") for target in targets)
    ]
    if missing := sorted(set(wanted) - set(layers)):
        raise UserError(f"{WEIGHTS} has no matrices for {missing[0]}, which target_modules names")
    if others := sorted(set(layers) - set(wanted)):
        raise UserError(
            f"{WEIGHTS} has matrices for {others[0]}, which target_modules does not name"
        )


def _entries(header: bytes, name: str) -> dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Return type, shape and offsets by tensor, from the header of a safetensors file."""
    try:
        found = {
            key: (
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                (int(entry["data_offsets"][0]), int(entry["data_offsets"][1])),
            )
            for key, entry in json.loads(header).items()
            if key != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise UserError(f"{name} is incomplete or damaged: its header is not valid") from None
    if any(size < 0 for _, shape, _ in found.values() for size in shape):
        raise UserError(f"{name} is damaged: its header has a negative size")
    return found


def _is_named(base: str, names: tuple[str, ...]) -> bool:
    """Return whether a path or hub name is one of the names, or of a model with such a name."""
    return base in names or (base.strip("/") != "" and served_name(base) in names)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
