"""Session of one evaluation: its suite, and the answers and judgments recorded so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ochat_ray.errors import UserError
from ochat_ray.evaluate.asking import Budget, Prices, answer_call
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.human_labels import read_labels
from ochat_ray.evaluate.identities import EMPTY, Identities
from ochat_ray.evaluate.outputs import MODELS, REPORT, RESULTS, TABLE, claim
from ochat_ray.evaluate.questions import Answers, Question, check_complete, read_answers
from ochat_ray.evaluate.records import CONTROL, FAILED, Call, Records, key_of
from ochat_ray.evaluate.suites import suite_of
from ochat_ray.run_dir import RunDir

ANSWERS = "answers.jsonl"
JUDGMENTS = "judgments.jsonl"


class Session:
    """The suite, the models and the records of one configuration.

    A context manager of the record files.

    Args:
        config: The configuration.
        endpoint_names: Names of endpoints by base URL, where the URL changes from run to run.
    """

    def __init__(self, config: EvaluateConfig, endpoint_names: Mapping[str, str] = EMPTY) -> None:
        if "://" in config.output:
            raise UserError(f"--output {config.output}: records are kept on this machine's disk")
        self.suite = suite_of(config)
        self.config = config = replace(config, judge=self.suite.local_judge or config.judge)
        self.questions = self.suite.questions
        self.prices = Prices.read(config.prices)
        self.budget = Budget(self.prices, config.max_cost)
        self._given = self._baseline_file()
        self.baseline = self._given.model if self._given else config.baseline
        scored = [self.baseline] if self.baseline and config.scores_baseline else []
        self.models = list(dict.fromkeys([*config.model, *scored]))
        self.human_labels = (
            read_labels(
                config.human_labels, self.questions, model=self.models[0], baseline=self.baseline
            )
            if config.human_labels
            else None
        )
        folder = Path(config.output).expanduser()
        needed = ("text", "reason") if self.suite.local_judge else ("text",)
        self.answers = Records(folder / ANSWERS, ("text",))
        self.judgments = Records(folder / JUDGMENTS, needed)
        self.output = RunDir.open(config.output)
        exports = [
            f"models/{quote(model, safe='')}/{name}"
            for model in self.models
            for name in self.suite.file_names
        ]
        claim(self.output, [RESULTS, REPORT, TABLE, MODELS, *exports])
        self.identities = Identities(
            self.output,
            config,
            (self.output.read_json(RESULTS) or {}).get("config", {}),
            "" if self.baseline in config.model else self.baseline,
            endpoint_names,
        )

    def _baseline_file(self) -> Answers | None:
        path, name = self.config.baseline_answers, self.config.baseline
        given = read_answers(path, model=name or None) if path else None
        if given and given.model in self.config.model:
            raise UserError(
                f"--baseline-answers {path} are of {given.model}, which is also a --model; give "
                "one of them another name"
            )
        if given and self.config.step == "all":
            check_complete(given, self.questions)
        return given

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_error: object) -> None:
        self.answers.close()
        self.judgments.close()

    def to_answer(self) -> list[str]:
        """Return the models to request answers from."""
        compared = [self.baseline] if self.baseline and self.config.compares else []
        given = self._given.model if self._given else None
        return [name for name in dict.fromkeys([*self.models, *compared]) if name != given]

    def answering(self, question: Question, model: str) -> dict[str, Any]:
        """Return the fields of a request for a model's answer, except its messages."""
        return self.config.answering(model, self.suite.temperature(question.category))

    def answers_of(self, model: str) -> Answers:
        """Return a model's recorded answers."""
        if self._given is not None and model == self.baseline:
            return self._given
        turns = {question.id: self._recorded(question, model) for question in self.questions}
        return Answers(model=model, turns=turns)

    def _recorded(self, question: Question, model: str) -> tuple[str, ...]:
        records = self.answer_records(question, model)
        return tuple(record["text"] for record in records if FAILED not in record)

    def answer_records(self, question: Question, model: str) -> list[dict[str, Any]]:
        """Return the records of a model's answers to the turns of a question; a refusal is last."""
        messages = question.earlier_messages()
        found: list[dict[str, Any]] = []
        version = self.identities.version("models", model)
        for number, turn in enumerate(question.turns):
            messages.append({"role": "user", "content": turn})
            fields = self.answering(question, model)
            key = answer_call(question, number, messages, fields, version).key
            if key not in self.answers:
                break
            found.append(self.answers[key])
            if FAILED in found[-1]:
                break
            messages.append({"role": "assistant", "content": found[-1]["text"]})
        return found

    def judged_questions(self, model: str) -> list[Question]:
        """Return the questions that neither the model nor a compared baseline refused."""
        names = (model, self.baseline) if self.config.compares else (model,)
        asked = [name for name in names if name in self.to_answer()]
        return [
            question
            for question in self.questions
            if not any(
                FAILED in record
                for name in asked
                for record in self.answer_records(question, name)[-1:]
            )
        ]

    def baseline_answers(self) -> Answers | None:
        """Return the baseline's recorded answers; None if nothing is compared."""
        return self.answers_of(self.baseline) if self.config.compares else None

    def judge_calls(self, model: str) -> list[Call]:
        """Return all judge calls about one model.

        Raises:
            UserError: An answer is missing.
        """
        own, baseline = self.answers_of(model), self.baseline_answers()
        questions = self.judged_questions(model)
        for answers in (own, baseline):
            if answers is not None:
                check_complete(answers, questions)
        return self.calls(own, baseline, questions)

    def calls(
        self, own: Answers, baseline: Answers | None, questions: Sequence[Question]
    ) -> list[Call]:
        """Return the judge calls about these answers; those of the control come last."""
        calls = self.suite.calls(questions, own, baseline)
        if self.config.control:
            # An answer compared with itself is the same call in both orders.
            calls += [
                replace(call, key=key_of(call.key, "control"), about={**call.about, CONTROL: True})
                for call in self.suite.calls(questions, own, own)
                if call.about["model_first"]
            ]
        version = self.identities.version("judges", self.config.judge)
        if not version:
            return calls
        return [replace(call, key=key_of(call.key, version)) for call in calls]

    def answered_again(self, record: Mapping[str, Any]) -> bool:
        """Return whether the call of a recorded answer is made again."""
        retry = self.config.retry
        return ("failed" if FAILED in record else "empty") in retry and not record["text"].strip()

    def judged_again(self, record: Mapping[str, Any]) -> bool:
        """Return whether the call of a recorded judgment is made again; an empty one is none."""
        retry = self.config.retry
        if FAILED in record:
            return "failed" in retry
        is_empty = not record["text"].strip()
        return is_empty or ("unreadable" in retry and self.suite.read(record) is None)
