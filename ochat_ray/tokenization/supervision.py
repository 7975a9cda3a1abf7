"""Samples of a conversation for a model's own chat template: token ids and loss weights.

Each answer is learnt after exactly those ids that the server gives the model to answer: the
conversation before it, rendered with the generation prompt. Where the conversation with the answer
continues these ids, both are one sequence, and consecutive answers share a sample. A template
that writes earlier turns differently (Qwen 3 leaves out earlier reasoning) starts another sample.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ochat_ray.schema import Turn
from ochat_ray.tokenization.chat_template import ChatTemplate, Encoding, Rendering, TemplateError
from ochat_ray.tokenization.messages import Chat, is_object, split_reasoning

BATCH_CHARACTERS = 1 << 20
"""Characters of renderings that are encoded together. The renderings of a conversation with many
answers are together much longer than the conversation."""

THINKING = "enable_thinking"
"""Variable of many templates that says whether the answer to come has reasoning."""

NOTES = {
    "separate_sample": "further samples, since the template writes earlier turns differently later",
    "earlier_answer_left_out": "answers not learnt, since --separate-answers last keeps the last",
    "split_token": "answers whose beginning is tokenized apart from the prompt, as a server does, "
    "where a longer token spans both in the entire conversation",
    "thinking_on": "answers with reasoning, after the prompt with enable_thinking true",
    "thinking_off": "answers without reasoning, after the prompt with enable_thinking false",
    "after_question_alone": "answers taken from the last question alone, since the template writes "
    "what precedes it only while it is unanswered",
    "not_learnt": "answers not learnt, since the template does not write them after its own "
    "prompt, or in no generation block",
    "special_as_text": "answers in which the name of a special token, such as a call written as "
    "text, is spelled out and not that token",
    "weight_not_used": "turns of other roles with a loss weight, since only answers are learnt",
    "no_end_of_turn": "answers that the template ends with no special token",
    "reasoning_left_out": "answers whose reasoning the template does not write",
    "text_left_out": "turns whose text the template does not write as it is",
    "call_left_out": "tool calls that the template does not write",
    "call_as_text": "tool calls whose arguments are no JSON object, and are written as a text",
    "tool_left_out": "tools that the template does not write",
}
"""Names of the counts of a tokenization, with their meanings."""


@dataclass(slots=True)
class Sample:
    """Token ids and loss weights of one or more answers with what precedes them.

    `answers` are the indices of the turns that are learnt.
    """

    ids: list[int]
    weights: list[float]
    answers: list[int]

    @property
    def supervised_end(self) -> int:
        """Position after the last token with a weight."""
        return max(n for n, weight in enumerate(self.weights, 1) if weight)


@dataclass(frozen=True, slots=True)
class Supervised:
    """Samples of a conversation.

    `length` is the number of tokens of the entire conversation. `notes` counts what a reader of the
    report should know, by the names of `NOTES`.
    """

    samples: tuple[Sample, ...]
    length: int
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Renderings of a conversation before and after an answer; `way` names how they were made."""

    turn: int
    weight: float
    prompt: Rendering
    done: Rendering
    way: str = ""


def supervise(
    chats: Sequence[Chat], template: ChatTemplate, *, last_only: bool = False
) -> list[Supervised | TemplateError]:
    """Return the samples of each conversation, or the template's refusal.

    An assistant turn of nonzero loss weight is learnt, up to its last special token or within the
    template's {% generation %} blocks; other tokens have weight 0.

    Args:
        chats: The conversations.
        template: The model's template.
        last_only: Whether a conversation with more than one sample keeps only the last one.
    """
    results: list[Supervised | TemplateError] = []
    for chat in chats:
        try:
            encoded = _encoded(_answers(chat, template), template)
            results.append(_supervised(chat, encoded, template, last_only=last_only))
        except TemplateError as error:
            results.append(error)
    return results


def _encoded(
    answers: Iterable[_Answer], template: ChatTemplate
) -> Iterator[tuple[_Answer, Encoding, Encoding]]:
    """Yield answers with their encoded renderings, of which few are in memory at a time."""
    batch: list[_Answer] = []
    size = 0
    for answer in answers:
        batch.append(answer)
        size += len(answer.prompt.text) + len(answer.done.text)
        if size > BATCH_CHARACTERS:
            yield from _encode(batch, template)
            batch, size = [], 0
    yield from _encode(batch, template)


