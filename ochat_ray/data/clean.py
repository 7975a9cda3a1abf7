"""Cleaning rules: each returns the conversation or a `Drop` with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from html import unescape

from ochat_ray.data.blank_text import html_shows_nothing, shows_nothing
from ochat_ray.data.decontaminate import Questions
from ochat_ray.data.markdown.blocks import convert
from ochat_ray.data.markdown.fidelity import fidelity
from ochat_ray.data.markdown.tree import ConversionError
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.data.noise_rules import EXTENSION_ORIGINS, RULES, provider_error, without_noise
from ochat_ray.data.visible.fidelity import text_fidelity
from ochat_ray.schema import Conversation, Drop, Reason, Stage, Turn

INSTRUCTIONS = ("system", "developer")
"""Roles of a turn before the first question."""

Rule = Callable[[Conversation], Conversation | Drop]


def clean(conversation: Conversation, rules: Sequence[Rule]) -> Conversation | Drop:
    """Apply the rules in order, up to the first `Drop`."""
    for rule in rules:
        result = rule(conversation)
        if isinstance(result, Drop):
            return result
        conversation = result
    return conversation


def rules(
    *,
    keep_model: str | Collection[str],
    blocked_words: Sequence[str],
    min_fidelity: float = 0.0,
    questions: Questions | None = None,
    noise: Collection[str] = RULES,
    merge_turns: bool = False,
) -> list[Rule]:
    """Return the rules of a run; those that need no conversion come first.

    Args:
        keep_model: Model label to keep, several labels, or "any".
        blocked_words: Whole words, case-insensitive, that drop a conversation.
        min_fidelity: Minimum share of blocks and of visible text that a conversion must preserve.
        questions: Evaluation questions that no conversation may contain.
        noise: Names of the rules of `noise_rules` to apply.
        merge_turns: Whether to join consecutive turns of one role, after conversion.
    """
    found = [
        keep_model_rule(keep_model),
        unboxed_user_turns,
        noise_rule(noise),
        trim_ends,
        provider_errors_rule(noise),
        need_turns,
        need_text,
        *([] if merge_turns else [need_alternating_roles]),
        blocked_words_rule(blocked_words),
        convert_rule(min_fidelity, noise),
        need_text,
        *([merge_consecutive_turns, need_alternating_roles] if merge_turns else []),
    ]
    return found if questions is None else [*found, questions_rule(questions)]


def keep_model_rule(keep_model: str | Collection[str]) -> Rule:
    """Keep conversations of these models. "Model: GPT-4" and "GPT-4" are one label."""
    labels = [keep_model] if isinstance(keep_model, str) else keep_model
    kept = {normalize_model(label) for label in labels}

    def rule(conversation: Conversation) -> Conversation | Drop:
        if keep_model == "any" or normalize_model(conversation.model) in kept:
            return conversation
        return _drop(conversation, Reason.OTHER_MODEL, conversation.model or "no label")

    return rule


def noise_rule(names: Collection[str]) -> Rule:
    """Remove additions of browser extensions from records that can contain them."""

    def rule(conversation: Conversation) -> Conversation:
        if conversation.origin not in EXTENSION_ORIGINS:
            return conversation
        turns, found = without_noise(conversation.turns, names)
        noise = (*conversation.noise, *found)
        return replace(conversation, turns=tuple(turns), noise=noise) if found else conversation

    return rule


def provider_errors_rule(names: Collection[str]) -> Rule:
    """Remove answers that are a provider's error message.

    At the end of a conversation, such an answer is removed with its question. A conversation with
    one before another answer is dropped, since later turns may depend on it; so is one with no
    other answer.
    """

    def rule(conversation: Conversation) -> Conversation | Drop:
        turns, found = conversation.turns, list(conversation.noise)
        while turns and (name := provider_error(turns[-1], names)):
            found.append(name)
            conversation = trim_ends(replace(conversation, turns=turns[:-1], noise=tuple(found)))
            turns = conversation.turns
            if not any(turn.role == "assistant" for turn in turns):
                return _drop(conversation, Reason.PROVIDER_ERROR, f"{name}: the only answer")
        for position, turn in enumerate(turns):
            if name := provider_error(turn, names):
                return _drop(conversation, Reason.PROVIDER_ERROR, f"{name}: turn {position}")
        return conversation

    return rule


def instructions(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns before the first question: at most one system and one developer turn."""
    roles: list[str] = []
    for turn in turns:
        if turn.role not in INSTRUCTIONS or turn.role in roles:
            break
        roles.append(turn.role)
    return turns[: len(roles)]


