"""Convert conversations to rows of the token table with a model's own chat template."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from ochat_ray.data.config import PrepareConfig, SeparateAnswers
from ochat_ray.data.long_conversations import CHOICES, Long
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.data.tokenize import Tokenized, TokenRow, Yield, tokenize
from ochat_ray.recipes import CHAT
from ochat_ray.schema import Conversation, ModelClass, Reason, Turn
from ochat_ray.tokenization.chat_template import ChatTemplate, TemplateError
from ochat_ray.tokenization.chat_tokenizer import TemplateSettings, load_chat_tokenizer
from ochat_ray.tokenization.messages import Chat
from ochat_ray.tokenization.supervision import Sample, Supervised, supervise
from ochat_ray.tokenization.tokenizer import load_tokenizer


def tokenize_as_configured(
    conversations: Sequence[Conversation],
    config: PrepareConfig,
    classes: Mapping[str, ModelClass],
    tokenizer: Any,
) -> list[Tokenized]:
    """Return the samples of conversations with the run's template, options and classes.

    `tokenizer` is of `load_chat_tokenizer` for a chat template, otherwise of `load_tokenizer`.
    """
    if config.model_type == CHAT:
        return tokenize_chats(
            conversations,
            template=tokenizer.chat,
            max_length=config.max_length,
            classes=classes,
            long=config.long,
            separate_answers=config.separate_answers,
        )
    return tokenize(
        conversations,
        model_type=config.model_type,
        tokenizer=tokenizer,
        max_length=config.max_length,
        classes=classes,
        long=config.long,
    )


def reason_for_no_sample(
    conversation: Conversation, result: Tokenized, config: PrepareConfig
) -> tuple[Reason, str]:
    """Return why a conversation has no sample: the reason, and the detail for a person."""
    if result.refused:
        return Reason.TEMPLATE_REFUSED, result.refused
    roles = {"assistant"} if config.model_type == CHAT else {"system", "user", "assistant"}
    if not any(turn.loss_weight for turn in conversation.turns if turn.role in roles):
        return Reason.NO_LOSS_WEIGHT, "each loss weight is 0"
    if config.long == "drop" and result.length > config.max_length:
        return Reason.TOO_LONG, f"{result.length:,} tokens, longer than {config.max_length:,}"
    if result.notes.get("not_learnt") and result.length <= config.max_length:
        return Reason.TEMPLATE_REFUSED, "it does not write the answers after its own prompt"
    return Reason.NO_SUPERVISED_TOKENS, f"no answer within {config.max_length} tokens"


@cache
def open_tokenizer_once(path: str, template: str) -> Any:
    """Load the tokenizer once per worker process, which handles many parts.

    `template` is the run's TemplateSettings in JSON, or "" for a template of 2023.
    """
    # One thread per worker, since there is one worker per CPU.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if template:
        return load_chat_tokenizer(path, TemplateSettings(**json.loads(template)))
    return load_tokenizer(path)


def sum_notes(tokenized: Iterable[Tokenized]) -> dict[str, int]:
    """Return the sums of what the chat template did, by name."""
    notes: Counter[str] = Counter()
    for result in tokenized:
        notes.update(result.notes)
    return dict(notes)


def shown_text(turn: Mapping[str, Any]) -> str:
    """Return all that a stored turn has, as text for people."""
    calls = [f"{call['name']}({call['arguments']})" for call in turn["tool_calls"] or ()]
    reasoning = [f"[reasoning] {turn['reasoning']}"] if turn["reasoning"] else []
    return "\n".join([*reasoning, *([turn["text"]] if turn["text"] else []), *calls])


def tokenize_chats(
    conversations: Sequence[Conversation],
    *,
    template: ChatTemplate,
    max_length: int,
    classes: Mapping[str, ModelClass] | None = None,
    long: Long = "cut",
    separate_answers: SeparateAnswers = "each",
) -> list[Tokenized]:
    """Return the conversations' samples, in order, each of at most `max_length` tokens.

    Further samples of a conversation have "#2", "#3", ... appended to its id.

    Args:
        conversations: The conversations.
        template: The model's chat template.
        max_length: Maximum tokens per sample.
        classes: Weights by normalized model label; other labels have weight 1.
        long: Treatment of conversations longer than `max_length`.
        separate_answers: Which answers are learnt of a conversation whose answers cannot share a
            sample, since the template writes earlier turns differently: each one, or the last.
    """
    last_only = separate_answers == "last"
    chats = [Chat(conversation.turns, conversation.tools) for conversation in conversations]
    results = []
    for conversation, chat, found in zip(
        conversations, chats, supervise(chats, template, last_only=last_only), strict=True
    ):
        if isinstance(found, TemplateError):
            results.append(_refused(str(found)))
            continue
        label = normalize_model(conversation.model)
        factor = (classes or {}).get(label, ModelClass()).weight
        split: list[Sample] = []
        if _longest(found) > max_length:
            windows = _windows(chat, template, max_length, last_only=last_only)
            split = [sample for window in windows for sample in window.samples]
        by_choice = {choice: _of_choice(choice, found, split, max_length) for choice in CHOICES}
        results.append(_tokenized(conversation.id, found, by_choice, long, factor))
    return results


def _refused(reason: str) -> Tokenized:
    yields = dict.fromkeys(CHOICES, Yield())
    return Tokenized(samples=(), length=0, cut=0, first_turn=0, yields=yields, refused=reason)


def _longest(found: Supervised) -> int:
    return max((len(sample.ids) for sample in found.samples), default=0)


def _of_choice(
    choice: Long, found: Supervised, split: Sequence[Sample], max_length: int
) -> list[tuple[Sample, int]]:
    """Return samples of at most `max_length` tokens, and how many were cut off each."""
    whole = _longest(found) <= max_length
    if choice == "drop" and not whole:
        return []
    samples = split if choice == "split" and not whole else found.samples
    shortened = [
        (
            Sample(sample.ids[:max_length], sample.weights[:max_length], sample.answers),
            max(len(sample.ids) - max_length, 0),
        )
        for sample in samples
    ]
    return [(sample, cut) for sample, cut in shortened if any(sample.weights)]


def _tokenized(
    id: str,
    found: Supervised,
    by_choice: Mapping[Long, Sequence[tuple[Sample, int]]],
    long: Long,
    factor: float,
) -> Tokenized:
    chosen = by_choice[long]
    longest = max((len(sample.ids) + cut for sample, cut in chosen), default=0)
    return Tokenized(
        samples=tuple(
            TokenRow(
                id=id if number == 1 else f"{id}#{number}",
                input_ids=sample.ids,
                loss_weights=[factor * weight for weight in sample.weights],
            )
            for number, (sample, _) in enumerate(chosen, 1)
        ),
        length=max(found.length, longest),
        cut=sum(cut for _, cut in chosen),
        first_turn=0,
        yields={choice: _yield(kept) for choice, kept in by_choice.items()},
        notes=found.notes,
    )


def _yield(samples: Sequence[tuple[Sample, int]]) -> Yield:
    return Yield(
        samples=len(samples),
        tokens=sum(len(sample.ids) for sample, _ in samples),
        supervised=sum(weight != 0.0 for sample, _ in samples for weight in sample.weights),
    )


def _windows(
    chat: Chat, template: ChatTemplate, max_length: int, *, last_only: bool
) -> Iterator[Supervised]:
    """Yield the samples of consecutive rounds, each window with the instructions before them.

    A window has as many rounds as fit; one that fits into no window is alone in its own.
    """
    head, rounds = _rounds(chat.turns)
    window: list[Turn] = []
    fits = True

    def fits_after(before: Sequence[Turn], turns: Sequence[Turn]) -> bool:
        # What precedes an answer decides its sample, so those of earlier rounds fit as before.
        unsupervised = [replace(turn, weight=0.0) for turn in before]
        found = _supervised([*unsupervised, *turns], chat.tools, template, last_only)
        return found is not None and _longest(found) <= max_length

    for turns in rounds:
        fits = fits and fits_after([*head, *window], turns)
        if window and not fits:
            yield _of_window([*head, *window], chat.tools, template, last_only)
            window, fits = [], fits_after(head, turns)
        window = [*window, *turns]
    if window:
        yield _of_window([*head, *window], chat.tools, template, last_only)


def _of_window(
    turns: Sequence[Turn], tools: str, template: ChatTemplate, last_only: bool
) -> Supervised:
    return _supervised(turns, tools, template, last_only) or Supervised((), 0, Counter())


def _supervised(
    turns: Sequence[Turn], tools: str, template: ChatTemplate, last_only: bool
) -> Supervised | None:
    (found,) = supervise([Chat(turns, tools)], template, last_only=last_only)
    return None if isinstance(found, TemplateError) else found


def _rounds(turns: Sequence[Turn]) -> tuple[list[Turn], list[list[Turn]]]:
    """Return the turns before the first question, and each question with what follows it."""
    head: list[Turn] = []
    rounds: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "user":
            rounds.append([turn])
        elif rounds:
            rounds[-1].append(turn)
        else:
            head.append(turn)
    return head, rounds
