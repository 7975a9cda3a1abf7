"""Questions, prompts and records of one evaluation configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.asking import Budget, Prices, answer_call
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.human_labels import read_labels
from ochat_ray.evaluate.prompts import Prompts, read_prompts
from ochat_ray.evaluate.questions import (
    Answers,
    Question,
    check_complete,
    read_answers,
    read_questions,
)
from ochat_ray.evaluate.records import CONTROL, FAILED, Call, Records, key_of
from ochat_ray.evaluate.suites import Material, suite_of
from ochat_ray.run_dir import RunDir

ANSWERS = "answers.jsonl"
JUDGMENTS = "judgments.jsonl"
RESULTS = "results.json"
FIRST, URLS = "first", "urls"
MODELS = "models.json"
"""Model and judge entries reported by the endpoints, with the base URLs under `urls`, and the
identity at the first call under `first`."""


EMPTY: Mapping[str, str] = MappingProxyType({})


class Evaluation:
    """Questions, prompts and records of one configuration; a context manager of its files.

    Args:
        config: The configuration.
        endpoint_names: Names of endpoints by base URL, where the URL changes from run to run.
    """

    def __init__(self, config: EvaluateConfig, endpoint_names: Mapping[str, str] = EMPTY) -> None:
        if "://" in config.output:
            raise UserError(f"--output {config.output}: records are kept on this machine's disk")
        self.config = config
        self.suite = suite_of(config)
        self.questions = (
            read_questions(config.questions, limit=config.limit)
            if self.suite.questions is None
            else list(self.suite.questions)
        )
        self.models = list(dict.fromkeys(config.model))
        self.material = Material(
            questions=self.questions,
            prompts=self._prompts(),
            references=read_answers(config.references) if config.references else None,
        )
        self._check_categories()
        self._check_turns()
        self.suite.check(self.questions)
        self.prices = Prices.read(config.prices)
        self.budget = Budget(self.prices, config.max_cost)
        self._given = (
            read_answers(config.baseline_answers, model=config.baseline or None)
            if config.baseline_answers
            else None
        )
        self.baseline = self._given.model if self._given else config.baseline
        if self._given and self.baseline in self.models:
            raise UserError(
                f"--baseline-answers {config.baseline_answers} are of {self.baseline}, which is "
                "also a --model; give one of them another name"
            )
        self.human_labels = (
            read_labels(
                config.human_labels, self.questions, model=self.models[0], baseline=self.baseline
            )
            if config.human_labels
            else None
        )
        output = Path(config.output).expanduser()
        self.answers, self.judgments = Records(output / ANSWERS), Records(output / JUDGMENTS)
        self._output = RunDir.open(config.output)
        known = self._output.read_json(MODELS) or {}
        self._described: dict[str, dict[str, Any]] = {
            "models": {},
            "judges": {},
            FIRST: {},
            URLS: {},
        } | known
        self._endpoint_names = endpoint_names
        self._earlier = (self._output.read_json(RESULTS) or {}).get("config", {})

    def _prompts(self) -> Prompts:
        if self.suite.runs_code:
            return Prompts({})
        return read_prompts(
            self.config.prompts or None, suite=self.suite.prompts, names=self.suite.prompt_names
        )

    def _check_categories(self) -> None:
        """Check that each question's category is known.

        The category selects the judge prompt, the temperature and whether a reference answer is
        needed.
        """
        if self.suite.categories is None:
            return
        known = self.suite.categories | self.material.prompts.categories | {""}
        for question in self.questions:
            if question.category not in known:
                raise UserError(
                    f"{self.config.questions}: question {question.id!r} has the unknown category "
                    f"{question.category!r}; {self.config.suite} has "
                    f"{', '.join(sorted(self.suite.categories))}. Give one of these or none, or "
                    "--prompts with one for it"
                )

    def _check_turns(self) -> None:
        """Check that the judge is shown all turns of each question."""
        for question in self.questions:
            if len(question.turns) > self.suite.turns:
                raise UserError(
                    f"{self.config.questions}: question {question.id!r} has {len(question.turns)} "
                    f"turns, of which the judge of {self.config.suite} sees {self.suite.turns}; "
                    "remove the others, or give another --suite"
                )

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_error: object) -> None:
        self.answers.close()
        self.judgments.close()

    def to_answer(self) -> list[str]:
        """Return the models to request answers from."""
        asked = self.config.compares and not self._given and self.baseline not in self.models
        return [*self.models, self.baseline] if asked else self.models

    def answering(self, question: Question, model: str) -> dict[str, Any]:
        """Return the fields of a request for a model's answer, except its messages."""
        return self.config.answering(model, self.suite.temperature(question.category))

    def describe(self, kind: str, name: str, entry: Mapping[str, Any]) -> None:
        """Store an endpoint's entry for a model ("models") or judge ("judges"), if not empty.

        What identifies the weights becomes part of the call keys; see `version`.
        """
        before = json.dumps(self._described)
        # Calls of earlier versions have keys without an identity. It was the stored one.
        first = self._identity(kind, name, self._earlier, self._described[kind].get(name) or entry)
        label, url = f"{kind} {name}", self._identity(kind, name, {}, {})[0]
        self._described[FIRST].setdefault(label, first)
        if entry:
            self._described[kind][name] = dict(entry)
        elif self._described[URLS].get(label, first[0]) != url:
            self._described[kind].pop(name, None)  # another endpoint's
        self._described[URLS][label] = url
        if json.dumps(self._described) != before:
            self._output.write_json(MODELS, self._described)

    def _identity(
        self, kind: str, name: str, config: Mapping[str, Any], entry: Mapping[str, Any]
    ) -> list[str]:
        """Return a model's base URL, and the root and digest that its server reports."""
        now, option = self.config, "judge_url" if kind == "judges" else "url"
        url = config.get(option) or getattr(now, option)
        if kind == "models" and name == self.baseline and name not in self.models:
            url = config.get("baseline_url") or (now.baseline_url if not config else "") or url
        url = url.rstrip("/")
        known = [str(entry.get(field) or "") for field in ("root", "digest")]
        return [self._endpoint_names.get(url, url), *known]

    def descriptions(self, kind: str, names: Iterable[str]) -> dict[str, Any]:
        """Return the known entries of these models or judges."""
        known = self._described[kind]
        return {name: known[name] for name in names if name in known}

    def version(self, kind: str, name: str) -> str:
        """Return what identifies a model's weights in the keys of its calls.

        This is the training digest that our own server reports. For other servers it is the base
        URL with the server's `root` and `digest`; the first ones in this output directory are
        omitted, so that keys of earlier versions remain valid.
        """
        entry = self._described[kind].get(name, {})
        training = entry.get("training")
        if isinstance(training, dict) and training.get("digest"):
            return str(training["digest"])
        identity = self._identity(kind, name, {}, entry)
        first = self._described[FIRST].get(f"{kind} {name}", identity)
        return "" if first == identity else key_of(identity)

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
        messages: list[dict[str, str]] = []
        found: list[dict[str, Any]] = []
        for number, turn in enumerate(question.turns):
            messages.append({"role": "user", "content": turn})
            fields = self.answering(question, model)
            key = answer_call(question, number, messages, fields, self.version("models", model)).key
            if key not in self.answers:
                break
            found.append(self.answers[key])
            if FAILED in found[-1]:
                break
            messages.append({"role": "assistant", "content": found[-1]["text"]})
        return found

    def judged_questions(self, model: str) -> list[Question]:
        """Return the questions that neither the model nor the baseline refused to answer."""
        asked = [name for name in (model, self.baseline) if name in self.to_answer()]
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
        material = replace(self.material, questions=questions)
        calls = self.suite.calls(material, own, baseline)
        if self.config.control:
            # An answer compared with itself is the same call in both orders.
            calls += [
                replace(call, key=key_of(call.key, "control"), about={**call.about, CONTROL: True})
                for call in self.suite.calls(material, own, own)
                if call.about["model_first"]
            ]
        version = self.version("judges", self.config.judge)
        if not version:
            return calls
        return [replace(call, key=key_of(call.key, version)) for call in calls]