def trim_ends(conversation: Conversation) -> Conversation:
    """Remove leading assistant turns and trailing user turns, as in 2023.

    System and developer turns at the start stay.
    """
    turns, left_out = list(conversation.turns), list(conversation.left_out)
    first = len(instructions(turns))
    while len(turns) > first and turns[first].role == "assistant":
        del turns[first]
        left_out.append("answer without a question")
    while turns and turns[-1].role != "assistant":
        turns.pop()
        left_out.append("question without an answer")
    return replace(conversation, turns=tuple(turns), left_out=tuple(left_out))


def need_turns(conversation: Conversation) -> Conversation | Drop:
    """Drop a conversation without a question and an answer."""
    if not any(turn.role == "assistant" for turn in conversation.turns):
        return _drop(conversation, Reason.TOO_SHORT, "no user turn that an assistant turn follows")
    return conversation


def need_text(conversation: Conversation) -> Conversation | Drop:
    """Drop a conversation with a turn that has no visible text."""
    for position, turn in enumerate(conversation.turns):
        # A result may be empty, and an answer that calls a tool.
        if turn.role == "tool" or turn.tool_calls:
            continue
        if (html_shows_nothing if turn.html else shows_nothing)(turn.text):
            return _drop(conversation, Reason.EMPTY_TURN, f"turn {position}")
    return conversation


def merge_consecutive_turns(conversation: Conversation) -> Conversation | Drop:
    """Join consecutive turns of one role with a blank line; their loss weights must agree."""
    turns: list[Turn] = []
    for position, turn in enumerate(conversation.turns):
        joins = turns and turns[-1].role == turn.role
        if not joins or not (turn.is_plain and turns[-1].is_plain) or turn.role == "tool":
            turns.append(turn)
        elif turns[-1].loss_weight != turn.loss_weight:
            detail = f"turns {position - 1} and {position} have different loss weights"
            return _drop(conversation, Reason.WRONG_ROLE_ORDER, detail)
        else:
            turns[-1] = replace(turns[-1], text=f"{turns[-1].text}\n\n{turn.text}")
    return replace(conversation, turns=tuple(turns))


def need_alternating_roles(conversation: Conversation) -> Conversation | Drop:
    """Require, after system and developer turns, the order user, assistant, user, assistant.

    The results of an answer's calls, and another answer, may follow it.
    """
    first = len(instructions(conversation.turns))
    expected: tuple[str, ...] = ("user",)
    for position, turn in enumerate(conversation.turns[first:], first):
        if turn.role not in expected:
            detail = f"turn {position} is {turn.role}, expected {' or '.join(expected)}"
            return _drop(conversation, Reason.WRONG_ROLE_ORDER, detail)
        if turn.role == "assistant":
            expected = ("tool", "user") if turn.tool_calls else ("user",)
        else:
            expected = ("tool", "assistant") if turn.role == "tool" else ("assistant",)
    return conversation


def blocked_words_rule(words: Sequence[str]) -> Rule:
    """Drop a conversation that has one of the words in any turn, as a whole word in any case."""
    if not words:
        return lambda conversation: conversation
    pattern = re.compile(
        r"(?<!\w)(?:" + "|".join(re.escape(word) for word in words) + r")(?!\w)", re.IGNORECASE
    )

    def rule(conversation: Conversation) -> Conversation | Drop:
        for position, turn in enumerate(conversation.turns):
            # Removing the markup takes time, and few turns contain the word at all.
            if not pattern.search(turn.text):
                continue
            if match := pattern.search(visible_text(turn.text, html=turn.html)):
                detail = f"{match.group().lower()} in turn {position}"
                return _drop(conversation, Reason.BLOCKED_WORD, detail)
        return conversation

    return rule


