"""Base class of the benchmark suites: questions, judge calls, and scores from judgments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.bias import Judged, outcomes
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.prompts import Prompts, read_prompts
from ochat_ray.evaluate.questions import Answers, Question, read_answers, read_questions
from ochat_ray.evaluate.records import Call, key_of
from ochat_ray.evaluate.stats import Part

Judgments = Sequence[Mapping[str, Any]]


class Suite(ABC):
    """Questions of one configuration, with the rules for judging answers and for scoring judgments.

    Attributes:
        prompt_file: Name of our own prompt file; empty if no model judges.
        prompt_names: Placeholders that a judge prompt may contain.
        unit: Unit of the score.
        even: Score of the baseline against itself; None if nothing is compared.
        categories: Valid question categories; None for any.
        turns: Maximum turns of a question that the judge is shown.
        votes: Whether a question's part counts votes, with which it enters the ratings.
        local_judge: Name of what judges on this machine (see `decide`); empty if a model judges.
        judgment_unit: Name of the local judge's judgments, for the progress.
        file_names: Names of the files that `files` returns.
    """

    prompt_file = ""
    prompt_names: frozenset[str] = frozenset()
    unit: str
    even: float | None = None
    categories: frozenset[str] | None = None
    turns = 1
    votes = False
    local_judge = ""
    judgment_unit = "judgments"
    file_names: tuple[str, ...] = ()

    def __init__(self, config: EvaluateConfig) -> None:
        """Read and check the input files.

        Raises:
            UserError: A file is invalid, or the suite cannot score its questions.
        """
        self.config = config
        self.questions = self.read_questions()
        self.prompts = (
            read_prompts(config.prompts or None, suite=self.prompt_file, names=self.prompt_names)
            if self.prompt_file
            else Prompts({})
        )
        self.references = self.read_references()
        self.check()

    def read_questions(self) -> list[Question]:
        """Return the questions of the configuration."""
        return read_questions(self.config.questions, limit=self.config.limit)

    def read_references(self) -> Answers | None:
        """Return the reference answers, if there are any."""
        return read_answers(self.config.references) if self.config.references else None

    @property
    def questions_digest(self) -> str:
        """Digest of the questions, which tells whether two evaluations had the same."""
        return key_of([question.fields() for question in self.questions])

    def notes(self) -> list[str]:
        """Return sentences on what of the question file is not used."""
        return []

    def check(self) -> None:
        """Check that the suite can score the questions.

        Raises:
            UserError: It cannot.
        """
        self._check_categories()
        self._check_turns()

    def _check_categories(self) -> None:
        """Check that each question's category is known.

        The category selects the judge prompt, the temperature and whether a reference answer is
        needed.
        """
        if self.categories is None:
            return
        known = self.categories | self.prompts.categories | {""}
        for question in self.questions:
            if question.category not in known:
                raise UserError(
                    f"{self.config.questions}: question {question.id!r} has the unknown category "
                    f"{question.category!r}; {self.config.suite} has "
                    f"{', '.join(sorted(self.categories))}. Give one of these or none, or "
                    "--prompts with one for it"
                )

    def _check_turns(self) -> None:
        """Check that the judge is shown all turns of each question."""
        for question in self.questions:
            if len(question.turns) > self.turns:
                raise UserError(
                    f"{self.config.questions}: question {question.id!r} has {len(question.turns)} "
                    f"turns, of which the judge of {self.config.suite} sees {self.turns}; "
                    "remove the others, or give another --suite"
                )

    def temperature(self, _category: str) -> float:
        """Return the temperature of answers to a category."""
        return 0.7

    @abstractmethod
    def calls(
        self, questions: Sequence[Question], model: Answers, baseline: Answers | None
    ) -> list[Call]:
        """Return the judge calls for the answers of the model and the baseline."""

    def decide(self, call: Call) -> dict[str, Any]:
        """Return the local judge's fields of a judgment."""
        raise NotImplementedError

    @abstractmethod
    def read(self, judgment: Mapping[str, Any]) -> Any:
        """Parse a judgment; None if it is unreadable."""

    def shown(self, found: Any) -> str:
        """Format a parsed judgment for the report."""
        return str(found)

    @abstractmethod
    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return each question's contribution to the score, without unreadable judgments."""

    def zero_parts(self, _judgments: Judgments) -> dict[str, Part] | None:
        """Return the same with unreadable judgments as zeros; None if there is no such rule."""
        return None

    def judged(self, _judgments: Judgments) -> Iterable[Judged]:
        """Yield the comparisons for the bias statistics."""
        return ()

    def outcomes(self, judgments: Judgments) -> dict[str, float]:
        """Return the model's outcome by question: 1 a win, 0 a loss, 0.5 a tie."""
        return outcomes(self.judged(judgments))

    def more(self, _judgments: Judgments) -> dict[str, Any]:
        """Return additional entries of results.json."""
        return {}

    def files(
        self,
        _questions: Sequence[Question],
        _model: Answers,
        _baseline: Answers | None,
        _judgments: Judgments,
    ) -> dict[str, str]:
        """Return additional output files, in the formats of other projects."""
        return {}
