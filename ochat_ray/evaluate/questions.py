"""Read question files and answer files of the benchmarks.

Source of the formats: FastChat's llm_judge (question.jsonl, model_answer/*.jsonl,
reference_answer/*.jsonl), lmarena/arena-hard-auto (question.jsonl, model_answer/*.jsonl),
OpenChat's ochat/evaluation of July 2023 (question.jsonl, answers with `answer`), alpaca_eval
(model_outputs.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """User turns of one question. In AlpacaEval's files the instruction is also the id.

    `context` has the role and text of earlier messages, which are sent before the first turn, and
    `reasoning` that of each of them, if any has some.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    context: tuple[tuple[str, str], ...] = ()
    reasoning: tuple[str, ...] = ()

    def earlier_messages(self) -> list[dict[str, str]]:
        """Return the messages before the first turn."""
        messages = [{"role": role, "content": text} for role, text in self.context]
        for message, reasoning in zip(messages, self.reasoning, strict=False):
            if reasoning:
                message["reasoning_content"] = reasoning
        return messages

    def fields(self) -> dict[str, Any]:
        """Return the fields for a digest; without context those of earlier versions."""
        later = ("context", "reasoning")
        return {name: value for name, value in asdict(self).items() if value or name not in later}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """One model's answers by question id, one text per turn."""

    model: str
    turns: Mapping[str, tuple[str, ...]]


def read_questions(path: str | Path, *, limit: int | None = None) -> list[Question]:
    """Read the first `limit` questions of a JSONL file or a JSON list.

    Raises:
        UserError: The file cannot be read, or a record is not a question; the line names it.
    """
    questions: dict[str, Question] = {}
    for where, record in json_records(path):
        question = _question(record, where)
        if question.id in questions:
            raise UserError(f"{where}: question {question.id!r} occurs twice")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{path}: no questions")
    return list(questions.values())[:limit]


def read_answers(path: str | Path, *, model: str | None = None) -> Answers:
    """Read one model's answers from a file of FastChat, OpenChat or alpaca_eval.

    Raises:
        UserError: The file cannot be read, a record is not an answer, or the answers are not all
            from
            `model` (or, if that is None, from a single model).
    """
    turns: dict[str, tuple[str, ...]] = {}
    names: dict[str, str] = {}
    for where, record in json_records(path):
        id, found = _answer(record, where)
        if turns.setdefault(id, found) != found:
            raise UserError(f"{where}: another answer to question {id!r}; give one per question")
        name = record.get("model_id") or record.get("generator") or record.get("model")
        if isinstance(name, str):
            names.setdefault(name, where)
    if not turns:
        raise UserError(f"{path}: no answers")
    if len(names) > 1 or (model is not None and any(name != model for name in names)):
        wanted = "one model" if model is None else repr(model)
        raise UserError(f"{path} is of {' and '.join(sorted(names))}, not of {wanted}")
    return Answers(model=model or next(iter(names), Path(path).stem), turns=turns)


def check_complete(answers: Answers, questions: Sequence[Question]) -> None:
    """Check that every question has an answer with as many turns.

    Raises:
        UserError: Answers are missing, or have turns that no question has; the line names the
            first and their number.
    """
    missing = [q.id for q in questions if len(answers.turns.get(q.id, ())) < len(q.turns)]
    if missing:
        raise UserError(
            f"{answers.model} has no complete answer to {len(missing)} of {len(questions)} "
            f"questions, first {missing[0]!r}; run the step `answer`, or give another file"
        )
    more = [q.id for q in questions if len(answers.turns[q.id]) > len(q.turns)]
    if more:
        raise UserError(
            f"{answers.model} answers {len(more)} of {len(questions)} questions with more turns "
            f"than they have, first {more[0]!r}; the judge would not see them; give another file"
        )


def _question(record: Mapping[str, Any], where: str) -> Question:
    if "instruction" in record:
        turns: Any = [record["instruction"]]
        if record.get("input"):
            turns = [f"{record['instruction']}\n\n{record['input']}"]
        id, category = record["instruction"], record.get("dataset", "")
    else:
        # Arena-Hard has `uid` and `prompt`.
        turns = record.get("turns", [record.get("text", record.get("prompt"))])
        id, category = record.get("question_id", record.get("uid")), record.get("category", "")
    if not _texts(turns) or id in (None, ""):
        raise UserError(f"{where}: no question; `question_id` and `text` or `turns` are needed")
    if not all(turn.strip() for turn in turns):
        raise UserError(f"{where}: question {str(id)!r} has an empty turn")
    return Question(id=str(id), category=str(category), turns=tuple(turns))


def _answer(record: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    id = record.get("question_id", record.get("instruction", record.get("uid")))
    # FastChat's first format; in OpenChat's, `text` is the question.
    text = record.get("text") if "answer_id" in record else None
    turns: Any = [record.get("answer", record.get("output", text))]
    if "choices" in record:
        try:
            turns = record["choices"][0]["turns"]
        except (LookupError, TypeError):
            turns = None
    if "messages" in record:
        turns = _arena_answer(record["messages"])
    if id is None or not _texts(turns):
        raise UserError(
            f"{where}: no answer; `question_id` with `choices` or `answer`, or `instruction` "
            "with `output` are needed"
        )
    return str(id), tuple(turns)


def _arena_answer(messages: Any) -> list[Any] | None:
    """Return the assistant's texts of Arena-Hard's messages."""
    try:
        contents = [m["content"] for m in messages if m["role"] == "assistant"]
    except (TypeError, KeyError):
        return None
    return [c.get("answer") if isinstance(c, dict) else c for c in contents]


def _texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(v, str) for v in values)


def json_records(path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each record of a JSON list or of JSON lines with its location.

    Raises:
        UserError: The file cannot be read, or a record is no JSON object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            numbered = list(enumerate(json.loads(text), 1))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: no JSON: {error}") from error
        named = [(f"{path}, record {number}", value) for number, value in numbered]
    else:
        lines = ((f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), 1))
        named = [(where, _value(line, where)) for where, line in lines if line.strip()]
    for where, value in named:
        if not isinstance(value, dict):
            raise UserError(f"{where}: no JSON object")
        yield where, value


def _value(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON: {error}") from error
