"""A model's own chat template: render messages with it and convert the text to token ids.

Jinja, its sandbox and the variables are those of transformers, so the ids are those that
`tokenizer.apply_chat_template` gives, with one exception: the name of a special token that somebody
typed stays text. In a message, such a name gets a mark, a noncharacter that the conversation does
not contain. A copy of the tokenizer matches added tokens first and then removes the mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any

from ochat_ray.errors import UserError, one_line
from ochat_ray.schema import ToolCall, Turn
from ochat_ray.tokenization.messages import (
    CALL_STYLES,
    INLINE,
    CallStyle,
    Chat,
    has_deep_json,
    messages_of,
    text_of,
)

MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Unicode noncharacters, of which one marks names of special tokens in a conversation."""

RESERVED = frozenset(
    "messages tools documents add_generation_prompt continue_final_message strftime_now "
    "bos_token eos_token pad_token unk_token raise_exception "
    "conversations chat_template return_assistant_tokens_mask".split()
)
"""Variables of a template, and transformers' own names, that no argument may replace."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARKER = re.compile(r"<\|[^\s<>|]+\|>|<｜[^\s<>]+｜>")
"""Names that look like a special token's, also where the tokenizer does not say that they are."""


def _called(id: str) -> Chat:
    """Return a conversation with a call, to find out how a template wants it."""
    call = ToolCall(id=id, name="probe_call", arguments='{"probe_key": "probe_value"}')
    turns = [
        Turn(role="user", text="a"),
        Turn(role="assistant", text="", tool_calls=(call,)),
        Turn(role="tool", text="b", tool_call_id=id),
    ]
    return Chat(turns)


_CALLED = _called("probeprob")  # nine characters, which each template accepts
_CALLED_BY_OPENAI = _called("call_0123456789abcdefghijklmn")


_REFUSALS = (ValueError, TypeError, AttributeError, ArithmeticError, LookupError)
"""Errors of filters and methods that a template applies to a value of another type."""


