"""Ollama's Modelfile for a converted model.

Ollama does not apply the Jinja template of a GGUF file: it compares it with those that it knows,
and takes its own version of a similar one, or none (ollama/ollama template/template.go, issue
10222). So the template is translated to Ollama's language where that is possible: a text before and
after each message, by role. The pieces are read off rendered conversations, and the translation
is kept only if it renders further conversations as the original does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

Messages = Sequence[tuple[str, str]]
"""Role and text of each message."""

Render = Callable[[Messages, bool], str]
"""Chat template: messages and whether to write the prompt for an answer, to text.

It raises a ValueError if it refuses the messages.
"""

_ROLES = ("system", "user", "assistant")
_SYSTEM, _USER, _ANSWER = "\ue000S\ue000", "\ue000U\ue000", "\ue000A\ue000"


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Text around messages: `before` and `after` by role, and what begins and ends a prompt.

    A role that the template refuses is missing. `begin` precedes a first message that is no system
    message. If `joins_system`, a system message is the beginning of the user's first one, which
    then has no text before it. If `drops_reasoning`, the template leaves `<think>` of earlier
    answers out, which the pieces do not.
    """

    begin: str
    before: dict[str, str]
    after: dict[str, str]
    answer: str
    joins_system: bool = False
    drops_reasoning: bool = False

    def render(self, messages: Messages) -> str:
        """Return a prompt as Ollama writes it with `ollama_template`."""
        has_system = any(role == "system" for role, _ in messages)
        written = [] if has_system else [self.begin]
        for number, (role, text) in enumerate(messages):
            joined = self.joins_system and has_system and role == "user" and number == 1
            before = "" if joined else self.before[role]
            written.append(f"{before}{text}{self.after[role]}")
        return "".join([*written, self.answer])


def pieces_of(render: Render) -> Pieces | None:
    """Return the pieces of a template; None if it does not consist of such pieces.

    They hold for the conversations of `PROBES` that the template accepts.
    """
    user, answer = ("user", _USER), ("assistant", _ANSWER)
    try:
        short, asked = render([user], False), render([user], True)
        longer = render([user, answer], False)
        again = render([user, answer, user], False)
    except ValueError:
        return None
    if not asked.startswith(short) or not again.startswith(short):
        return None
    head, _, after_user = short.partition(_USER)
    before_answer, _, rest = again[len(short) :].partition(_ANSWER)
    between = rest.partition(_USER)[0]
    # The end of an answer belongs to it, unless the template writes the last answer differently.
    tail = longer.partition(_ANSWER)[2] if again.startswith(longer) else None
    before_user = _common_end(head, between) if tail is None else between[len(tail) :]
    if not head.endswith(before_user):
        return None
    before = {"user": before_user, "assistant": before_answer}
    after = {"user": after_user, "assistant": between.removesuffix(before_user)}
    joins_system = False
    with suppress(ValueError):
        first, _, rest = render([("system", _SYSTEM), user], False).partition(_SYSTEM)
        joins_system = not rest.endswith(f"{before_user}{_USER}{after_user}")
        follows = _USER + after_user if joins_system else f"{before_user}{_USER}{after_user}"
        if not rest.endswith(follows):
            return None
        before["system"], after["system"] = first, rest.removesuffix(follows)
    found = Pieces(
        begin=head.removesuffix(before_user), before=before, after=after,
        answer=asked[len(short) :], joins_system=joins_system,
    )  # fmt: skip
    if not all(_holds(found, messages, render) for messages in PROBES):
        return None
    return replace(found, drops_reasoning=not _holds(found, REASONING, render))


def _common_end(one: str, other: str) -> str:
    """Return the longest text with which both end."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _holds(pieces: Pieces, messages: Messages, render: Render) -> bool:
    try:
        expected = render(messages, True)
    except ValueError:
        return True
    return all(role in pieces.before for role, _ in messages) and (
        pieces.render(messages) == expected
    )


PROBES: tuple[Messages, ...] = (
    (("user", "One?"),),
    (("system", "Be short."), ("user", "One?")),
    (("user", "def f():\n    return {{ 1 }}"), ("assistant", "Yes: \"\"\" \\ {% x %}"),
     ("user", "12 345 é 你好 🙂")),
    (("system", "A\n\nB"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"),
     ("user", "5")),
    (("user", "same"), ("assistant", "same"), ("user", "same"), ("assistant", "same"),
     ("user", "same")),
)  # fmt: skip
"""Conversations on which a translation is checked; whitespace at the ends of texts is not among
them, since Ollama's language cannot remove it as many templates do."""

REASONING: Messages = (
    ("user", "1"),
    ("assistant", "<think>\nwhy\n</think>\n\n2"),
    ("user", "3"),
)


def ollama_template(pieces: Pieces, *, bos: str = "") -> str:
    """Return pieces as a template of Ollama.

    Args:
        pieces: the pieces.
        bos: token that Ollama adds to a prompt by itself, which the template must not repeat.
    """
    begin = pieces.begin.removeprefix(bos)
    before = dict(pieces.before)
    if "system" in before:  # the first message
        before["system"] = before["system"].removeprefix(bos)
    lines = [f"{{{{- if not .System }}}}{_text(begin)}{{{{ end }}}}"] if begin else []
    lines.append("{{- range $i, $_ := .Messages }}")
    for number, role in enumerate(role for role in _ROLES if role in before):
        start = _text(before[role])
        if role == "user" and pieces.joins_system:
            start = f"{{{{ if not (and $.System (eq $i 1)) }}}}{start}{{{{ end }}}}"
        condition = "else if" if number else "if"
        lines.append(
            f'{{{{- {condition} eq .Role "{role}" }}}}{start}{{{{ .Content }}}}'
            f"{_text(pieces.after[role])}"
        )
    answer = json.dumps(pieces.answer, ensure_ascii=False)
    lines += ["{{- end }}", "{{- end }}", f"{{{{- {answer} }}}}"]
    return "\n".join(lines)


def modelfile(
    name: str, stops: Iterable[str], pieces: Pieces | None, *, bos: str = "", dated: bool = False
) -> str:
    """Return a Modelfile that serves the file `name` in its directory.

    Args:
        name: the GGUF file.
        stops: tokens that end an answer.
        pieces: translation of the chat template; None if there is none.
        bos: token that Ollama adds to a prompt by itself.
        dated: whether the template writes the date, which the translation has from today.
    """
    lines = ["# ollama create MODEL -f Modelfile", f"FROM ./{name}"]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if pieces is None or not pieces.begin.startswith(bos):
        lines += [
            "# The chat template cannot be written in Ollama's language, which has a text before",
            "# and after each message only. Ollama uses its own version of the template if it",
            "# knows one, otherwise none: add TEMPLATE, or serve the file with llama-server.",
        ]
    else:
        if dated:
            lines.append("# The chat template writes the date: here that of the export.")
        if pieces.drops_reasoning:
            lines.append("# The chat template drops the reasoning of earlier answers; Ollama's")
            lines.append("# language cannot: send earlier answers without it.")
        lines += [f'TEMPLATE """{ollama_template(pieces, bos=bos)}"""']
    return "\n".join([*lines, ""])


def _text(text: str) -> str:
    """Return text as a string literal of Go, whose braces and quotes mean nothing.

    No three quotes follow each other, which would end the template in the Modelfile.
    """
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
