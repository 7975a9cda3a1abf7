"""Check a model directory for serving, and read what describes the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ochat_ray.errors import UserError
from ochat_ray.serve.protocol.responses import Training
from ochat_ray.serve.served_model import read_json

ADAPTER = "adapter_config.json"
"""File of a directory with adapters, in peft's format."""


def check_model_directory(directory: Path, *, has_weights: bool) -> dict[str, Any]:
    """Return the directory's config.json after checking that everything for serving exists.

    The weights may be elsewhere, if the directory is a copy without them.

    Raises:
        UserError: Something is missing; the line names it and how to create it.
    """
    if not directory.is_dir():
        raise UserError(
            f"no model directory at {directory}; train one with `python jobs/train.py`, "
            "or give model=DIR"
        )
    if (directory / ADAPTER).is_file() and not (directory / "config.json").is_file():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path") or "BASE"
        raise UserError(
            f"{directory} holds adapters, not a whole model; give model={base} "
            f"adapters={directory.parent} (they are then named {directory.name}), or train with "
            "--merge"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"no {name} in {directory}; is that a directory that train wrote?")
    if not has_weights:
        raise UserError(f"no *.safetensors in {directory}; is that a directory that train wrote?")
    config = read_json(directory / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):  # of a model that sees images, too
        config = {**text, **config}
    if not isinstance(config.get("vocab_size"), int):
        raise UserError(f"config.json in {directory} has no vocab_size; is it a language model?")
    return config


def training_of(card: Mapping[str, Any]) -> Training | None:
    """Return the provenance in the content of an ochat.json, if there is any.

    Raises:
        UserError: It is invalid.
    """
    known = {name: card[name] for name in Training.model_fields if name in card}
    if not known:
        return None
    whole = json.dumps(card, sort_keys=True, separators=(",", ":"))
    known["digest"] = hashlib.sha256(whole.encode()).hexdigest()
    try:
        return Training.model_validate(known)
    except ValidationError:
        raise UserError("ochat.json does not hold what train writes; train again") from None


def context_length_of(asked: int | None, card: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return the context length: the one asked for, or that of ochat.json, or the model's.

    Raises:
        UserError: There is none, or it is above the model's.
    """
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if asked and positions and asked > positions:
        raise UserError(f"context_length={asked} is above the model's {positions} positions")
    length = asked or card.get("context_length") or positions
    if not length:
        raise UserError("config.json has no context length; give context_length=N")
    return int(length)
