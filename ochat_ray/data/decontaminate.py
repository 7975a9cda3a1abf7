"""Find evaluation questions in conversations.

A model trained on the questions of a benchmark is scored on its memory.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from ochat_ray.data.dedup.minhash import words
from ochat_ray.errors import UserError, first_line
from ochat_ray.run_dir import open_location

# The shortest first questions of Vicuna and of MT-bench have 8 words. Shorter ones are only
# follow-ups such as "Can you parallelize it?", which are not specific outside their context.
MIN_WORDS = 8


@dataclass(frozen=True, slots=True)
class Question:
    """Name of a question, "file-stem:id", and its words, each between single spaces."""

    name: str
    text: str
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions in the order of their files, with an index to find them in a text.

    `by_word` lists each question of MIN_WORDS or more under the word that the fewest questions
    contain; `by_text` has the shorter ones, which match only an entire text. The values are
    positions in `questions`.
    """

    questions: tuple[Question, ...]
    by_word: dict[str, list[int]]
    by_text: dict[str, int]

    def find(self, texts: Sequence[str]) -> str | None:
        """Return the name of the first question that one of the texts contains, or None.

        Whole words in the same order count, ignoring case, punctuation and white space.
        """
        found = [position for text in texts for position in self._contained(text)]
        return self.questions[min(found)].name if found else None

    def _contained(self, text: str) -> Iterator[int]:
        split = words(text)
        present, framed = set(split), _framed(split)
        if framed in self.by_text:
            yield self.by_text[framed]
        for word in present & self.by_word.keys():
            for position in self.by_word[word]:
                question = self.questions[position]
                # The word set first: it excludes nearly all questions without a text search.
                if question.words <= present and question.text in framed:
                    yield position


def load_questions(paths: Sequence[str]) -> Questions:
    """Load questions from FastChat's question.jsonl and AlpacaEval's JSON files, local or URIs.

    Every turn of a multi-turn question counts as a question.

    Raises:
        UserError: A file cannot be read, or has another format.
    """
    stems = Counter(_stem(path) for path in paths)
    found = []
    for path in paths:
        # FastChat names each benchmark's file question.jsonl, in a folder named for the benchmark.
        folder = posixpath.basename(posixpath.dirname(path))
        file = f"{folder}/{_stem(path)}" if stems[_stem(path)] > 1 and folder else _stem(path)
        found += [_question(f"{file}:{id}", text) for id, text in _read(path)]
    return _indexed([question for question in found if question.words])


def _indexed(questions: Sequence[Question]) -> Questions:
    frequency = Counter(word for question in questions for word in question.words)
    by_word: defaultdict[str, list[int]] = defaultdict(list)
    by_text: dict[str, int] = {}
    for position, question in enumerate(questions):
        if len(question.text.split()) < MIN_WORDS:
            by_text.setdefault(question.text, position)
        else:
            # Among equally rare words the longest is probably the rarest elsewhere.
            rarest = min(question.words, key=lambda word: (frequency[word], -len(word), word))
            by_word[rarest].append(position)
    return Questions(questions=tuple(questions), by_word=dict(by_word), by_text=by_text)


def _question(name: str, text: str) -> Question:
    split = words(text)
    return Question(name=name, text=_framed(split), words=frozenset(split))


def _framed(split: Sequence[str]) -> str:
    """Join the words, with a space at both ends so that matches begin and end at word borders."""
    return f" {' '.join(split)} "


def _stem(path: str) -> str:
    return posixpath.basename(path).split(".")[0]


def _read(path: str) -> list[tuple[str, str]]:
    """Return (id, text) of each question in a file."""
    fs, inner = open_location(path)
    try:
        with fs.open_input_stream(inner) as stream:
            data = stream.read().removeprefix(b"\xef\xbb\xbf")
    except (OSError, pa.ArrowInvalid) as error:
        reason = first_line(error)
        raise UserError(f"cannot read the questions file {path}: {reason}") from error
    if not data.strip():
        raise UserError(f"the questions file {path} is empty")
    try:
        return list(_parse(data))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the questions file {path} is neither FastChat's question.jsonl nor AlpacaEval's JSON "
            f"({type(error).__name__}: {error}); give --decontaminate one of those"
        ) from error


def _parse(data: bytes) -> Iterator[tuple[str, str]]:
    if data.lstrip().startswith(b"["):
        for index, record in enumerate(orjson.loads(data)):
            yield str(index), _text(record["instruction"])
        return
    for line in data.splitlines():
        if line.strip():
            record = orjson.loads(line)
            for text in record["turns"] if "turns" in record else [record["text"]]:
                yield str(record["question_id"]), _text(text)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) < 2:  # one character: a string instead of a list
        raise TypeError(f"{value!r} is not a question")
    return value
