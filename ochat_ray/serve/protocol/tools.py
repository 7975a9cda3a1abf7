"""Tool calls in the text that the model reads and writes.

A template without a syntax for tools of its own uses that of Hermes 2 Pro and Qwen 2.5: the tools
are JSON in a system message, a call is

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bonn"}}
    </tool_call>

and its result is a user's turn in `<tool_response>`. Every call is constrained: it has the name of
a tool, and arguments that match the tool's JSON Schema.

Source: OpenAI's API reference for chat/completions; the chat templates of
NousResearch/Hermes-2-Pro-Llama-3-8B and Qwen/Qwen2.5-7B-Instruct.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"

MOST_TOOLS = 128
"""Maximum number of tools per request; OpenAI's limit."""

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Parameters of a tool that gives none."""

_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
_END = "}\n" + CLOSE
_ANY_TEXT = r"/(.|\n)*/"
_SOME_TEXT = r"/(.|\n)+/"
TEXT_TOKENS = "TEXT_TOKENS"
_WHITESPACE = {
    "whitespace_flexible": False,  # otherwise it may be repeated without an end
    "item_separator": ", ",
    "key_separator": ": ",
}
"""As `json.dumps` writes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """Function that the model may call. `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Call of a tool. `arguments` is JSON, and cut off if the answer reached its limit."""

    name: str
    arguments: str


def system_text(tools: Sequence[Tool]) -> str:
    """Return the system message that describes the tools and the syntax of a call."""
    listed = "\n".join(
        json.dumps(
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            },
            ensure_ascii=False,
        )
        for tool in tools
    )
    example = _call_text('"NAME"', "{...}")
    return (
        f"These functions can be called:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, write its name and its arguments as JSON:\n{example}"
    )


def calls_text(content: str, calls: Iterable[Call]) -> str:
    """Return the text of an assistant's turn with these calls, as the model writes it."""
    written = [_call_text(json.dumps(call.name), call.arguments) for call in calls]
    return "\n".join([*([content] if content else []), *written])


def results_text(results: Iterable[str]) -> str:
    """Return the text of a user's turn with the results of an assistant's calls, in order."""
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def _call_text(name: str, arguments: str) -> str:
    return f'{OPEN}\n{{"name": {name}, "arguments": {arguments}}}\n{CLOSE}'


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRules:
    """Rules for the calls in an answer.

    Attributes:
        tools: Those that may be called; at least one.
        required: Whether the answer consists of calls; otherwise text may surround them.
        parallel: Whether there may be several calls.
        answer: JSON Schema, as JSON, of an answer without calls, which are then not surrounded by
            text; None allows any text.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True
    answer: str | None = None

    @property
    def or_json(self) -> bool:
        """True if the answer is either calls or JSON."""
        return self.answer is not None and not self.required

    def reader(self) -> CallReader:
        """Return a reader of one answer."""
        return CallReader(or_json=self.or_json)

    def lark(self, *, tokens: bool = False) -> str:
        """Return the answers as a grammar in llguidance's Lark syntax.

        With `tokens` the marks around a call are single tokens of the model, not text; the names of
        further tokens that may stand in a text replace `TEXT_TOKENS`.
        """
        opened = OPEN if tokens else _quoted(OPEN)
        ended = f"{_quoted(_END.removesuffix(CLOSE))} {CLOSE}" if tokens else _quoted(_END)
        rules = [
            f"call_{number}: {_quoted(_head(tool.name))} %json {_schema(tool.parameters)} {ended}"
            for number, tool in enumerate(self.tools)
        ]
        one = "(" + " | ".join(f"call_{number}" for number in range(len(self.tools))) + ")"
        if self.required or self.answer is not None:
            first = f"{opened} {one}"
            again = f"{_quoted(chr(10))} {OPEN}" if tokens else _quoted(chr(10) + OPEN)
            start = f"{first} ({again} {one})*" if self.parallel else first
            if self.or_json:
                start += " | answer"
                rules.append(f"answer: %json {_schema(self._answer)}")
        elif tokens:
            start = f"(text {OPEN} {one})* text" if self.parallel else f"text | text {OPEN} {one}"
            rules += [f"text: (TEXT | {TEXT_TOKENS})*", f"TEXT: {_SOME_TEXT}"]
        else:
            start = f"(open {one})* end" if self.parallel else f"end | open {one}"
            rules += ["end: TEXT", f"TEXT: {_ANY_TEXT}", f"open[lazy]: TEXT {_quoted(OPEN)}"]
        return "\n".join(["%llguidance {}", f"start: {start}", *rules])

    def structural_tag(self) -> str:
        """Return the answers as a structural tag of xgrammar, as JSON, for vLLM."""
        tags = [
            {
                "type": "tag",
                "begin": OPEN + _head(tool.name),
                "content": {
                    "type": "json_schema",
                    "json_schema": tool.parameters,
                    "max_whitespace_cnt": 1,
                },
                "end": _END,
            }
            for tool in self.tools
        ]
        only_calls = self.required or self.answer is not None
        form = {"tags": tags, "at_least_one": only_calls, "stop_after_first": not self.parallel}
        if only_calls:
            form |= {"type": "tags_with_separator", "separator": "\n"}
        else:
            form |= {"type": "triggered_tags", "triggers": [OPEN]}
        if self.or_json:
            answer = {
                "type": "json_schema",
                "json_schema": self._answer,
                "max_whitespace_cnt": 1,
            }
            form = {"type": "or", "elements": [form, answer]}
        return json.dumps({"type": "structural_tag", "format": form})

    @property
    def _answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.answer or "{}")
        return found


def _head(name: str) -> str:
    return f'\n{{"name": {json.dumps(name)}, "arguments": '


def _schema(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": _WHITESPACE})


def _quoted(text: str) -> str:
    return json.dumps(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Next part of an answer: text, or, for call number `call`, its name or more arguments."""

    text: str
    call: int | None = None
    is_name: bool = False


