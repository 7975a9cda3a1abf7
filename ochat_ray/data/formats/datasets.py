"""Records of data sets: message lists in many layouts, and prompt-completion pairs.

Supported are ShareGPT, OpenAI's messages, OpenChat's own format, WildChat, LMSYS-Chat-1M,
UltraChat, Gemini's contents, TRL's prompt and completion, Alpaca, Dolly, OpenOrca, and similar
formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ochat_ray.data.blank_text import shows_nothing
from ochat_ray.data.formats.answers import Shape
from ochat_ray.data.formats.tables import Keys, is_pair, is_rounds
from ochat_ray.data.formats.tool_calls import tools_of
from ochat_ray.data.formats.turns import (
    ParsedTurn,
    check_supported,
    loss_weight,
    parse_turn,
    text_of,
)
from ochat_ray.data.formats.values import (
    RecordError,
    as_list,
    checked_text,
    decoded,
    first_of,
    is_empty,
    label,
    once_each,
    unknown_names,
    unsupported,
)
from ochat_ray.schema import Conversation, Turn

_UNSUPPORTED = frozenset(
    "tools functions function_call tool_calls images image videos video audios audio files".split()
)
"""Keys that request something the template cannot represent, unless they are empty."""

_DUMPS = frozenset({"conversations", "items", "turns"})
"""Lists whose answers may be ChatGPT's rendered HTML."""


def conversation_of(item: Mapping[str, Any], keys: Keys) -> tuple[Conversation, Shape]:
    """Return the conversation of a record, and the kind of record for HTML detection.

    Raises:
        RecordError: The record is not a conversation.
    """
    for name in sorted(_UNSUPPORTED.difference(keys["tools"]) & item.keys()):
        if not is_empty(item[name]):
            raise unsupported(name)
    for name in ("weight", "loss_weight"):
        if item.get(name) not in (None, 1, 1.0):
            raise unsupported(f"{name} of an entire record")
    for name in ("kto_tag", "label"):
        if item.get(name) is False:
            raise unsupported(f"{name}: an answer that is not to be learnt")
    known: set[str] = set()
    found = _list_of_turns(item, keys)
    if found is not None and (found[1] or not is_pair(item, keys)):
        name, raw = found
        known.add(name)
        parsed = _parse_rounds(raw, keys) if is_rounds(name, raw, keys) else _parse_list(raw, keys)
        if parsed and parsed[-1].turn.role != "assistant":
            parsed += _chosen(item, keys, known)
        shape = _shape(name, raw)
    else:
        parsed = _parse_pair(item, keys, known)
        shape = "other"
    turns = [*_system(item, keys, known), *(turn.turn for turn in parsed)]
    unknown = [name for turn in parsed for name in turn.unknown]
    values = {logical: _label(item, keys[logical], known) for logical in ("id", "title", "model")}
    tools = next((name for name in keys["tools"] if not is_empty(item.get(name))), "")
    conversation = Conversation(
        id=values["id"] or "",
        source="",
        turns=tuple(turns),
        model=values["model"],
        title=values["title"],
        condition=_condition(item, keys, known),
        tools=tools_of(item.get(tools)),
        unknown_keys=once_each([*unknown_names(item, known | {tools} | _UNSUPPORTED), *unknown]),
    )
    return conversation, shape


def id_of(item: Mapping[str, Any], keys: Keys) -> str | None:
    """Return the record's own id, if it has one."""
    return _label(item, keys["id"], set())


