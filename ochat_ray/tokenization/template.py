"""Conversation template: convert turns to token ids and loss weights.

This is the only implementation. The data job, the server and the evaluation all call `encode`, so a
served model reads the ids it was trained on.

Source: OpenChat as released in July 2023 (`ochat/config/model_config.py` there), extended by system
messages, which that release dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT
from ochat_ray.schema import Turn, turn_of
from ochat_ray.tokenization.messages import Chat
from ochat_ray.tokenization.segment_marks import BORDER, VOID
from ochat_ray.tokenization.tokenizer import END_OF_TURN, encode_texts, end_of_turn_id

ANY_TURN = Turn | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Template of one model type.

    A turn is prefix + text + END_OF_TURN. A system turn has no prefix, as in OpenChat's later
    releases. If `bos` is true, the conversation starts with the tokenizer's BOS token.
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
    """Return the template of a model type.

    Raises:
        UserError: The model type is unknown.
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
    condition: str = "",
    add_generation_prompt: bool = False,
) -> tuple[list[int], list[float]]:
    """Encode one conversation as token ids and loss weights, two lists of the same length.

    BOS and prefixes have weight 0. A turn's text and its end-of-turn token have the turn's weight:
    1 for an assistant turn and 0 for others, unless the turn gives its own. Prefix and text are
    tokenized separately and as text only, so a special token that a person typed stays text.
    Nothing is truncated.

    Args:
        turns: `Turn`s, or mappings with the keys "role", "text" and optionally "weight", as stored
            in
            the tables.
        model_type: A key of `TEMPLATES`; or "chat", the template of a tokenizer that
            `load_chat_tokenizer` opened. That writes no weights, which `supervise` gives.
        tokenizer: A transformers tokenizer that has the end-of-turn token.
        condition: Word before every role prefix, as in C-RLFT: "GPT4" gives "GPT4 Human: ".
        add_generation_prompt: Whether to append the assistant's prefix, which the model completes.

    Raises:
        UserError: Unknown model type or role, or a tokenizer without the end-of-turn token.
        TemplateError: The model's own template refuses the conversation.
    """
    if model_type == CHAT:
        chat = Chat(tuple(map(_turn, turns)))
        ids = tokenizer.chat.ids(chat, add_generation_prompt=add_generation_prompt)
        return ids, [0.0] * len(ids)
    return encode_batch(
        [list(turns)],
        model_type,
        tokenizer,
        conditions=[condition],
        add_generation_prompt=add_generation_prompt,
    )[0]


def encode_batch(
    conversations: Sequence[Sequence[ANY_TURN]],
    model_type: str,
    tokenizer: Any,
    *,
    conditions: Sequence[str] | None = None,
    add_generation_prompt: bool = False,
) -> list[tuple[list[int], list[float]]]:
    """Encode many conversations, each with its condition, in one call to the tokenizer."""
    template = template_for(model_type)
    end_of_turn = end_of_turn_id(tokenizer)
    bos = [tokenizer.bos_token_id] if template.bos else []
    if None in bos:
        raise UserError(f"model type {model_type!r} needs a tokenizer with a BOS token")
    if conditions is None:
        conditions = [""] * len(conversations)

    flat = [_turn(turn) for turns in conversations for turn in turns]
    for role in {turn.role for turn in flat}:
        if role not in template.prefixes and role != "system":
            raise UserError(f"unknown role {role!r}; roles are system, user and assistant")
    keys = [(condition, role) for condition in set(conditions) for role in template.prefixes]
    prefix_texts = [_prefix(template, role, condition) for condition, role in keys]
    texts = encode_texts([*prefix_texts, *(turn.text for turn in flat)], tokenizer)
    prefixes = dict(zip(keys, texts, strict=False))
    segments = zip(flat, texts[len(keys) :], strict=True)

    encoded = []
    for turns, condition in zip(conversations, conditions, strict=True):
        ids, weights = list(bos), [0.0] * len(bos)
        for _ in turns:
            turn, text = next(segments)
            prefix = prefixes.get((condition, turn.role), [])
            ids += prefix + text + [end_of_turn]
            weights += [0.0] * len(prefix)
            weights += [turn.loss_weight] * (len(text) + 1)
        if add_generation_prompt:
            prefix = prefixes[condition, "assistant"]
            ids += prefix
            weights += [0.0] * len(prefix)
        encoded.append((ids, weights))
    return encoded