def visible_text(text: str, *, html: bool) -> str:
    """Return the visible text of a turn: no tags, no attributes, no targets of Markdown links."""
    if html:
        end = text.rfind(">") + 1  # no tag ends after it, which each `<` would search for
        return unescape(re.sub(r"<[^>]*>", " ", text[:end]) + text[end:])
    return re.sub(r"\]\(\s*<?[^\s()<>]*", "](", text)


_PRE_WRAP = re.compile(
    r"\s*(?:<div\b[^<>]*>\s*)*<div\b[^<>]*\bclass=\"[^\"<>]*\bwhitespace-pre-wrap\b[^\"<>]*\"[^<>]*>"
    r"([^<>]*)((?:</div>\s*)+)"
)


def unboxed_user_turns(conversation: Conversation) -> Conversation:
    """Unwrap user turns from the box that some dumps put around them.

    Only ChatGPT's own `whitespace-pre-wrap` box around plain text is recognized: HTML that a person
    typed stays.
    """
    turns = []
    for turn in conversation.turns:
        if turn.role == "user":
            boxed = _PRE_WRAP.fullmatch(turn.text)
            if boxed and _is_closed(turn.text):
                turn = replace(turn, text=unescape(boxed[1]))
        turns.append(turn)
    return replace(conversation, turns=tuple(turns))


def _is_closed(html: str) -> bool:
    return html.count("<div") == html.count("</div>")


def convert_rule(min_fidelity: float, noise: Collection[str] = RULES) -> Rule:
    """Convert HTML answers to Markdown, and measure the share of structure and text preserved."""

    def rule(conversation: Conversation) -> Conversation | Drop:
        turns = []
        equal, blocks, same, characters = 0, 0, 0, 0
        found = list(conversation.noise)
        names = noise if conversation.origin in EXTENSION_ORIGINS else ()
        for position, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                if turn.html and ("<" in turn.text or "&" in turn.text):
                    try:
                        converted = convert(turn.text, names)
                        structure = fidelity(converted)
                    except ConversionError as error:
                        detail = f"turn {position}: {error}"
                        return _drop(conversation, Reason.CONVERSION_FAILED, detail)
                    taken_off = converted.noise
                    text = text_fidelity(turn.text, converted.markdown, taken_off.texts)
                    turn = replace(turn, text=converted.markdown, html=False)
                    equal, blocks = equal + structure[0], blocks + structure[1]
                    same, characters = same + text[0], characters + text[1]
                    found += taken_off.names
                elif turn.html:  # plain text in a page
                    turn = replace(turn, html=False)
            turns.append(turn)
        of_blocks = equal / blocks if blocks else None
        of_text = same / characters if characters else None
        if of_blocks is not None and of_blocks < min_fidelity:
            detail = f"{of_blocks:.3f} of {blocks} blocks are preserved"
            return _drop(conversation, Reason.LOW_FIDELITY, detail)
        if of_text is not None and of_text < min_fidelity:
            detail = f"{of_text:.3f} of {characters} characters of visible text are preserved"
            return _drop(conversation, Reason.LOW_FIDELITY, detail)
        return replace(
            conversation,
            turns=tuple(turns),
            fidelity=of_blocks,
            text_fidelity=of_text,
            noise=tuple(found),
        )

    return rule


def questions_rule(questions: Questions) -> Rule:
    """Drop a conversation that contains an evaluation question."""

    def rule(conversation: Conversation) -> Conversation | Drop:
        found = questions.find([turn.text for turn in conversation.turns])
        return _drop(conversation, Reason.CONTAMINATED, found) if found else conversation

    return rule


def _drop(conversation: Conversation, reason: Reason, detail: str) -> Drop:
    return Drop(
        id=conversation.id,
        source=conversation.source,
        stage=Stage.CLEAN,
        reason=reason,
        detail=detail,
    )
