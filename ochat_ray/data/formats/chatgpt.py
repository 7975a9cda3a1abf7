"""ChatGPT's own records: the data export, and the conversation of an official share page.

A conversation is a tree, `mapping`, with the id of the last message shown, `current_node`; a share
page has only the path, `linear_conversation`, or both. Messages are Markdown. The text visible on
the page is read; everything else is counted by name, or rejected if the text cannot be understood
without it.

Source: conversations.json of 2023 to 2025, and chat.openai.com's and chatgpt.com's share pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ochat_ray.data.blank_text import shows_nothing
from ochat_ray.data.formats.trees import OTHER_BRANCH, Branches, leaves_of, paths_of
from ochat_ray.data.formats.values import (
    RecordError,
    as_dict,
    as_list,
    checked_text,
    decoded,
    is_empty,
    label,
    once_each,
    unknown_names,
    unsupported,
    valid_utf8,
    weight_of,
)
from ochat_ray.schema import Conversation, Role, Turn

_LEFT_OUT = frozenset(
    "thoughts reasoning_recap execution_output user_editable_context model_editable_context "
    "tether_quote tether_browsing_code tether_browsing_display system_error computer_output "
    "citable_code_output sonic_webpage app_pairing_content".split()
)
"""Content types that the page does not show as text of the conversation."""

_PARTS_LEFT_OUT = frozenset({"audio_asset_pointer", "real_time_user_audio_video_asset_pointer"})
"""Audio recordings; their transcript is a separate part."""

_WRITING_TOOLS = ("canmore", "dalle", "image_gen")
"""Recipients that receive the answer itself: a canvas or an image generator."""

_START, _STOP, _BETWEEN = "\ue200", "\ue201", "\ue202"
_CITATION = re.compile(
    f"{_START}([^{_START}{_STOP}]*){_STOP}|[{_START}-\ue206]|【\\d+(?::\\d+)?†[^】\\n]{{0,300}}】"
)
_TAKEN_OUT = re.compile(f" ?{_STOP}+")

_RECORD_KEYS = frozenset(
    "mapping linear_conversation current_node conversation_id id title model default_model_slug "
    "shared_conversation_id".split()
)
_NODE_KEYS = frozenset({"id", "message", "parent", "children"})
_MESSAGE_KEYS = frozenset({"id", "author", "content", "weight", "end_turn", "recipient"})
_METADATA_KEYS = frozenset(
    "model_slug is_visually_hidden_from_conversation attachments finish_details parent_id".split()
)


def is_chatgpt(item: Mapping[str, Any]) -> bool:
    """Return whether a record is in ChatGPT's own format."""
    return isinstance(item.get("mapping"), dict) or isinstance(
        item.get("linear_conversation"), list
    )


def conversations_of(item: Mapping[str, Any], branches: Branches) -> list[Conversation]:
    """Return the conversations of a record: one, or one per branch.

    Raises:
        RecordError: a message cannot be read.
    """
    linear = _linear(item)
    nodes, parents = _tree(item, linear)
    current = label(item.get("current_node"))
    if current not in nodes:
        current = None
    is_tree = isinstance(item.get("mapping"), dict)
    if linear and (branches == "current" or not is_tree):
        paths = [[name for name in linear if name in nodes]]
    else:
        paths = paths_of(parents, current, branches)
    other = len(leaves_of(parents)) - 1 if is_tree and branches == "current" else 0
    name = label(item.get("id")) or label(item.get("conversation_id"))
    found = []
    for path in paths:
        reader = _Reader()
        for node in path:
            reader.read_node(nodes[node])
        found.append(
            Conversation(
                id=f"{name}#{valid_utf8(path[-1])}" if name and len(paths) > 1 else name or "",
                source="",
                turns=reader.turns(),
                model=_model_of(item, reader.models),
                title=label(item.get("title")),
                unknown_keys=once_each([*unknown_names(item, _RECORD_KEYS), *reader.unknown]),
                left_out=(*reader.left_out, *[OTHER_BRANCH] * other),
            )
        )
    return found