def check_template(model_type: str, tokenizer: Any, conditions: Iterable[str] = ()) -> None:
    """Encode a short conversation of every role, with each condition and without.

    Raises:
        UserError: The tokenizer cannot represent the template: it has no BOS token, no end-of-turn
            token, or no tokens for a role prefix.
    """
    template = template_for(model_type)
    end_of_turn = end_of_turn_id(tokenizer)
    probe = [Turn(role=role, text="a") for role in ("system", "user", "assistant")]
    for condition in dict.fromkeys(["", *conditions]):
        ids, weights = encode(probe, model_type, tokenizer, condition=condition)
        prefixes = [_prefix(template, role, condition) for role in template.prefixes]
        segments = encode_texts([*prefixes, "a"], tokenizer)
        for text, segment in zip(prefixes, segments, strict=False):
            if not segment or getattr(tokenizer, "unk_token_id", None) in segment:
                raise UserError(
                    f"the tokenizer has no tokens for {text!r}, a role prefix of model type "
                    f"{model_type!r}; choose another tokenizer"
                    + (", or another word for --conditions" if condition else "")
                )
        if len(ids) != len(weights) or ids.count(end_of_turn) != len(probe):
            raise UserError(
                f"the tokenizer writes its end-of-turn token {ids.count(end_of_turn)} times in "
                f"{len(probe)} turns; model type {model_type!r} cannot be written with it"
            )


def chat_template(model_type: str) -> str:
    """Return a Jinja chat template of plain text.

    A message has a role and a string content; the variable `condition` is that of `encode`. A
    prefix and the text after it are tokenized together, and the name of a special token in a
    message is that token: see `exact_chat_template`.
    """
    return _jinja(model_type, inert="", border="", void="")


def exact_chat_template(model_type: str, special_tokens: Iterable[str] = ()) -> str:
    """Return a Jinja chat template with `segment_marks`, which gives the ids of `encode`.

    Use `exported_tokenizer.export_tokenizer`, whose tokenizer acts on the marks. Names of special
    tokens in a content stay text, and marks in it are removed.
    """
    names = ", ".join(map(_literal, special_tokens))
    inert = _INERT.replace("SPECIAL_TOKENS", names)
    return _jinja(model_type, inert=inert, border=BORDER, void=VOID)


def _jinja(model_type: str, *, inert: str, border: str, void: str) -> str:
    template = template_for(model_type)
    text = "inert({})".format if inert else "{}".format
    content = text("message['content']")
    branches = "".join(
        f"{{%- elif message['role'] == '{role}' -%}}"
        f"{{%- set before = opening ~ '{prefix}{border}' -%}}"
        for role, prefix in template.prefixes.items()
    )
    return (
        inert
        + f"{{%- set opening = {text('condition')} ~ ' ' if condition else '' -%}}\n"
        + ("{{- bos_token -}}\n" if template.bos else "")
        + "{%- for message in messages -%}\n"
        + f"{{%- if message['role'] == 'system' -%}}{{%- set before = '{void}' -%}}"
        + branches
        + "{%- else -%}{{- raise_exception('unknown role ' ~ message['role']"
        + " ~ '; roles are system, user and assistant') -}}{%- endif -%}\n"
        + "{%- if message['content'] is not string -%}"
        + "{{- raise_exception('a message needs a content that is a string') -}}{%- endif -%}\n"
        + f"{{{{- before ~ {content} ~ '{void}{END_OF_TURN}' -}}}}\n"
        + "{%- endfor -%}\n"
        + "{%- if add_generation_prompt -%}{{- opening ~ '"
        + template.prefixes["assistant"]
        + "' -}}{%- endif -%}\n"
    )


# One mark after a name's first character and one after its last: wherever the name occurred, and
# however its copies overlapped, no complete name remains.
_INERT = f"""\
{{#- tokenizer.json takes out two marks: U+FDD0 parts a prefix from the text after it, U+FDD1 keeps
the name of a special token in a text from being the token. Those in a message are left out. -#}}
{{%- set special_tokens = [SPECIAL_TOKENS] -%}}
{{%- macro inert(text) -%}}
{{%- set found = namespace(text=text | replace('{BORDER}', '') | replace('{VOID}', '')) -%}}
{{%- for name in special_tokens -%}}
{{%- set marked = name[:1] ~ '{VOID}' ~ name[1:] ~ '{VOID}' -%}}
{{%- set found.text = found.text | replace(name, marked) -%}}
{{%- endfor -%}}
{{{{- found.text -}}}}
{{%- endmacro -%}}
"""


def _literal(text: str) -> str:
    """Return the text as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _prefix(template: Template, role: str, condition: str) -> str:
    prefix = template.prefixes[role]
    return f"{condition} {prefix}" if condition else prefix


def _turn(turn: ANY_TURN) -> Turn:
    if isinstance(turn, Turn):
        return turn
    return turn_of(turn)
