"""The conversation template: turns to token ids and loss weights.

The only copy. The data job, the server and the evaluation all call `encode`, so a served
model reads the ids it was trained on.

Source: OpenChat as released in July 2023 (`ochat/config/model_config.py` there), plus a place
for system messages, which that release dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.schema import Turn
from ochat_ray.tokenizer import END_OF_TURN, encode_texts, end_of_turn_id

ANY_TURN = Turn | Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """How one model type writes a conversation.

    A turn is prefix + text + END_OF_TURN. A system turn has no prefix, as in OpenChat's later
    releases; `bos` says whether the tokenizer's BOS token opens the conversation.
    """

    bos: bool
    prefixes: Mapping[str, str]


_OPENCHAT = Template(bos=True, prefixes={"user": "Human: ", "assistant": "Assistant: "})
_OPENCODER = Template(bos=False, prefixes={"user": "User:", "assistant": "Assistant:"})

TEMPLATES: Mapping[str, Template] = {
    "openchat": _OPENCHAT,
    "openchat_8192": _OPENCHAT,
    "opencoder": _OPENCODER,
}


def template_for(model_type: str) -> Template:
    """The template of a model type.

    Raises:
        UserError: there is no such model type.
    """
    try:
        return TEMPLATES[model_type]
    except KeyError:
        raise UserError(
            f"unknown model type {model_type!r}; choose one of {', '.join(TEMPLATES)}"
        ) from None


def encode(
    turns: Iterable[ANY_TURN],
    model_type: str,
    tokenizer: Any,
    *,
    add_generation_prompt: bool = False,
) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of one conversation; two lists of the same length.

    BOS, prefixes and all of a system or user turn weigh 0; an assistant turn's text and its
    end-of-turn token weigh 1. Prefix and text are tokenised apart and as text only: a special
    token that a person typed stays text. Nothing is truncated here.

    Args:
        turns: `Turn`s, or mappings with the keys "role" and "text" as the tables hold them.
        model_type: a key of `TEMPLATES`.
        tokenizer: a transformers tokenizer that has the end-of-turn token.
        add_generation_prompt: end with the assistant's prefix, for the model to go on.

    Raises:
        UserError: unknown model type or role, or a tokenizer without the end-of-turn token.
    """
    return encode_batch(
        [list(turns)], model_type, tokenizer, add_generation_prompt=add_generation_prompt
    )[0]


def encode_batch(
    conversations: Sequence[Sequence[ANY_TURN]],
    model_type: str,
    tokenizer: Any,
    *,
    add_generation_prompt: bool = False,
) -> list[tuple[list[int], list[float]]]:
    """`encode` for many conversations with one call to the tokenizer."""
    template = template_for(model_type)
    end_of_turn = end_of_turn_id(tokenizer)
    bos = [tokenizer.bos_token_id] if template.bos else []
    if None in bos:
        raise UserError(f"model type {model_type!r} needs a tokenizer with a BOS token")

    flat = [_role_and_text(turn) for turns in conversations for turn in turns]
    for role, _ in flat:
        if role not in template.prefixes and role != "system":
            raise UserError(f"unknown role {role!r}; roles are system, user and assistant")
    texts = encode_texts([*template.prefixes.values(), *(text for _, text in flat)], tokenizer)
    prefixes = {"system": [], **dict(zip(template.prefixes, texts, strict=False))}
    segments = zip((role for role, _ in flat), texts[len(template.prefixes) :], strict=True)

    encoded = []
    for turns in conversations:
        ids, weights = list(bos), [0.0] * len(bos)
        for _ in turns:
            role, text = next(segments)
            ids += prefixes[role] + text + [end_of_turn]
            weights += [0.0] * len(prefixes[role])
            weights += [1.0 if role == "assistant" else 0.0] * (len(text) + 1)
        if add_generation_prompt:
            ids += prefixes["assistant"]
            weights += [0.0] * len(prefixes["assistant"])
        encoded.append((ids, weights))
    return encoded


def chat_template(model_type: str) -> str:
    """A Jinja chat template that writes the same text as `encode`, for other programs.

    Such programs tokenise prefix and text as one string; a byte-level BPE tokenizer may then
    merge the blank of "Human: " into the first word. Our own server calls `encode` instead.
    """
    template = template_for(model_type)
    branches = "".join(
        f"{{% {'if' if i == 0 else 'elif'} message['role'] == '{role}' %}}{{{{ '{prefix}' }}}}"
        for i, (role, prefix) in enumerate(template.prefixes.items())
    )
    return (
        ("{{ bos_token }}" if template.bos else "")
        + "{% for message in messages %}"
        + branches
        + "{% endif %}{{ message['content'] + '"
        + END_OF_TURN
        + "' }}{% endfor %}{% if add_generation_prompt %}{{ '"
        + template.prefixes["assistant"]
        + "' }}{% endif %}"
    )


def _role_and_text(turn: ANY_TURN) -> tuple[str, str]:
    if isinstance(turn, Turn):
        return turn.role, turn.text
    return turn["role"], turn["text"]