class CallReader:
    """Divide the text of an answer, as it arrives, into content and calls.

    Whitespace before a call, and after the last one, is left out. The text follows `CallRules`, so
    a call has a name, and its end is found without parsing JSON. If `or_json` is true, text that
    does not begin with a call is JSON without calls, whose strings may contain anything.
    """

    def __init__(self, *, or_json: bool = False) -> None:
        self.calls = 0
        """Number of calls so far."""
        self._held = ""
        self._undecided, self._is_json = or_json, False
        self._in_head = self._in_arguments = False

    @property
    def is_open(self) -> bool:
        """True within a call."""
        return self._in_head or self._in_arguments

    def push(self, text: str) -> list[Part]:
        """Return the parts that are complete with more text."""
        self._held += text
        parts: list[Part] = []
        if self._undecided:
            begins = OPEN.startswith(self._held[: len(OPEN)])
            self._undecided = begins and len(self._held) < len(OPEN)
            self._is_json = not begins
            if self._undecided:
                return []
        if self._is_json:
            held, self._held = self._held, ""
            return [Part(text=held)] if held else []
        while True:
            before = self._held
            if self._in_arguments:
                self._read_arguments(parts)
            elif self._in_head:
                self._read_head(parts)
            else:
                self._read_content(parts)
            if self._held == before:
                return parts

    def flush(self) -> list[Part]:
        """Return what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        if self._in_head or (self.calls and not self._in_arguments and not held.strip()):
            return []
        call = self.calls - 1 if self._in_arguments else None
        return [Part(text=held, call=call)] if held else []

    def _read_content(self, parts: list[Part]) -> None:
        content, opened, rest = self._held.partition(OPEN)
        if opened:
            self._in_head, self._held = True, rest
            content = content.rstrip()
        else:
            # What may be the beginning of a call, and whitespace before it, is held back.
            safe = len(content) - _overlap(content, OPEN)
            safe = len(content[:safe].rstrip())
            content, self._held = content[:safe], content[safe:]
        if content:
            parts.append(Part(text=content))

    def _read_head(self, parts: list[Part]) -> None:
        if found := _HEAD.match(self._held):
            parts.append(Part(text=json.loads(found[1]), call=self.calls, is_name=True))
            self.calls += 1
            self._in_head, self._in_arguments = False, True
            self._held = self._held[found.end() :]

    def _read_arguments(self, parts: list[Part]) -> None:
        arguments, ended, rest = self._held.partition(_END)
        if ended:
            self._in_arguments, self._held = False, rest
        else:
            safe = len(arguments) - _overlap(arguments, _END)
            arguments, self._held = arguments[:safe], arguments[safe:]
        if arguments:
            parts.append(Part(text=arguments, call=self.calls - 1))


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