class TemplateError(Exception):
    """The template refuses a conversation; the text is the template's own, in one line."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """Text of a rendered conversation.

    `mark` is the character that keeps typed names of special tokens from being tokens. `spans` are
    the positions of the `{% generation %}` blocks in `text`; None if the template has none.
    """

    text: str
    mark: str
    spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of a rendering, and the span of each token in the rendering's text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ChatTemplate:
    """The chat template of a tokenizer, with fixed arguments.

    Args:
        tokenizer: A fast tokenizer of transformers, with a `chat_template`.
        arguments: Variables of the template, such as {"enable_thinking": False}.
        today: Date for templates that write one; None: the current date at each call.

    Raises:
        UserError: An argument is unknown to the template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        arguments: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        source: str = tokenizer.chat_template
        self.source = source
        self.reads_clock = "strftime_now" in source
        self.has_generation_blocks = bool(_GENERATION.search(source))
        self._variables = dict(tokenizer.special_tokens_map)
        self.arguments = self.checked_arguments(arguments or {})
        self._today = today
        added = tokenizer.added_tokens_decoder
        self.control_ids = frozenset(
            id for id, token in added.items() if self._is_control(token.content, token.special)
        )
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        names = sorted({added[id].content for id in self.control_ids}, key=len, reverse=True)
        # A name that begins with a letter is left out: "user" would mark each text that ends in u.
        self._beginnings = frozenset(
            name[:size] for name in names if not name[0].isalnum() for size in range(1, len(name))
        )
        self._longest_beginning = max(map(len, self._beginnings), default=0)
        # Every position where a name begins, also within another name.
        alternatives = "|".join(map(re.escape, names))
        self._names = re.compile(f"(?=(?:{alternatives}))(.)", re.DOTALL) if names else None
        self._written = tokenizer.backend_tokenizer.to_str()
        self._backends: dict[str, Any] = {}

    def checked_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments that the template reads.

        Raises:
            UserError: The template does not read one of them, or it is not to be replaced.
        """
        for name in arguments:
            if name in RESERVED or name in self._variables:
                raise UserError(f"the template's variable {name} cannot be set")
            if not name.isidentifier() or not re.search(rf"\b{name}\b", self.source):
                raise UserError(f"the chat template has no variable {name!r}")
        return dict(arguments)

    def render(
        self,
        chat: Chat,
        *,
        add_generation_prompt: bool = False,
        continue_final: bool = False,
        arguments: Mapping[str, Any] | None = None,
        mark: str | None = None,
    ) -> Rendering:
        """Render a conversation; `mark` is one of `mark_for` a longer conversation.

        Raises:
            TemplateError: The template refuses the conversation, or it has each of `MARKS`.
        """
        try:
            return self._render(
                chat,
                self._call_style,
                mark or self.mark_for(chat),
                {
                    "add_generation_prompt": add_generation_prompt,
                    "continue_final_message": continue_final,
                    **self.arguments,
                    **(arguments or {}),
                },
            )
        except RecursionError:
            raise TemplateError("the template recurses without end") from None

    def _render(
        self, chat: Chat, style: CallStyle, mark: str, options: Mapping[str, Any] | None = None
    ) -> Rendering:
        from jinja2.exceptions import TemplateError as JinjaError
        from transformers.utils.chat_template_utils import render_jinja_template

        messages, tools = messages_of(chat, self.source, style)
        messages = [self._message(message, mark) for message in messages]
        try:
            rendered: Any = render_jinja_template(  # annotated as a text in transformers
                [messages],
                tools=self._inert(tools, mark) or None,
                chat_template=self.source,
                return_assistant_tokens_mask=self.has_generation_blocks,
                **self._variables,
                **self._clock(),
                **(options or {}),
            )
        except (JinjaError, *_REFUSALS) as error:
            raise TemplateError(one_line(error, 300)) from None
        (text,), spans = rendered
        found = tuple((a, b) for a, b in spans[0]) if self.has_generation_blocks else None
        return _with_unescaped_mark(Rendering(text, mark, found))

    def mark_for(self, chat: Chat) -> str:
        """Return a noncharacter that the conversation does not contain.

        Raises:
            TemplateError: It contains each of `MARKS`, an unpaired surrogate, or too deep JSON.
        """
        if has_deep_json(chat):
            raise TemplateError("tools or arguments are nested too deeply")
        written = text_of(chat)
        try:
            written.encode()
        except UnicodeEncodeError:
            raise TemplateError("an unpaired surrogate, which UTF-8 cannot represent") from None
        lowercase = written.lower()
        for mark in MARKS:
            if mark not in written and _escape(mark) not in lowercase:
                return mark
        raise TemplateError("the conversation has each of the noncharacters U+FDD0 to U+FDEF")

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoding]:
        """Convert rendered conversations to token ids."""
        encodings: list[Encoding | None] = [None] * len(renderings)
        for mark in dict.fromkeys(rendering.mark for rendering in renderings):
            places = [n for n, rendering in enumerate(renderings) if rendering.mark == mark]
            found = self._backend(mark).encode_batch(
                [renderings[n].text for n in places], add_special_tokens=False
            )
            for place, encoding in zip(places, found, strict=True):
                encodings[place] = Encoding(encoding.ids, encoding.offsets)
        return [encoding for encoding in encodings if encoding is not None]

    def ids(self, chat: Chat, *, add_generation_prompt: bool = False, **options: Any) -> list[int]:
        """Return the token ids of a conversation; for arguments and errors see `render`."""
        rendering = self.render(chat, add_generation_prompt=add_generation_prompt, **options)
        return self.encode([rendering])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with the names of special tokens."""
        return str(self._backend(MARKS[0]).decode(list(ids), skip_special_tokens=False))

    def has_name(self, text: str) -> bool:
        """Return whether a text has the name of a special token, which stays text."""
        return self._names is not None and self._names.search(text) is not None

    def shows_text(self, ids: Sequence[int]) -> bool:
        """Return whether ids have visible text."""
        return bool(ids) and bool(self.decode(ids).strip())

    def is_special(self, id: int) -> bool:
        """Return whether an id is a special token of the tokenizer."""
        return id in self._special_ids

    @cached_property
    def writes_hermes_calls(self) -> bool:
        """True if the template writes calls as Hermes 2 and Qwen 2.5 do: JSON in <tool_call>."""
        expected = (
            '<tool_call>\n{"name": "probe_call", "arguments": {"probe_key": "probe_value"}}\n'
            "</tool_call>"
        )
        try:
            return expected in self._render(_CALLED, self._call_style, MARKS[0]).text
        except TemplateError:
            return False

    @cached_property
    def _call_style(self) -> CallStyle:
        """First style of calls in which the template writes one, and as JSON."""
        for style in CALL_STYLES:
            try:
                written = self._render(_CALLED, style, MARKS[0]).text
            except TemplateError:
                continue
            escaped = r"\"probe_key" in written or "{'probe_key" in written
            if "probe_call" in written and "probe_value" in written and not escaped:
                return replace(style, short_ids=self._refuses(_CALLED_BY_OPENAI, style))
        return CallStyle()

    def _refuses(self, chat: Chat, style: CallStyle) -> bool:
        try:
            self._render(chat, style, MARKS[0])
        except TemplateError:
            return True
        return False

    def _is_control(self, name: str, special: bool) -> bool:
        """Return whether an added token has a meaning beyond its text.

        That is a special token, a token that the template itself writes, and one that looks like a
        special token's name. Others, such as runs of spaces or HTML tags, are ordinary text.
        """
        if len(name) < 2 or not name.strip():
            return False
        return special or name in self.source or bool(_MARKER.fullmatch(name))

    def _message(self, message: Mapping[str, Any], mark: str) -> dict[str, Any]:
        found = {k: v if k == "role" else self._inert(v, mark) for k, v in message.items()}
        if reasoning := found.pop(INLINE, ""):
            found["content"] = f"<think>\n{reasoning}\n</think>\n\n{found['content']}"
        return found

    def _inert(self, value: Any, mark: str) -> Any:
        """Return a value whose texts have a mark in each name of a control token."""
        if isinstance(value, str):
            return self._inert_text(value, mark)
        if isinstance(value, Mapping):
            return {self._inert(k, mark): self._inert(v, mark) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._inert(item, mark) for item in value]
        return value

    def _inert_text(self, text: str, mark: str) -> str:
        if self._names is None:
            return text
        found = self._names.sub(rf"\1{mark}", text)
        # A template may write the rest of a name after the text, or the next message's text.
        end = len(found.rstrip())
        for start in range(end - 1, max(end - self._longest_beginning, 0) - 1, -1):
            if found[start:end].replace(mark, "") in self._beginnings:
                found = f"{found[: start + 1]}{mark}{found[start + 1 :]}"
                end += 1
        return found

    def _clock(self) -> dict[str, Any]:
        # A variable of this name hides the function of transformers, which reads the clock.
        if self._today is None or not self.reads_clock:
            return {}
        return {"strftime_now": self._today.strftime}

    def _backend(self, mark: str) -> Any:
        """Return a copy of the tokenizer that removes the mark after it matched added tokens."""
        if mark not in self._backends:
            from tokenizers import Tokenizer

            parsed = json.loads(self._written)
            removal = {"type": "Replace", "pattern": {"String": mark}, "content": ""}
            normalizer = parsed.get("normalizer")
            steps = [removal, normalizer] if normalizer else [removal]
            backend = Tokenizer.from_str(
                json.dumps(
                    {
                        **parsed,
                        "normalizer": {"type": "Sequence", "normalizers": steps},
                        # Matched in the normalized text, they would be found without the mark.
                        "added_tokens": [
                            {**token, "normalized": False}
                            if token["id"] in self.control_ids
                            else token
                            for token in parsed.get("added_tokens", [])
                        ],
                        "truncation": None,
                        "padding": None,
                    }
                )
            )
            backend.encode_special_tokens = False
            self._backends[mark] = backend
        return self._backends[mark]


def _escape(mark: str) -> str:
    return f"u{ord(mark):04x}"


def _with_unescaped_mark(rendering: Rendering) -> Rendering:
    """Restore a mark of which JSON in ASCII or Python's repr has written the escape sequence."""
    text, mark, spans = rendering.text, rendering.mark, rendering.spans
    pattern = re.compile(rf"\\+{_escape(mark)}", re.IGNORECASE)
    found = [match.span() for match in pattern.finditer(text)]
    if not found:
        return rendering

    def moved(position: int) -> int:
        return position - sum(end - start - 1 for start, end in found if end <= position)

    moved_spans = None if spans is None else tuple((moved(a), moved(b)) for a, b in spans)
    return Rendering(pattern.sub(mark, text), mark, moved_spans)
