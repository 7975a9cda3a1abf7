"""Open a model's tokenizer with its own chat template, and check that answers can be learnt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError, one_line
from ochat_ray.schema import ToolCall, Turn
from ochat_ray.tokenization.chat_template import ChatTemplate, TemplateError
from ochat_ray.tokenization.messages import Chat
from ochat_ray.tokenization.supervision import supervise
from ochat_ray.tokenization.tokenizer import find_file, load_tokenizer, open_tokenizer, probe

CLOCK = "2024-07-26"
"""Date in training data for a template that writes the current one: data must not depend on the day
of its preparation. It is the date that Llama 3 writes where there is no clock."""


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """Chat template of a run: its Jinja source, its arguments, and the date that it reads."""

    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    today: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that the ids depend on, besides the tokenizer."""
        written = json.dumps([self.source, dict(self.arguments), self.today], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> TemplateSettings | None:
        """Return the settings of a data or model manifest; None for a template of 2023."""
        found = manifest.get("template")
        return cls(**found) if found else None


def settings_of(path: str, source: str, arguments: Mapping[str, Any]) -> TemplateSettings:
    """Return the settings of a template for the tokenizer at `path`, the same after an export.

    In an exported tokenizer the end of turn is `eos_token`, and other programs render its template
    without arguments. So the arguments become the template's defaults, and it sets `eos_token` to
    the base's if it reads it and the base's is another token, or none.

    Raises:
        UserError: No answer can be learnt with this template.
    """
    today = CLOCK if "strftime_now" in source else None
    settings = TemplateSettings(source=source, arguments=dict(arguments), today=today)
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}\n"
        for name, value in settings.arguments.items()
    ]
    if re.search(r"\beos_token\b", source):
        of_base = open_tokenizer(path).eos_token
        if load_chat_tokenizer(path, settings).eos_token != of_base:
            value = "no_eos_token" if of_base is None else _literal(of_base)  # an undefined name
            lines.append(f"{{% set eos_token = {value} %}}\n")
    added = "".join(line for line in lines if line not in source)
    return replace(settings, source=added + source)


def _literal(value: Any) -> str:
    """Return a JSON value as a literal of Jinja."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def load_chat_tokenizer(path: str, settings: TemplateSettings | None = None) -> Any:
    """Return a probed tokenizer with `chat`, its ChatTemplate, and the end of turn as `eos_token`.

    Args:
        path: A Hugging Face directory, its URI, or the name of a Hub repository.
        settings: The template; None: the tokenizer's own, with today's date where it writes one.

    Raises:
        UserError: There is no tokenizer or no template, or no answer can be learnt with it.
    """
    tokenizer = open_tokenizer(path)
    tokenizer.chat_template = settings.source if settings else own_template(path)
    probe(tokenizer, path)
    tokenizer.chat = ChatTemplate(
        tokenizer,
        arguments=settings.arguments if settings else None,
        today=date.fromisoformat(settings.today) if settings and settings.today else None,
    )
    ends = ends_of_turn(tokenizer.chat)
    tokenizer.chat_ends = ends
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    _check_ids(tokenizer, path)
    return tokenizer


def load_tokenizer_of(path: str, manifest: Mapping[str, Any]) -> Any:
    """Return the tokenizer at `path` for the template of a data or model manifest.

    Raises:
        UserError: There is no usable tokenizer.
    """
    settings = TemplateSettings.of_manifest(manifest)
    return load_tokenizer(path) if settings is None else load_chat_tokenizer(path, settings)


def own_template(path: str) -> str:
    """Return the source of the chat template of the tokenizer at `path`.

    Raises:
        UserError: It has none, or several.
    """
    try:
        sources = _own_templates(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"the chat template at {path} cannot be read ({one_line(error)}); fetch it again"
        ) from error
    if len(sources) == 1:
        return next(iter(sources.values()))
    found = f"several chat templates ({', '.join(sources)})" if sources else "no chat template"
    raise UserError(
        f"the tokenizer at {path} has {found}; give one with --template when preparing data: "
        "openchat, opencoder, or a Jinja file; to serve a base, leave one in its directory"
    )


def _own_templates(path: str) -> dict[str, str]:
    """Return the sources of the chat templates from which transformers chooses one, by name."""
    if file := find_file(path, "chat_template.jinja"):
        sources = {"default": file.read_text(encoding="utf-8")}
        # transformers takes it instead for conversations with tools.
        if further := find_file(path, "additional_chat_templates/tool_use.jinja"):
            sources["tool_use"] = further.read_text(encoding="utf-8")
        return sources
    file = find_file(path, "tokenizer_config.json")
    source = json.loads(file.read_bytes()).get("chat_template") if file else None
    if source is None or isinstance(source, str):
        return {} if source is None else {"default": source}
    return {str(one["name"]): str(one["template"]) for one in source}


def read_template(path: str) -> str:
    """Return the source of a chat template in a file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # with Windows' byte order mark, too
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template: cannot read {path}: {error}") from error


