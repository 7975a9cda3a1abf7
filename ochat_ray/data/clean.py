"""Cleaning rules: each returns the conversation or a `Drop` with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from html import unescape

from ochat_ray.data.decontaminate import Questions
from ochat_ray.data.fidelity import fidelity
from ochat_ray.data.html_noise import without_pager
from ochat_ray.data.html_tree import ConversionError
from ochat_ray.data.markdown import convert
from ochat_ray.data.text_fidelity import text_fidelity
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


def rules(
    *,
    keep_model: str | Collection[str],
    blocked_words: Sequence[str],
    min_fidelity: float = 0.0,
    questions: Questions | None = None,
) -> list[Rule]:
    """The rules of a run: those that only need the record come before any conversion.

    Args:
        keep_model: the model label to keep, or several, or "any".
        blocked_words: words that drop a conversation, whole and in any case.
        min_fidelity: share that a conversion must give back, of blocks and of visible text.
        questions: evaluation questions that no conversation may contain.
    """
    found = [
        keep_model_rule(keep_model),
        trim_ends,
        need_turns,
        need_text,
        need_alternating_roles,
        blocked_words_rule(blocked_words),
        plain_user_turns,
        convert_rule(min_fidelity),
        need_text,
    ]
    return found if questions is None else [*found, questions_rule(questions)]


def keep_model_rule(keep_model: str | Collection[str]) -> Rule:
    """Keep these models' conversations. "Model: GPT-4" and "GPT-4" are one label."""
    labels = [keep_model] if isinstance(keep_model, str) else keep_model
    kept = {normalize_model(label) for label in labels}

    def rule(conversation: Conversation) -> Conversation | Drop:
        if keep_model == "any" or normalize_model(conversation.model) in kept:
            return conversation
        return _drop(conversation, Reason.OTHER_MODEL, conversation.model or "no label")

    return rule


_GPT_3_5 = re.compile(r"(default|legacy|turbo|chatgpt|text-davinci-002-render\S*)(?! *\(?gpt-4)")


def normalize_model(label: str | None) -> str:
    """A page's free-text model label in one spelling; "" where there is none.

    "Model: GPT-4", "gpt 4" and "GPT-4-0314" are "gpt-4"; a variant that answers with the help of
    tools is another model: "GPT-4 (browsing)" is "gpt-4 (browsing)". ChatGPT's default and legacy
    models of the time are "gpt-3.5".
    """
    text = re.sub(r"^model\s*:\s*", "", " ".join((label or "").lower().split()))
    match = re.fullmatch(r"(?:chat)?gpt[- ]?(\d(?:\.\d)?)(?:-\d{4})?(?: ?\((.*)\)| (.*))?", text)
    if match:
        variant = (match[2] or match[3] or "").strip()
        variant = "" if variant in ("default", "legacy", "turbo") else variant
        return f"gpt-{match[1]}" + (f" ({variant})" if variant else "")
    if re.fullmatch(r"gpt[- ]?3\.5[- ]turbo(?:-\d{4})?", text) or _GPT_3_5.match(text):
        return "gpt-3.5"
    return text


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
        return _drop(conversation, Reason.TOO_SHORT, "no user turn that an assistant turn follows")
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
            # Stripping the markup takes time, and few turns hold the word at all.
            if not pattern.search(turn.text):
                continue
            if match := pattern.search(visible_text(turn.text, html=turn.html)):
                detail = f"{match.group().lower()} in turn {position}"
                return _drop(conversation, Reason.BLOCKED_WORD, detail)
        return conversation

    return rule


def visible_text(text: str, *, html: bool) -> str:
    """What a reader sees of a turn: no tags and attributes, no targets of Markdown's links."""
    if html:
        return unescape(re.sub(r"<[^>]*>", " ", text))
    return re.sub(r"\]\(\s*<?[^\s()<>]*", "](", text)


_PRE_WRAP = re.compile(
    r"\s*(?:<div\b[^<>]*>\s*)*<div\b[^<>]*\bclass=\"[^\"<>]*\bwhitespace-pre-wrap\b[^\"<>]*\"[^<>]*>"
    r"([^<>]*)((?:</div>\s*)+)"
)


def plain_user_turns(conversation: Conversation) -> Conversation:
    """User turns as typed: without the box some dumps wrap them in, and without the pager.

    Only ChatGPT's own `whitespace-pre-wrap` box around text alone is recognised: HTML that a
    person typed stays.
    """
    pagers = 0
    turns = []
    for turn in conversation.turns:
        if turn.role == "user":
            boxed = _PRE_WRAP.fullmatch(turn.text)
            typed = unescape(boxed[1]) if boxed and _is_closed(turn.text) else turn.text
            text = without_pager(typed)
            pagers += text != typed
            turn = replace(turn, text=text)
        turns.append(turn)
    return replace(conversation, turns=tuple(turns), pagers=conversation.pagers + pagers)


def _is_closed(html: str) -> bool:
    return html.count("<div") == html.count("</div>")


def convert_rule(min_fidelity: float) -> Rule:
    """Turn HTML answers into Markdown, and measure how much of structure and text that keeps."""

    def rule(conversation: Conversation) -> Conversation | Drop:
        turns, pagers = [], 0
        equal, blocks, same, characters = 0, 0, 0, 0
        for position, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                if turn.html and ("<" in turn.text or "&" in turn.text):
                    try:
                        converted = convert(turn.text)
                        structure = fidelity(converted)
                    except ConversionError as error:
                        detail = f"turn {position}: {error}"
                        return _drop(conversation, Reason.CONVERSION_FAILED, detail)
                    noise = converted.noise
                    taken_off = (noise.pager, *noise.counters)
                    text = text_fidelity(turn.text, converted.markdown, taken_off)
                    turn = replace(turn, text=converted.markdown, html=False)
                    equal, blocks = equal + structure[0], blocks + structure[1]
                    same, characters = same + text[0], characters + text[1]
                    pagers += bool(noise.pager)
                else:  # Markdown or plain text already
                    plain = without_pager(turn.text)
                    pagers += plain != turn.text
                    turn = replace(turn, text=plain, html=False)
            turns.append(turn)
        of_blocks = equal / blocks if blocks else None
        of_text = same / characters if characters else None
        if of_blocks is not None and of_blocks < min_fidelity:
            detail = f"{of_blocks:.3f} of {blocks} blocks come back"
            return _drop(conversation, Reason.LOW_FIDELITY, detail)
        if of_text is not None and of_text < min_fidelity:
            detail = f"{of_text:.3f} of {characters} characters of visible text come back"
            return _drop(conversation, Reason.LOW_FIDELITY, detail)
        return replace(
            conversation,
            turns=tuple(turns),
            fidelity=of_blocks,
            text_fidelity=of_text,
            pagers=conversation.pagers + pagers,
        )

    return rule


def questions_rule(questions: Questions) -> Rule:
    """Drop what contains a question that models are evaluated with."""

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
