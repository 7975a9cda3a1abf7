"""Own questions: conversations whose last answer is the reference.

The questions are the conversations that prepare reads, such as OpenAI's `messages` (JSON lines):
everything before the last answer is sent to the model. Without a judge, an answer counts if it is
the reference (exact match); a judge is shown the reference and rates the answer from 1 to 10.

Both forms have predecessors: inspect's `match` (location exact) and `model_graded_qa`; MT-bench's
reference-guided rating.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ochat_ray.data.records import ReadOptions, records_of
from ochat_ray.errors import UserError
from ochat_ray.evaluate.config import EXACT_MATCH
from ochat_ray.evaluate.questions import Answers, Question, json_records
from ochat_ray.evaluate.records import Call, key_of
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.suite import Judgments, Suite
from ochat_ray.evaluate.verdicts import rating_of, without_reasoning
from ochat_ray.schema import Conversation, Drop

PROMPT_NAMES = frozenset({"conversation", "question", "reference", "answer"})
"""Placeholders that a judge prompt may contain."""

EQUAL, DIFFERENT = "equal", "different"

_QUOTES = "\"'`“”„‘’«»*_"
_ENDS = ".!。！"
_NAMES = {"user": "Person", "assistant": "Assistant"}


Unusable = dict[str, list[str]]
"""Ids of the conversations that are no questions, by reason."""


def read_conversations(path: str) -> tuple[list[Question], Answers, Unusable]:
    """Read the conversations of a file as questions with their references.

    Raises:
        UserError: The file cannot be read, or no conversation is usable.
    """
    questions: dict[str, Question] = {}
    references: dict[str, tuple[str, ...]] = {}
    unusable: Unusable = {}
    options = ReadOptions(answers="markdown", tools=True)
    for index, (where, record) in enumerate(json_records(path)):
        category = record.get("category")
        if not isinstance(category, str | None):
            raise UserError(f"{where}: `category` must be text, not {type(category).__name__}")
        for found in records_of(record, source=path, index=index, options=options):
            if reason := _unusable(found):
                unusable.setdefault(reason, []).append(found.id)
                continue
            assert isinstance(found, Conversation)
            if found.id in questions:
                raise UserError(f"{where}: the id {found.id!r} occurs twice")
            *context, question, answer = found.turns
            reasoning = tuple(turn.reasoning for turn in context)
            questions[found.id] = Question(
                id=found.id,
                category=category or "",
                turns=(question.text,),
                context=tuple((turn.role, turn.text) for turn in context),
                reasoning=reasoning if any(reasoning) else (),
            )
            references[found.id] = (without_reasoning(answer.text).strip(),)
    if not questions:
        reasons = ", ".join(f"{reason} {len(ids)}" for reason, ids in unusable.items())
        raise UserError(
            f"{path}: no conversation can be used ({reasons or 'it is empty'}); each needs "
            "`messages` with a user's message and its answer at the end"
        )
    return list(questions.values()), Answers(model="", turns=references), unusable


def _unusable(found: Conversation | Drop) -> str:
    """Return the reason why a conversation is no question; empty if it is one."""
    if isinstance(found, Drop):
        return str(found.reason)
    turns = found.turns
    if found.tools or any(turn.tool_calls or turn.role == "tool" for turn in turns):
        return "tools"
    if not turns or turns[-1].role != "assistant":
        return "no answer at the end"
    if not without_reasoning(turns[-1].text).strip():
        return "empty answer at the end"
    if not turns[-1].loss_weight:
        return "answer of weight 0 at the end"
    if len(turns) < 2 or turns[-2].role != "user" or not turns[-2].text.strip():
        return "no question before the answer"
    return ""


def normalized(text: str) -> str:
    """Return a text as the exact match compares it.

    Reasoning is removed, Unicode is normalized (NFKC) and case folded, runs of whitespace are one
    space, and quotation marks, Markdown's emphasis and full stops around the text are removed.
    """
    folded = unicodedata.normalize("NFKC", without_reasoning(text)).casefold()
    line = " ".join(folded.split())
    while line and (line[0] in _QUOTES or line[-1] in _QUOTES + _ENDS):
        line = line.lstrip(_QUOTES).rstrip(_QUOTES + _ENDS).strip()
    return line


class _OwnQuestions(Suite):
    """Own questions, with the references and what could not be used."""

    references: Answers

    def read_questions(self) -> list[Question]:
        found, self._references, self.unusable = read_conversations(self.config.questions)
        return found[: self.config.limit]

    def read_references(self) -> Answers:
        return self._references

    def temperature(self, _category: str) -> float:
        return 0.0

    @property
    def questions_digest(self) -> str:
        """Digest of the questions with their references."""
        return key_of([q.fields() | {"reference": self._reference(q)} for q in self.questions])

    def notes(self) -> list[str]:
        return [
            f"{self.config.questions}: not used: {reason} {len(ids)} (first {ids[0][:80]!r})."
            for reason, ids in self.unusable.items()
        ]

    def _reference(self, question: Question) -> str:
        return self.references.turns[question.id][0]

    def _about(self, question: Question, model: Answers, judge: str) -> dict[str, Any]:
        return {
            "suite": "own", "question_id": question.id, "category": question.category,
            "model": model.model, "judge": judge,
        }  # fmt: skip


class ExactMatch(_OwnQuestions):
    """Suite `own` without a judge: the share of answers that are the reference."""

    unit = "% of answers that match the reference"
    local_judge = EXACT_MATCH

    def calls(
        self, questions: Sequence[Question], model: Answers, _baseline: Answers | None
    ) -> list[Call]:
        """Return one comparison per question."""
        found = []
        for question in questions:
            answer, reference = model.turns[question.id][0], self._reference(question)
            body = {"answer": normalized(answer), "reference": normalized(reference)}
            key = key_of(EXACT_MATCH, question.id, body)
            about = self._about(question, model, EXACT_MATCH)
            found.append(Call(key=key, body=body, about=about))
        return found

    def decide(self, call: Call) -> dict[str, Any]:
        """Compare an answer with its reference."""
        answer, reference = call.body["answer"], call.body["reference"]
        return {"reason": EQUAL if answer == reference else DIFFERENT, "text": answer}

    def read(self, judgment: Mapping[str, Any]) -> str:
        return str(judgment["reason"])

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        return {j["question_id"]: Part(100.0 * (j["reason"] == EQUAL), 1) for j in judgments}

    def more(self, judgments: Judgments) -> dict[str, Any]:
        """Return the numbers of answers that are equal to the reference and different from it."""
        return {"matches": dict(Counter(map(self.read, judgments)))}


class RatedByReference(_OwnQuestions):
    """Suite `own` with a judge, which rates an answer beside the reference."""

    prompt_file = "own"
    prompt_names = PROMPT_NAMES
    unit = "of 10, by the reference"

    def calls(
        self, questions: Sequence[Question], model: Answers, _baseline: Answers | None
    ) -> list[Call]:
        """Return one rating per question."""
        judge = self.config.judging(temperature=0.0)
        found = []
        for question in questions:
            prompt = self.prompts.for_category(question.category)
            answer = model.turns[question.id][0]
            values = {
                "conversation": _transcript(question),
                "question": question.turns[0],
                "reference": self._reference(question),
                "answer": answer,
            }
            about = self._about(question, model, judge["model"]) | {
                "prompt": prompt.name,
                "prompt_digest": prompt.digest,
                "empty": [not answer.strip()],
            }
            found.append(prompt.call(values, "own", question.id, judge=judge, about=about))
        return found

    def read(self, judgment: Mapping[str, Any]) -> float | None:
        return rating_of(judgment)

    def shown(self, found: float) -> str:
        return f"{found:g}"

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        ratings = {j["question_id"]: rating_of(j) for j in judgments}
        return {id: Part(0, 0) if r is None else Part(r, 1) for id, r in ratings.items()}


def _transcript(question: Question) -> str:
    turns = [*question.context, ("user", question.turns[0])]
    return "\n\n".join(f"{_NAMES.get(role, role.capitalize())}: {text}" for role, text in turns)
