"""Key names of records, and user-defined alternatives."""

from __future__ import annotations

from collections.abc import Mapping

from ochat_ray.errors import UserError

KEYS: Mapping[str, tuple[str, ...]] = {
    "conversations": (
        *("conversations", "items", "messages", "turns", "conversation", "contents", "dialogue"),
        "data",
    ),
    "role": ("from", "role"),
    "text": ("value", "content", "text", "parts"),
    "weight": ("weight", "loss_weight", "loss_scale"),
    "prompt": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "completion": ("completion", "output", "response", "answer", "chosen"),
    "system": (
        *("system", "system_prompt", "system_message", "system_instruction"),
        "systemInstruction",
    ),
    "condition": ("condition",),
    "id": (
        *("id", "conversation_id", "conversation_hash", "uuid", "prompt_id", "message_tree_id"),
    ),
    "model": ("model",),
    "title": ("title", "topic"),
    "tools": ("tools", "functions"),
}
"""Keys of known formats by logical name, in the order in which they are tried."""


def keys_of(columns: Mapping[str, str], *, tools: bool = False) -> Mapping[str, tuple[str, ...]]:
    """Return KEYS with the user's name for each column tried first.

    Without `tools` the template cannot represent any, and no key has them.
    """
    own = {logical: (name,) for logical, name in columns.items()}
    keys = {logical: (*own.get(logical, ()), *names) for logical, names in KEYS.items()}
    return keys if tools else {**keys, "tools": ()}


def parse_columns(text: str) -> dict[str, str]:
    """Parse `--columns`, "conversations=dialog,role=speaker", into names by logical name.

    Raises:
        UserError: The text is not of this form, names an unknown column, or names one twice.
    """
    columns: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        logical, equals, name = (part.strip() for part in pair.partition("="))
        if not (logical and equals and name):
            raise UserError(
                f"--columns is NAME=COLUMN,NAME=COLUMN; {pair.strip()!r} is not of this form"
            )
        if logical not in KEYS:
            raise UserError(f"--columns: unknown name {logical!r}; names are {', '.join(KEYS)}")
        if logical in columns:
            raise UserError(f"--columns names {logical} twice")
        if name in columns.values():
            raise UserError(f"--columns gives the column {name!r} to two names")
        columns[logical] = name
    return columns