def _list_of_turns(item: Mapping[str, Any], keys: Keys) -> tuple[str, list[Any]] | None:
    """Return the key of the list of turns, and the list as rows."""
    # A Parquet file of mixed records has all columns, with nulls where a record has no value.
    empty: tuple[str, list[Any]] | None = None
    for name in keys["conversations"]:
        value = decoded(item.get(name))
        if isinstance(value, dict):
            value = _rows(value)
        if isinstance(value, (list, tuple)):
            if value:
                return name, list(value)
            empty = empty or (name, [])
    return empty


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of a struct of lists, {"from": [...], "value": [...]}; None for others."""
    if not columns or not all(isinstance(c, (list, tuple)) for c in columns.values() if c):
        return None
    filled = {name: column for name, column in columns.items() if column}
    if len({len(column) for column in filled.values()}) > 1:
        raise RecordError(f"lists of different lengths: {', '.join(map(str, filled))}")
    return [dict(zip(filled, row, strict=True)) for row in zip(*filled.values(), strict=True)]


def _parse_list(raw: Sequence[Any], keys: Keys) -> list[ParsedTurn]:
    if any(isinstance(_turns(turn, keys, single=True), str) for turn in raw):
        # UltraChat: texts, starting with the user's.
        if not all(isinstance(text, str) for text in raw):
            raise RecordError("some of the turns are texts, and some are not")
        return [_plain(text, "assistant" if n % 2 else "user") for n, text in enumerate(raw)]
    turns = []
    for position, turn in enumerate(raw):
        try:
            turns.append(parse_turn(turn, keys))
        except RecordError as error:
            raise RecordError(f"turn {position}: {error.detail}", error.reason) from None
    return turns


def _parse_rounds(rows: Sequence[Mapping[str, Any]], keys: Keys) -> list[ParsedTurn]:
    """Return the turns of Capybara's rounds, {"input": ..., "output": ...}."""
    turns = []
    for position, row in enumerate(rows):
        try:
            check_supported(row, tools=bool(keys["tools"]))
            weight, names = loss_weight(row, keys)
            known = set(names)
            system = [ParsedTurn(turn, ()) for turn in _system(row, keys, known)]
            turns += [*system, *_parse_pair(row, keys, known)]
        except RecordError as error:
            raise RecordError(f"round {position}: {error.detail}", error.reason) from None
        answer = replace(turns[-1].turn, weight=weight) if weight is not None else turns[-1].turn
        turns[-1] = ParsedTurn(answer, (*turns[-1].unknown, *unknown_names(row, known, "turn.")))
    return turns


def _turns(value: Any, keys: Keys, *, single: bool = False) -> Any:
    """Return the decoded value of a JSON string if it contains turns, else the value unchanged.

    With `single` it may be one turn; otherwise a single turn is more likely a text about turns.
    """
    if not isinstance(value, str):
        return value
    found = decoded(value)
    turns = [found] if single and isinstance(found, dict) else found
    if not isinstance(turns, list) or not turns:
        return value
    is_turns = all(isinstance(turn, dict) and first_of(turn, keys["role"]) for turn in turns)
    return found if is_turns else value


def _plain(text: str, role: str) -> ParsedTurn:
    turn = Turn(role="user" if role == "user" else "assistant", text=checked_text(text))
    return ParsedTurn(turn, ())


def _chosen(item: Mapping[str, Any], keys: Keys, known: set[str]) -> list[ParsedTurn]:
    """Return the preferred answer, from a list that ends with a question."""
    chosen = _turns(item.get("chosen"), keys)
    if "rejected" not in item or is_empty(chosen):
        return []
    known.add("chosen")
    return _parse_side(chosen, "assistant", keys)


def _parse_pair(item: Mapping[str, Any], keys: Keys, known: set[str]) -> list[ParsedTurn]:
    """Return the turns of a prompt, further input, earlier turns and a completion."""
    prompt_key = first_of(item, (*keys["prompt"], *keys["input"]))
    answer_key = first_of(item, keys["completion"])
    lists = ", ".join(keys["conversations"][:-1])
    if answer_key is None:
        if "message_id" in item and "text" in item:
            raise unsupported("one message of a tree; use the file with complete trees")
        raise RecordError(
            f"no list named {lists} or {keys['conversations'][-1]}, and no completion"
        )
    if answer_key == "completion" and str(item.get("label")).lower() in ("0", "0.0", "false"):
        raise unsupported("label: a completion that is not to be learnt")
    prompt = _turns(item[prompt_key], keys) if prompt_key else None
    answer = _parse_side(_completion(item[answer_key], prompt, keys), "assistant", keys)
    known.add(answer_key)
    if isinstance(item.get("label"), bool):
        known.add("label")
    whole = len(answer) > 1 and answer[0].turn.role != "assistant"  # TRL's implicit prompt
    if prompt_key is None and whole:
        return answer
    if prompt_key is None:
        if isinstance(item[answer_key], str) and "\n\nAssistant:" in item[answer_key]:
            raise unsupported(f"{answer_key}: a transcript in one string")
        raise RecordError(f"{answer_key} without a prompt")
    known.add(prompt_key)
    if isinstance(prompt, str) and prompt.rstrip().endswith("\n\nAssistant:"):
        raise unsupported(f"{prompt_key}: a transcript in one string")
    history = _history(item, known)
    if isinstance(prompt, str):
        more = first_of(item, [name for name in keys["input"] if name != prompt_key])
        if more is not None:
            known.add(more)
            # The passages of a context are separate texts.
            found = as_list(item[more]) or [item[more]]
            apart = all(isinstance(text, str) for text in found)
            texts = [prompt, *map(text_of, found if apart else [item[more]])]
            prompt = "\n\n".join(text for text in texts if not shows_nothing(text)) or prompt
    before = [*history, *_parse_side(prompt, "user", keys)]
    return answer if whole and _begins_with(answer, before) else [*before, *answer]


