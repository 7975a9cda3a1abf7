"""Template and tokenizer of a model directory, trained here or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT
from ochat_ray.tokenization.segment_marks import BORDER
from ochat_ray.tokenization.template import TEMPLATES
from ochat_ray.tokenization.tokenizer import END_OF_TURN

CARD = "ochat.json"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: The file is not a JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def read_card(directory: Path) -> dict[str, Any]:
    """Return what training wrote about the model; empty for a model that was not trained here."""
    path = directory / CARD
    return read_json(path) if path.exists() else {}


def model_type_of(directory: Path, card: Mapping[str, Any], asked: str | None = None) -> str:
    """Return the model's template: a key of TEMPLATES, or "chat" for its own chat template.

    Raises:
        UserError: The type is unknown, or the tokenizer does not have what it needs.
    """
    written = read_json(directory / "tokenizer.json")
    has_end_of_turn = END_OF_TURN in {token["content"] for token in written.get("added_tokens", [])}
    known = card.get("model_type")
    if not known:
        # A model's own template comes before the one that a token of its suggests; but not the
        # Jinja form of a template of 2023, which needs a tokenizer that acts on its marks.
        exported = BORDER in json.dumps(written.get("pre_tokenizer"), ensure_ascii=False)
        of_2023 = has_end_of_turn and (exported or not _has_chat_template(directory))
        known = "openchat" if of_2023 else CHAT
    model_type = asked or str(known)
    if model_type not in (*TEMPLATES, CHAT):
        raise UserError(
            f"unknown model type {model_type!r}; choose one of {', '.join((*TEMPLATES, CHAT))}"
        )
    if model_type != CHAT and not has_end_of_turn:
        raise UserError(
            f"the tokenizer in {directory} has no {END_OF_TURN} token, so the model was not "
            "trained for this template; serve a directory that train wrote, or leave out "
            "model_type for the model's own chat template"
        )
    if model_type == CHAT and not _has_chat_template(directory):
        raise UserError(
            f"the tokenizer in {directory} has neither a chat template nor a {END_OF_TURN} token: "
            "the model was not trained for conversations; serve an instruct model, or a directory "
            "that train wrote"
        )
    return model_type


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").exists():
        return True
    path = directory / "tokenizer_config.json"
    return path.exists() and bool(read_json(path).get("chat_template"))


def open_served_tokenizer(directory: Path, model_type: str | None = None) -> Any:
    """Return the tokenizer for a model's template.

    `model_type` is the result of `model_type_of`, which is called if it is None. The template is
    that of the directory, with the arguments of the training. Besides what the template writes, an
    answer ends at the EOS tokens of generation_config.json.

    Raises:
        UserError: The tokenizer cannot be used.
    """
    from ochat_ray.tokenization.chat_tokenizer import (
        TemplateSettings,
        load_chat_tokenizer,
        own_template,
    )
    from ochat_ray.tokenization.tokenizer import load_tokenizer

    card = read_card(directory)
    if (model_type or model_type_of(directory, card)) != CHAT:
        return load_tokenizer(str(directory))
    trained = TemplateSettings.of_manifest(card)
    tokenizer = load_chat_tokenizer(
        str(directory),
        TemplateSettings(
            source=own_template(str(directory)), arguments=trained.arguments if trained else {}
        ),
    )
    path = directory / "generation_config.json"
    eos = read_json(path).get("eos_token_id") if path.exists() else None
    further = eos if isinstance(eos, list) else [eos]
    ends = [*tokenizer.chat_ends, *(id for id in further if isinstance(id, int))]
    tokenizer.chat_ends = tuple(dict.fromkeys(ends))
    return tokenizer


def trained_template(card: Mapping[str, Any]) -> tuple[str, str]:
    """Return model type and template of a model or an adapter, from what training wrote about it.

    The source of a chat template has the arguments of the training as defaults; it is empty for a
    template of 2023.
    """
    return str(card.get("model_type")), str((card.get("template") or {}).get("source", ""))


def served_template(directory: Path, model_type: str) -> tuple[str, str]:
    """Return model type and template that `open_served_tokenizer` applies, likewise.

    Raises:
        UserError: The tokenizer cannot be used.
    """
    from ochat_ray.tokenization.chat_tokenizer import own_template, settings_of

    if model_type != CHAT:
        return model_type, ""
    return CHAT, settings_of(str(directory), own_template(str(directory)), {}).source


def served_name(place: str) -> str:
    """Return the name of a model by its place: the directory, or the run whose model it is."""
    parts = [part for part in place.rstrip("/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]