def ends_of_turn(template: ChatTemplate) -> tuple[int, ...]:
    """Return the special tokens that end an answer; the first ends an answer of text.

    Another one may end an answer that calls a tool (<|call|> of gpt-oss).

    Raises:
        UserError: The template refuses a question with an answer, does not write the answer after
            its own prompt for one, or ends it with no special token.
    """
    call = ToolCall(id="probeprob", name="probe_call", arguments='{"a": "b"}')
    question = Turn(role="user", text="question")
    tools = json.dumps([{"type": "function", "function": _TOOL}])
    probes = [
        Chat([question, Turn(role="assistant", text="answer")]),
        Chat([question, Turn(role="assistant", text="answer", reasoning="reason")]),
        Chat([question, Turn(role="assistant", text="", tool_calls=(call,))], tools),
    ]
    plain, reasoned, called = supervise(probes, template)
    if isinstance(plain, TemplateError):
        raise UserError(f"the chat template refuses a question with an answer: {plain}")
    found = [f.samples for f in (plain, reasoned, called) if not isinstance(f, TemplateError)]
    samples = [sample for of_probe in found for sample in of_probe]
    if not any(found[:2]):
        prompt = template.render(Chat([question]), add_generation_prompt=True).text
        outside = (
            ", or not in its {% generation %} block, which must not be within a macro, a set or a "
            "filter block"
            if template.has_generation_blocks
            else ""
        )
        raise UserError(
            f"the chat template does not write an answer after its own prompt for one, "
            f"{prompt[-60:]!r}{outside}, so none can be learnt; give another with --template "
            "FILE.jinja"
        )
    written = " ".join(template.decode(sample.ids) for sample in samples).casefold()
    if not all(turn.text in written for turn in probes[0].turns):
        raise UserError(
            "the chat template does not write the text of a message, perhaps since it expects a "
            "list of parts; give another with --template FILE.jinja"
        )
    ends = []
    for sample in samples:
        supervised = [id for id, w in zip(sample.ids, sample.weights, strict=True) if w]
        special = [id for id in supervised if template.is_special(id)]
        after = supervised[::-1].index(special[-1]) if special else 0
        if special and not template.shows_text(supervised[len(supervised) - after :]):
            ends.append(special[-1])
        elif not ends:  # an answer of text; one that calls a tool may have no end of its own
            raise UserError(
                f"the chat template ends an answer with {template.decode(supervised)[-40:]!r}, "
                "which is no special token of the tokenizer: the model could not learn where an "
                "answer ends; give another template with --template FILE.jinja"
            )
    return tuple(dict.fromkeys(ends))


_TOOL = {
    "name": "probe_call",
    "description": "probe",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}


def _check_ids(tokenizer: Any, path: str) -> None:
    """Check that a conversation has the ids that transformers gives it.

    Raises:
        UserError: It has others.
    """
    turns = [
        Turn(role="user", text="Hi,  there!\n\n  é 你好"),
        Turn(role="assistant", text="Yes.\n"),
    ]
    ours = tokenizer.chat.render(Chat(turns))
    plain = tokenizer(ours.text, add_special_tokens=False)["input_ids"]
    if tokenizer.chat.encode([ours])[0].ids != plain:
        raise UserError(
            f"the tokenizer at {path} gives other ids where typed names of special tokens are kept "
            "as text; use the model's original tokenizer.json"
        )