def _completion(value: Any, prompt: Any, keys: Keys) -> Any:
    """Return a completion, decoded if it is turns in a string.

    After a text prompt, JSON is the model's answer, unless it begins with that prompt.
    """
    found = _turns(value, keys)
    if found is value or not isinstance(prompt, str):
        return found
    texts = (turn.get(first_of(turn, keys["text"])) for turn in found if _is_user(turn, keys))
    return found if next(texts, None) == prompt else value


def _is_user(turn: Mapping[str, Any], keys: Keys) -> bool:
    return any(turn.get(name) in ("user", "human") for name in keys["role"])


def _history(item: Mapping[str, Any], known: set[str]) -> list[ParsedTurn]:
    """Return the earlier turns from LLaMA-Factory's `history`: pairs of texts."""
    turns: list[ParsedTurn] = []
    found = decoded(item.get("history"))
    for pair in [] if is_empty(found) else as_list(found) or [found]:
        texts = as_list(pair)
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise RecordError("history: not a list of pairs of texts")
        turns += [_plain(texts[0], "user"), _plain(texts[1], "assistant")]
    known.add("history")
    return turns


def _parse_side(side: Any, role: str, keys: Keys) -> list[ParsedTurn]:
    """Return the turns of a prompt or a completion: a text, a turn, or a list of turns."""
    if isinstance(side, str):
        return [_plain(side, role)]
    if isinstance(side, dict):
        side = _rows(side) or [side]
    if not isinstance(side, (list, tuple)) or (side and isinstance(side[0], str)):
        raise RecordError(f"the {'prompt' if role == 'user' else 'completion'} is not text")
    return _parse_list(side, keys)


def _begins_with(turns: Sequence[ParsedTurn], prompt: Sequence[ParsedTurn]) -> bool:
    """Return whether the turns begin with the prompt, with or without a system turn before it."""
    texts = [turn.turn.text for turn in turns]
    wanted = [turn.turn.text for turn in prompt]
    start = 1 if turns[0].turn.role == "system" and wanted[:1] != texts[:1] else 0
    return texts[start : start + len(wanted)] == wanted


def _shape(name: str, raw: Sequence[Any]) -> Shape:
    if name not in _DUMPS or not raw:
        return "other"
    first = decoded(raw[0])
    if not isinstance(first, dict):
        return "other"
    return "dump" if "value" in first else "roles"


def _system(item: Mapping[str, Any], keys: Keys, known: set[str]) -> list[Turn]:
    name = next((name for name in keys["system"] if not is_empty(item.get(name))), None)
    if name is None:
        return []
    known.add(name)
    try:
        return [Turn(role="system", text=text_of(item[name]))]
    except RecordError as error:
        raise RecordError(f"{name}: {error.detail}", error.reason) from None


def _condition(item: Mapping[str, Any], keys: Keys, known: set[str]) -> str | None:
    name = first_of(item, keys["condition"])
    if name is None:
        return None
    known.add(name)
    if not isinstance(item[name], str):
        if is_empty(item[name]):
            return None
        raise RecordError(f"{name}: a condition must be a text")
    condition = checked_text(item[name]).strip()
    return None if shows_nothing(condition) else condition


def _label(item: Mapping[str, Any], names: Sequence[str], known: set[str]) -> str | None:
    for name in names:
        value = item.get(name)
        if isinstance(value, dict):
            value = value.get("slug") or value.get("title")
        if (found := label(value)) is not None:
            known.add(name)
            return found
    return None
