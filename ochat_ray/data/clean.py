"""Cleaning rules: each returns the conversation or a `Drop` with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ochat_ray.schema import Conversation, Drop, Reason, Stage

Rule = Callable[[Conversation], Conversation | Drop]


def clean(conversation: Conversation, rules: Sequence[Rule]) -> Conversation | Drop:
    """Apply the rules in order; the first `Drop` ends it."""
    for rule in rules:
        result = rule(conversation)
        if isinstance(result, Drop):
            return result
        conversation = result
    return conversation


def rules(*, keep_model: str, blocked_words: Sequence[str]) -> list[Rule]:
    """The rules of a run, the cheap ones first.

    Args:
        keep_model: the model label to keep, or "any".
        blocked_words: words that drop a conversation, whole and in any case.
    """
    return [
        keep_model_rule(keep_model),
        trim_ends,
        need_turns,
        need_text,
        need_alternating_roles,
        blocked_words_rule(blocked_words),
    ]


def keep_model_rule(keep_model: str) -> Rule:
    """Keep one model's conversations. "Model: GPT-4" and "GPT-4" are one label."""

    def rule(conversation: Conversation) -> Conversation | Drop:
        if keep_model == "any" or normalize_model(conversation.model) == keep_model.lower():
            return conversation
        return _drop(conversation, Reason.OTHER_MODEL, conversation.model or "no label")

    return rule


def normalize_model(label: str | None) -> str:
    """A model label without the page's "Model: ", in lower case; "" where there is none."""
    return re.sub(r"^model:\s*", "", (label or "").strip(), flags=re.IGNORECASE).lower()


def trim_ends(conversation: Conversation) -> Conversation:
    """Without leading assistant turns and trailing user turns, as in 2023.

    A system turn at the start stays.
    """
    turns = list(conversation.turns)
    first = 1 if turns and turns[0].role == "system" else 0
    while len(turns) > first and turns[first].role == "assistant":
        del turns[first]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    return replace(conversation, turns=tuple(turns))


def need_turns(conversation: Conversation) -> Conversation | Drop:
    """Drop what has no question with an answer."""
    if not any(turn.role == "assistant" for turn in conversation.turns):
        return _drop(conversation, Reason.NO_TURNS, "no user turn that an assistant turn follows")
    return conversation


def need_text(conversation: Conversation) -> Conversation | Drop:
    """Drop a conversation with a turn of white space only."""
    for position, turn in enumerate(conversation.turns):
        if not turn.text.strip():
            return _drop(conversation, Reason.EMPTY_TURN, f"turn {position}")
    return conversation


def need_alternating_roles(conversation: Conversation) -> Conversation | Drop:
    """After an optional system turn: user, assistant, user, assistant."""
    first = 1 if conversation.turns[0].role == "system" else 0
    for position, turn in enumerate(conversation.turns[first:]):
        expected = "user" if position % 2 == 0 else "assistant"
        if turn.role != expected:
            detail = f"turn {position + first} is {turn.role}, expected {expected}"
            return _drop(conversation, Reason.WRONG_ROLE_ORDER, detail)
    return conversation


def blocked_words_rule(words: Sequence[str]) -> Rule:
    """Drop what holds one of the words, whole and in any case, in any turn."""
    if not words:
        return lambda conversation: conversation
    pattern = re.compile(
        r"(?<!\w)(?:" + "|".join(re.escape(word) for word in words) + r")(?!\w)", re.IGNORECASE
    )

    def rule(conversation: Conversation) -> Conversation | Drop:
        for position, turn in enumerate(conversation.turns):
            if match := pattern.search(turn.text):
                detail = f"{match.group().lower()} in turn {position}"
                return _drop(conversation, Reason.BLOCKED_WORD, detail)
        return conversation

    return rule


def _drop(conversation: Conversation, reason: Reason, detail: str) -> Drop:
    return Drop(
        id=conversation.id,
        source=conversation.source,
        stage=Stage.CLEAN,
        reason=reason,
        detail=detail,
    )