def _linear(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes of the path by id, in order; some pages have only ids, or only nodes."""
    found: dict[str, Any] = {}
    for number, node in enumerate(as_list(item.get("linear_conversation"))):
        name = label(node.get("id")) if isinstance(node, dict) else label(node)
        found[name or f"message {number}"] = node
    return found


def _tree(
    item: Mapping[str, Any], linear: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str | None]]:
    """Return the nodes, and each one's parent, by id."""
    nodes: dict[str, dict[str, Any]] = {}
    for name, node in [*as_dict(item.get("mapping")).items(), *linear.items()]:
        if isinstance(node, dict):
            nodes.setdefault(name, node)
    if not nodes:
        raise RecordError("no messages")
    parents = {name: label(node.get("parent")) for name, node in nodes.items()}
    # Some exports have only the children of a node.
    for name, node in nodes.items():
        for child in map(label, as_list(node.get("children"))):
            if child in parents and parents[child] is None and child != name:
                parents[child] = name
    return nodes, parents


def _model_of(item: Mapping[str, Any], of_answers: Sequence[str]) -> str | None:
    """Return the model label of the answers; several models form a combined label."""
    if of_answers:
        return label(" + ".join(dict.fromkeys(of_answers)))
    model = item.get("model")
    if isinstance(model, dict):
        model = model.get("slug") or model.get("title")
    return label(model) or label(item.get("default_model_slug"))


@dataclass
class _Answer:
    """Turn whose text is split over several messages."""

    role: Role
    weight: float | None
    pieces: list[str]


@dataclass
class _Reader:
    """Reader of the messages of one path."""

    found: list[_Answer] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    joins: str | None = None
    """Separator between the last turn and more of the same answer; None if the answer has ended."""

    def turns(self) -> tuple[Turn, ...]:
        """Return the turns read so far."""
        return tuple(
            Turn(role=turn.role, text="".join(turn.pieces), weight=turn.weight)
            for turn in self.found
        )

    def read_node(self, node: Mapping[str, Any]) -> None:
        """Read one node of the tree."""
        message = node.get("message")
        if not isinstance(message, dict):
            return
        author, content = as_dict(message.get("author")), as_dict(message.get("content"))
        metadata = as_dict(message.get("metadata"))
        self.unknown += unknown_names(node, _NODE_KEYS, "node.")
        self.unknown += unknown_names(message, {*_MESSAGE_KEYS, "metadata"}, "message.")
        self.unknown += unknown_names(metadata, _METADATA_KEYS, "message.metadata.")
        self.unknown += unknown_names(author, {"role", "name"}, "message.author.")
        role = author.get("role")
        if role not in ("system", "user", "assistant", "tool"):
            raise RecordError(f"unknown role {str(role)[:50]!r}")
        kind = str(content.get("content_type") or "text")
        if metadata.get("is_visually_hidden_from_conversation") is True:
            self._leave_out(content, kind, "hidden message")
        elif kind in _LEFT_OUT:
            self._leave_out(content, kind, kind)
        elif role == "tool":
            _check_pictures(content)
            self._leave_out(content, kind, "tool message")
        elif role == "assistant" and message.get("recipient") not in (None, "", "all"):
            recipient = str(message["recipient"])
            if recipient.startswith(_WRITING_TOOLS):
                raise unsupported(f"recipient {recipient[:50]}")
            self._leave_out(content, kind, "tool call")
        else:
            if not is_empty(metadata.get("attachments")):
                raise unsupported("message.metadata.attachments")
            self._add(role, self._text(content, kind, role), message, metadata)

    def _leave_out(self, content: Mapping[str, Any], kind: str, name: str) -> None:
        if kind != "text" or any(not is_empty(part) for part in as_list(content.get("parts"))):
            self.left_out.append(name)

    def _text(self, content: Mapping[str, Any], kind: str, role: Role) -> str:
        if kind == "code":
            language = str(content.get("language") or "")
            language = "" if language == "unknown" else language
            text = checked_text(str(content.get("text") or ""))
            return f"```{language}\n{text}\n```" if text else ""
        if kind not in ("text", "multimodal_text"):
            raise unsupported(f"content type {kind[:50]}")
        self.unknown += unknown_names(content, {"content_type", "parts", "text"}, "content.")
        texts = []
        for part in as_list(content.get("parts")) or [content.get("text")]:
            if part is not None and (shown := self._part(part)) is not None:
                texts.append(checked_text(shown))
        text = "\n".join(texts)
        return self._without_marks(text) if role == "assistant" else text

    def _part(self, part: Any) -> str | None:
        if isinstance(part, str):
            return part
        part = as_dict(part)
        kind = str(part.get("content_type") or part.get("type") or "")
        if kind == "audio_transcription" or (kind == "" and isinstance(part.get("text"), str)):
            return str(part.get("text") or "")
        if kind in _PARTS_LEFT_OUT:
            self.left_out.append(kind)
            return None
        raise unsupported(f"content part {kind[:50] or 'without a type'}")

    def _without_marks(self, text: str) -> str:
        """Remove the marks that the page shows as source chips; keep the text of links."""
        if "†" not in text and not any(mark in text for mark in (_START, _STOP, "\ue203")):
            return text
        text, count = _CITATION.subn(_shown, text)
        self.left_out += ["citation mark"] * count
        return _TAKEN_OUT.sub(_closed_gap, text)

    def _add(
        self, role: Role, text: str, message: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        """Append a turn, or more text to the unfinished answer."""
        if shows_nothing(text) and role != "user":
            return
        weight = message.get("weight")
        weight = 1.0 if weight is None else weight_of(weight, "message.weight")
        answers = role == "assistant"
        turn = _Answer(role, weight if answers and weight != 1.0 else None, [text])
        last = self.found[-1] if answers and self.joins is not None else None
        if weight == 0.0 and (role == "system" or (last and last.weight != 0.0)):
            self.left_out.append("message of weight 0")
            return
        if last is None:
            self.found.append(turn)
        elif last.weight == turn.weight:
            last.pieces += [self.joins or "", text]
        elif last.weight == 0.0:
            self.left_out.append("message of weight 0")
            self.found[-1] = turn
        else:
            raise RecordError("message.weight: the messages of an answer differ")
        if answers and (model := label(metadata.get("model_slug"))):
            self.models.append(model)
        self.joins = None
        if answers and message.get("end_turn") is not True:
            # "Continue generating" continues in the middle of a word.
            finish = as_dict(metadata.get("finish_details")).get("type")
            self.joins = "" if finish == "max_tokens" else "\n\n"


def _closed_gap(gap: re.Match[str]) -> str:
    """Return the space before a removed mark if a word follows."""
    after = gap.string[gap.end() : gap.end() + 1]
    is_needed = after and not after.isspace() and after not in ".,;:!?)"
    return " " if is_needed and gap[0][0] == " " else ""


def _check_pictures(content: Mapping[str, Any]) -> None:
    for part in as_list(content.get("parts")):
        kind = as_dict(part).get("content_type")
        if kind == "image_asset_pointer":
            raise unsupported("content part image_asset_pointer")


def _shown(mark: re.Match[str]) -> str:
    """Return the visible text of a mark: a link, a name, or a placeholder for others."""
    name, *fields = (mark[1] or "").split(_BETWEEN)
    if name == "url" and len(fields) == 2:
        return f"[{fields[0]}]({fields[1]})"
    entity = as_list(decoded(fields[0])) if name == "entity" and fields else []
    return entity[1] if len(entity) > 1 and isinstance(entity[1], str) else _STOP
