"""Does a conversation contain a question of an evaluation?

A model that was trained on a benchmark's question is scored on its memory.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from ochat_ray.data.near_duplicates import words
from ochat_ray.errors import UserError
from ochat_ray.run_dir import open_location

# The shortest of the 80 first questions of Vicuna and of MT-bench each has 8 words; of fewer are
# only follow-ups such as "Can you parallelize it?", which say little out of their place.
MIN_WORDS = 8


@dataclass(frozen=True, slots=True)
class Question:
    """A question's name, "file-stem:id", and its words, each between single spaces."""

    name: str
    text: str
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions in the order of their files, and how to find those that a text may contain.

    `by_word` files a question of MIN_WORDS and more under the one of its words that the fewest
    questions have; `by_text` has the shorter ones, which count only as a whole text. The values
    are positions in `questions`.
    """

    questions: tuple[Question, ...]
    by_word: dict[str, list[int]]
    by_text: dict[str, int]

    def find(self, texts: Sequence[str]) -> str | None:
        """The name of the first question that one of the texts contains, or None.

        As whole words in the same order, whatever the case, punctuation and white space.
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
                # The set of words first: it rules out nearly all without a walk along the text.
                if question.words <= present and question.text in framed:
                    yield position


def load_questions(paths: Sequence[str]) -> Questions:
    """The questions of FastChat's question.jsonl and of AlpacaEval's JSON files, local or URIs.

    Every turn of a question of several turns counts as a question.

    Raises:
        UserError: a file cannot be read, or is of another format.
    """
    stems = Counter(_stem(path) for path in paths)
    found = []
    for path in paths:
        # FastChat calls each benchmark's file question.jsonl, in a folder of the benchmark's name.
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
            # Among equally rare words the longest is the rarest elsewhere.
            rarest = min(question.words, key=lambda word: (frequency[word], -len(word), word))
            by_word[rarest].append(position)
    return Questions(questions=tuple(questions), by_word=dict(by_word), by_text=by_text)


def _question(name: str, text: str) -> Question:
    split = words(text)
    return Question(name=name, text=_framed(split), words=frozenset(split))


def _framed(split: Sequence[str]) -> str:
    """With a space at both ends, so that a part of it begins and ends with whole words."""
    return f" {' '.join(split)} "


def _stem(path: str) -> str:
    return posixpath.basename(path).split(".")[0]


def _read(path: str) -> list[tuple[str, str]]:
    """(id, text) of each question in a file."""
    fs, inner = open_location(path)
    try:
        with fs.open_input_stream(inner) as stream:
            data = stream.read().removeprefix(b"\xef\xbb\xbf")
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
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
    if not isinstance(value, str) or len(value) < 2:  # of one: a string where a list should be
        raise TypeError(f"{value!r} is not a question")
    return value