def _encode(
    answers: Sequence[_Answer], template: ChatTemplate
) -> Iterator[tuple[_Answer, Encoding, Encoding]]:
    found = template.encode([text for answer in answers for text in (answer.prompt, answer.done)])
    return zip(answers, found[::2], found[1::2], strict=True)


def _answers(chat: Chat, template: ChatTemplate) -> Iterator[_Answer]:
    """Render the conversation before and after each answer that is learnt."""
    mark = template.mark_for(chat)
    for position, turn in enumerate(chat.turns):
        if turn.role == "assistant" and turn.loss_weight:
            found = _renderings(chat, position, template, mark)
            yield next((answer for answer in found if _continues(answer)), found[0])


def _renderings(chat: Chat, position: int, template: ChatTemplate, mark: str) -> list[_Answer]:
    """Return the renderings to try for one answer, the preferred one first.

    They end with the first one in which the conversation continues the prompt. A template may have
    a variable for whether an answer has reasoning, which a request to the server sets. Or it may
    write something before the last question, and leave it out once the answer is there: then the
    answer is taken from the question alone.
    """
    turn = chat.turns[position]
    before = Chat(chat.turns[:position], chat.tools)
    after = Chat(chat.turns[: position + 1], chat.tools)

    def answer(way: str = "", **arguments: Any) -> _Answer:
        prompt = template.render(before, add_generation_prompt=True, arguments=arguments, mark=mark)
        done = template.render(after, arguments=arguments, mark=mark)
        return _Answer(position, turn.loss_weight, prompt, done, way)

    found = [answer()]
    chooses = THINKING in template.source and THINKING not in template.arguments
    if not _continues(found[-1]) and chooses:
        thinks = bool(split_reasoning(turn)[0])
        found.append(answer(f"thinking_{'on' if thinks else 'off'}", **{THINKING: thinks}))
    if not _continues(found[-1]) and (alone := _after_question_alone(found[0], chat, template)):
        found.append(alone)
    return found


def _after_question_alone(answer: _Answer, chat: Chat, template: ChatTemplate) -> _Answer | None:
    """Return the answer after its prompt, as it is written after the last question alone."""
    question = Chat(chat.turns[answer.turn - 1 : answer.turn])
    both = Chat(chat.turns[answer.turn - 1 : answer.turn + 1])
    if answer.prompt.spans is not None:
        return None
    try:
        mark = answer.prompt.mark
        prompt = template.render(question, add_generation_prompt=True, mark=mark)
        done = template.render(both, mark=mark)
    except TemplateError:
        return None
    if not done.text.startswith(prompt.text):
        return None
    rest = done.text[len(prompt.text) :]
    written = Rendering(answer.prompt.text + rest, done.mark)
    return _Answer(answer.turn, answer.weight, answer.prompt, written, "after_question_alone")


def _continues(answer: _Answer) -> bool:
    return answer.done.text.startswith(answer.prompt.text)


def _supervised(
    chat: Chat,
    answers: Iterable[tuple[_Answer, Encoding, Encoding]],
    template: ChatTemplate,
    *,
    last_only: bool,
) -> Supervised:
    samples: list[Sample] = []
    notes: Counter[str] = Counter()
    last: _Answer | None = None
    length = 0
    for answer, prompt, done in answers:
        last, length = answer, max(length, len(done.ids))
        notes["special_as_text"] += any(
            map(template.has_name, split_reasoning(chat.turns[answer.turn]))
        )
        if reasoning_left_out(chat.turns[answer.turn], answer.done.text, answer.done.mark):
            notes["reasoning_left_out"] += 1
        found = _continued(answer, prompt, done, template)
        if found is None:
            notes["not_learnt"] += 1
            continue
        completion, is_split = found
        notes["split_token"] += is_split
        notes[answer.way] += bool(answer.way)
        weights = _weights(answer, completion, template)
        if not any(weights):
            notes["not_learnt"] += 1
            continue
        notes["no_end_of_turn"] += not _has_end(completion, weights, template)
        ids = prompt.ids + completion.ids
        if samples and prompt.ids[: (end := samples[-1].supervised_end)] == samples[-1].ids[:end]:
            earlier, learnt = samples[-1].weights[:end], samples[-1].answers
            samples[-1] = Sample(
                ids=ids,
                weights=earlier + [0.0] * (len(prompt.ids) - end) + weights,
                answers=[*learnt, answer.turn],
            )
        else:
            samples.append(Sample(ids, [0.0] * len(prompt.ids) + weights, [answer.turn]))
    if last is not None:
        seen = Chat(chat.turns[: last.turn + 1], chat.tools)
        notes += left_out(seen, last.done.text, last.done.mark)
    notes["weight_not_used"] = sum(
        turn.role != "assistant" and turn.loss_weight > 0 for turn in chat.turns
    )
    notes["separate_sample"] = max(len(samples) - 1, 0)
    if last_only and len(samples) > 1:
        notes["earlier_answer_left_out"] = sum(len(sample.answers) for sample in samples[:-1])
        samples = samples[-1:]
    return Supervised(tuple(samples), length, +notes)


