"""Command-line options of `jobs/evaluate.py`."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import quote

import tyro

from ochat_ray.command_line import flag
from ochat_ray.errors import UserError
from ochat_ray.evaluate.key_files import OPENAI_URL
from ochat_ray.evaluate.option_checks import check_url, parse_body

Off = tyro.conf.FlagCreatePairsOff

SERVED_URL = "http://127.0.0.1:8000/v1"
SAMPLES = 3
CODE_TIMEOUT_S = 10.0
UNIT_TESTS = "unit tests"
"""Name of the judge of the suite `code`."""
EXACT_MATCH = "exact match"
"""Name of the judge of the suite `own`, where no model judges."""
RENAMED = {"--at-once": "--max-concurrency"}
"""Current names of options by former name."""

_TWO_SCORES = {
    "type": "json_schema",
    "json_schema": {
        "name": "scores",
        "schema": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "integer", "minimum": 1, "maximum": 10},
        },
    },
}

Retry = Literal["failed", "empty", "unreadable"]
Step = Literal["all", "answer", "judge", "score", "report", "compare", "tasks"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score models on a question set with any OpenAI-compatible endpoint as the judge.

    Answers and judgments are kept in the output directory, and a recorded call is never repeated,
    so an interrupted run resumes when it is run again. Without arguments, the demo's model is
    compared with its base model on a few questions.
    """

    step: tyro.conf.Positional[Step] = "all"
    """Step to run: `answer` collects the models' answers, `judge` the judgments, `score` and
    `report` compute the scores and write the report, `all` runs them in turn. `compare` writes one
    page about the finished evaluations of `--runs`. `tasks` runs `--tasks` of lm-eval, which need
    no judge."""
    tasks: tuple[str, ...] = ()
    """tasks: names of lm-eval's tasks, such as gsm8k and ifeval."""
    lm_eval: str = "lm_eval"
    """tasks: the program, in an environment with lm-eval[api,ifeval]."""
    lm_eval_args: str = ""
    """tasks: further arguments for it, such as '--num_fewshot 0'."""
    runs: tuple[str, ...] = ()
    """compare: output directories of finished evaluations."""
    suite: Literal["vicuna", "mt_bench", "alpaca_eval", "arena_hard", "code", "own"] = "vicuna"
    """Benchmark. vicuna: two answers side by side, scored 1 to 10 in both orders. mt_bench: two
    turns, each rated 1 to 10. alpaca_eval: pairwise preference; `score --annotations FILE`
    computes its metrics from its own file. arena_hard: pairwise, by five labels, with ratings
    under a control of style. code: HumanEval's or MBPP's problems, decided by unit tests. own:
    your own conversations, whose last answers are the references: exact match, or with --judge
    ratings of 1 to 10; the baseline is scored as well."""
    run_code: Annotated[bool, Off] = False
    """code: run the models' programs, in a sandbox of bubblewrap without network and home."""
    code_timeout_s: float = CODE_TIMEOUT_S
    """code: timeout per program, in seconds."""
    weighted: Annotated[bool, Off] = False
    """alpaca_eval: weight preferences by the judge's probabilities of the letters A and B."""
    difficulty: str = ""
    """alpaca_eval: df_gamed.csv of the data set tatsu-lab/alpaca_eval, for the leaderboard's
    length-controlled win rate. Its rows belong to alpaca_eval's 805 questions by position."""
    pairwise: Annotated[bool, Off] = False
    """mt_bench: compare each answer with the baseline's, in both orders, instead of rating it."""
    questions: str = ""
    """Question file: JSONL in FastChat's or OpenChat's format, or alpaca_eval's JSON. own: JSONL of
    conversations that prepare reads, such as OpenAI's `messages`, with `category` if wanted."""
    limit: int | None = None
    """Use only the first N questions."""
    output: str = ""
    """Local directory for answers.jsonl, judgments.jsonl, results.json and report.html; the
    default is runs/MODEL/evaluation for the suite own."""

    model: tuple[str, ...] = ()
    """Names of the models to score; own: by default the only one that is served."""
    url: str = SERVED_URL
    """Base URL of the models. The API key is read from OPENAI_API_KEY for OpenAI's URL, and from
    OCHAT_RAY_API_KEY for any other; OCHAT_RAY_JUDGE_API_KEY and OCHAT_RAY_BASELINE_API_KEY are for
    a judge and a baseline elsewhere. With _FILE appended, each names a file with the key."""
    baseline: str = ""
    """Name of the model to compare with. own: also a model directory of this machine, which is
    served for the time of the command."""
    baseline_url: str = ""
    """Base URL of the baseline; the default is --url."""
    baseline_answers: str = ""
    """File with the baseline's answers, instead of an endpoint that serves it."""

    judge: str = ""
    """Name of the judge model."""
    judge_url: str = OPENAI_URL
    """Base URL of the judge."""
    prompts: str = ""
    """Judge prompts: JSONL in FastChat's or OpenChat's format; the default is a set of our own."""
    samples: int = SAMPLES
    """vicuna: judgments per question and order (k of evidence calibration); the 2023 release used 1
    at --judge-temperature 0.2."""
    judge_temperature: float | None = None
    """Temperature of the judge; the default is 1 for vicuna, whose samples must differ, else 0."""
    judge_max_tokens: int = 2048
    """Maximum tokens per judgment."""
    judge_body: str = ""
    """JSON object of further fields of a request to the judge, such as
    '{"reasoning_effort": "low"}'; null leaves a field out."""
    judge_scores_only: Annotated[bool, Off] = False
    """vicuna: ask for the two scores without reasons, enforced by a JSON schema; for judges too
    small to follow the answer format."""
    failures: Literal["drop", "zero"] = "drop"
    """vicuna: judgments without readable scores are left out (drop) or counted as 0 to 0 (zero)."""
    control: Annotated[bool, Off] = False
    """Also let the judge compare every answer with itself, as a control."""
    human_labels: str = ""
    """Pairwise suites: labels by people, to report the judge's agreement with them: one line per
    question with the better model's name or TIE (FairEval), or JSONL with question_id, winner."""
    references: str = ""
    """mt_bench: reference answers for math, reasoning and coding, JSONL in FastChat's format."""

    temperature: float | None = None
    """Temperature of the answers; the default is 0.7, and per category for mt_bench."""
    top_p: float | None = None
    """Nucleus sampling of the answers; the default is 0.9 for vicuna and unset for mt_bench."""
    max_tokens: int = 1024
    """Maximum tokens per answer."""
    body: str = ""
    """JSON object of further fields of a request for an answer; null leaves a field out."""

    max_concurrency: int = 32
    """Maximum concurrent requests per endpoint; reduced while an endpoint signals overload."""
    timeout_s: float = 600
    """Timeout per request, in seconds."""
    attempts: int = 8
    """Maximum attempts per request, for failures that may be temporary."""
    prices: str = ""
    """JSON file with USD per million tokens: {"MODEL": {"prompt": USD, "completion": USD}}."""
    max_cost: float | None = None
    """Stop before the calls of this command cost more than this many USD; needs --prices."""
    retry: tuple[Retry, ...] = ()
    """Ask again what was recorded as failed (refused), empty or unreadable, and nothing else that
    is recorded."""
    dry_run: Annotated[bool, Off] = False
    """Print the number, tokens and cost of the remaining calls without making them."""

    annotations: str = ""
    """alpaca_eval's annotations.json, to compute its metrics from."""
    seed: int = 42
    """Seed of the bootstrap."""
    json: Annotated[bool, Off] = False
    """Print the result as one JSON object on the last line."""

    def with_output(self) -> EvaluateConfig:
        """Return the configuration with the suite's default output directory, if it has one."""
        if self.suite != "own" or self.output or not self.model:
            return self
        return replace(self, output=f"runs/{quote(self.model[0], safe='')}/evaluation")

    def check(self) -> None:
        """Check the options for consistency.

        Raises:
            UserError: An option is missing, out of range, or has no effect.
        """
        if self.step == "compare":
            if not self.runs or not self.output:
                raise UserError("compare needs --runs, directories of evaluations, and --output")
            self._check_unused("runs", "output", "seed")
            return
        if self.step == "tasks":
            self._check_tasks()
            return
        if self.runs:
            raise UserError("--runs is for the step compare")
        if self.tasks or self.lm_eval_args or self.lm_eval != "lm_eval":
            raise UserError("--tasks, --lm-eval and --lm-eval-args are for the step tasks")
        self._check_numbers()
        if self.max_cost is not None and not self.prices:
            raise UserError("--max-cost needs --prices")
        if self.step in ("score", "report") and (self.retry or self.max_cost is not None):
            raise UserError(f"--retry and --max-cost have no effect on the step {self.step}")
        _ = self._further_fields  # raises the errors of their options
        self._check_suite()
        for name in ("url", "baseline_url", "judge_url"):
            check_url(flag(name), getattr(self, name))
        if self.annotations:
            if (self.suite, self.step) != ("alpaca_eval", "score"):
                raise UserError("--annotations is for `score --suite alpaca_eval`")
            if len(self.model) > 1 or self._named - set(self.model):
                raise UserError("--annotations goes with one --model, whose they are, alone")
        elif not self.is_demo:
            self._check_judged()

    def _check_numbers(self) -> None:
        for name in ("samples", "max_concurrency", "attempts", "max_tokens", "judge_max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{flag(name)} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError("--limit must be at least 1")
        if self.seed < 0:
            raise UserError("--seed must not be negative")
        for name in ("timeout_s", "code_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{flag(name)} must be positive and finite")
        for name in ("max_cost", "temperature", "judge_temperature", "top_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{flag(name)} must be a number of at least 0")

    def _check_tasks(self) -> None:
        if not (self.tasks and self.model and self.output):
            raise UserError("tasks needs --tasks, --model and --output")
        if "://" in self.output:
            raise UserError(f"--output {self.output}: lm-eval writes on this machine's disk")
        if unknown := [name for name in self.tasks if not re.fullmatch(r"[\w.+-]+", name)]:
            raise UserError(f"--tasks {unknown[0]!r} is no name of a task")
        check_url("--url", self.url)
        self._check_unused(
            "tasks", "model", "output", "url", "limit", "max_concurrency", "timeout_s", "attempts",
            "seed", "lm_eval", "lm_eval_args",
        )  # fmt: skip

    def _check_unused(self, *used: str) -> None:
        for field in fields_of(self):
            known = field.name in (*used, "step", "json")
            if not known and getattr(self, field.name) != field.default:
                raise UserError(f"{flag(field.name)} has no effect on the step {self.step}")

    def _check_suite(self) -> None:
        if self.suite != "mt_bench" and (self.pairwise or self.references):
            raise UserError("--pairwise and --references are for --suite mt_bench")
        if self.suite != "vicuna" and self.judge_scores_only:
            raise UserError("--judge-scores-only is for --suite vicuna")
        if self.suite != "vicuna" and self.failures == "zero":
            raise UserError("--failures zero is for --suite vicuna; here a failure is missing")
        if self.suite != "code" and (self.run_code or self.code_timeout_s != CODE_TIMEOUT_S):
            raise UserError("--run-code and --code-timeout-s are for --suite code")
        if self.control and not self.compares:
            raise UserError("--control has no effect without --pairwise")
        for name in ("weighted", "difficulty"):
            if self.suite != "alpaca_eval" and getattr(self, name):
                raise UserError(f"--{name} is for --suite alpaca_eval")
        if self.suite != "vicuna" and self.samples != SAMPLES:
            raise UserError("--samples is for --suite vicuna")

    def _check_judged(self) -> None:
        for name in ("questions", "model", "output"):
            if not getattr(self, name):
                raise UserError(f"--{name} is needed")
        if self.baseline_answers and self.baseline_url:
            raise UserError("give --baseline-url or --baseline-answers, not both")
        baseline = self.baseline or self.baseline_answers or self.baseline_url
        compares = self.compares and self.step != "answer"
        if compares and not (self.baseline or self.baseline_answers):
            raise UserError("--baseline or --baseline-answers is needed")
        if not (self.compares or self.scores_baseline) and baseline:
            without = "on --suite code" if self.suite == "code" else "without --pairwise"
            raise UserError(f"--baseline has no effect {without}")
        if self.human_labels and (not self.compares or len(set(self.model)) != 1):
            raise UserError("--human-labels is for one --model and a baseline")
        if self.suite == "code":
            self._check_code()
            return
        if self.suite == "own":
            if not self.judge:
                self._check_no_judge("without --judge")
            return
        if self.step != "answer" and not self.judge:
            raise UserError("--judge is needed")

    def _check_no_judge(self, where: str) -> None:
        for name in ("judge", "prompts", "judge_body", "judge_temperature"):
            if getattr(self, name) not in (None, ""):
                raise UserError(f"{flag(name)} has no effect {where}")

    def _check_code(self) -> None:
        self._check_no_judge("on --suite code, which has no judge")
        if self.step in ("all", "judge") and not (self.run_code or self.dry_run):
            raise UserError(
                "--suite code runs the models' programs; allow it with --run-code, or run only "
                "the step answer"
            )

    @cached_property
    def _further_fields(self) -> dict[str, dict[str, Any]]:
        """Further fields of the requests, by the name of their option."""
        return {
            name: parse_body(flag(name), getattr(self, name)) for name in ("body", "judge_body")
        }

    @property
    def is_demo(self) -> bool:
        """True if the options name nothing to evaluate, so that the demo's model is evaluated."""
        here = (self.url, self.judge_url) == (SERVED_URL, OPENAI_URL)
        return self.suite == "vicuna" and here and not self._named

    @property
    def _named(self) -> set[str]:
        given = {
            self.questions, self.baseline, self.baseline_answers, self.baseline_url, self.judge,
            self.prompts, *self.model,
        }  # fmt: skip
        return given - {""}

    @property
    def compares(self) -> bool:
        """True if answers are compared with a baseline's."""
        return self.suite not in ("mt_bench", "code", "own") or self.pairwise

    @property
    def scores_baseline(self) -> bool:
        """True if the baseline is scored as the models are."""
        return self.suite == "own"

    def answering(self, model: str, temperature: float) -> dict[str, Any]:
        """Return the fields of a request for an answer, except its messages."""
        given = self.temperature
        fields = {
            "model": model,
            "temperature": temperature if given is None else given,
            "max_tokens": self.max_tokens,
        }
        top_p = 0.9 if self.top_p is None and self.suite == "vicuna" else self.top_p
        return _with(
            fields | ({} if top_p is None else {"top_p": top_p}), self._further_fields["body"]
        )

    def judging(self, *, temperature: float) -> dict[str, Any]:
        """Return the fields of a request to the judge, except its messages."""
        given = self.judge_temperature
        fields = {
            "model": self.judge,
            "temperature": temperature if given is None else given,
            "max_tokens": self.judge_max_tokens,
        }
        fields |= {"response_format": _TWO_SCORES} if self.judge_scores_only else {}
        return _with(fields, self._further_fields["judge_body"])


def _with(fields: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with further ones; None removes a field."""
    return {name: value for name, value in (fields | further).items() if value is not None}


def replace_renamed_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with options under their current names; warn about former names.

    Former names are accepted for one release.
    """
    current = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option.replace("_", "-") in RENAMED:
            renamed = RENAMED[option.replace("_", "-")]
            print(f"{option} is deprecated; use {renamed}", file=sys.stderr)
            option = renamed
        current.append(option + equals + value)
    return current