def _continued(
    answer: _Answer, prompt: Encoding, done: Encoding, template: ChatTemplate
) -> tuple[Encoding, bool] | None:
    """Return what follows the prompt's ids, and whether it had to be tokenized separately.

    None if the template does not write the answer after the prompt.
    """
    size = len(prompt.ids)
    if done.ids[:size] == prompt.ids:
        return Encoding(done.ids[size:], done.offsets[size:]), False
    if not _continues(answer):
        return None
    before = answer.prompt.text
    # The last token of the prompt and the first of the answer would be one: the model would be
    # asked after ids that it was never trained on.
    rest = answer.done.text[len(before) :]
    (alone,) = template.encode([Rendering(rest, answer.done.mark)])
    if template.decode(alone.ids) != rest.replace(answer.done.mark, ""):
        return None  # a tokenizer that begins each text with a space
    shifted = [(start + len(before), end + len(before)) for start, end in alone.offsets]
    return Encoding(alone.ids, shifted), True


def _weights(answer: _Answer, completion: Encoding, template: ChatTemplate) -> list[float]:
    if answer.done.spans is not None:
        spans = answer.done.spans
        return [
            answer.weight if any(start < b and a < end for a, b in spans) else 0.0
            for start, end in completion.offsets
        ]
    ids = completion.ids
    end = max((n for n, id in enumerate(ids, 1) if template.is_special(id)), default=0)
    if not end or template.shows_text(ids[end:]):
        end = len(ids)  # that token begins a part of the answer, such as a call
    return [answer.weight] * end + [0.0] * (len(ids) - end)


def _has_end(completion: Encoding, weights: Sequence[float], template: ChatTemplate) -> bool:
    """Return whether what is learnt ends with a special token, apart from spaces."""
    ids = [id for id, weight in zip(completion.ids, weights, strict=True) if weight]
    end = max((n for n, id in enumerate(ids, 1) if template.is_special(id)), default=0)
    return end > 0 and not template.shows_text(ids[end:])


def reasoning_left_out(turn: Turn, rendered: str, mark: str) -> bool:
    """Return whether an answer has reasoning that is not in the rendered conversation."""
    reasoning, _ = split_reasoning(turn)
    return reasoning.strip() not in rendered.replace(mark, "")


def left_out(chat: Chat, rendered: str, mark: str) -> Counter[str]:
    """Count what a conversation has and its rendering has not.

    "text_left_out" counts turns whose text is missing, apart from spaces at its ends;
    "call_left_out" calls whose function or one of whose arguments is missing; "call_as_text" those
    whose arguments are no JSON object; "tool_left_out" tools whose name is missing.
    """
    written = rendered.replace(mark, "")
    found: Counter[str] = Counter()
    for turn in chat.turns:
        _, text = split_reasoning(turn)
        found["text_left_out"] += text.strip() not in written
        found["call_as_text"] += sum(not is_object(call.arguments) for call in turn.tool_calls)
        found["call_left_out"] += sum(
            not all(leaf in written for leaf in (call.name, *_leaves(call.arguments)))
            for call in turn.tool_calls
        )
    for tool in json.loads(chat.tools) if chat.tools else []:
        found["tool_left_out"] += str((tool.get("function") or tool).get("name")) not in written
    return +found


def _leaves(arguments: str) -> list[str]:
    """Return words and numbers of a call's arguments, which every syntax writes the same."""
    return re.findall(r"[^\W_]{3,}", arguments) if "\\" not in arguments else []
