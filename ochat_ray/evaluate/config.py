"""What `jobs/evaluate.py` can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ochat_ray.errors import UserError

Off = tyro.conf.FlagCreatePairsOff

OPENAI_URL = "https://api.openai.com/v1"
SERVED_URL = "http://127.0.0.1:8000/v1"
SAMPLES = 3

_TWO_SCORES = {
    "type": "json_schema",
    "json_schema": {
        "name": "scores",
        "schema": {
            "type": "array", "minItems": 2, "maxItems": 2,
            "items": {"type": "integer", "minimum": 1, "maximum": 10},
        },
    },
}  # fmt: skip

Step = Literal["all", "answer", "judge", "score", "report"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score models on questions, by a judge that any OpenAI-compatible endpoint may be.

    Answers and judgments are kept in the output directory, and no call with a record is made
    again: run it as often as you like. Without arguments the demo's model is held against its base
    on a few questions.
    """

    step: tyro.conf.Positional[Step] = "all"
    """What to do: the models' answers, the judge's words, the scores and their report, or all of it
    in turn."""
    suite: Literal["vicuna", "mt_bench", "alpaca_eval"] = "vicuna"
    """vicuna: two answers side by side, scored 1 to 10 in both orders. mt_bench: two turns, each
    rated 1 to 10. alpaca_eval: which of two is preferred; its numbers alone from its own file by
    `score --annotations FILE`."""
    weighted: Annotated[bool, Off] = False
    """alpaca_eval: weigh preferences by the judge's probabilities of the letters A and B."""
    pairwise: Annotated[bool, Off] = False
    """mt_bench: hold each answer against the baseline's, in both orders, instead of rating it."""
    questions: str = ""
    """JSONL of FastChat's or OpenChat's form, or alpaca_eval's JSON."""
    limit: int | None = None
    """Take the first so many questions."""
    output: str = ""
    """Directory on this machine for answers.jsonl, judgments.jsonl, results.json, report.html."""

    model: tuple[str, ...] = ()
    """Names of the models to score."""
    url: str = SERVED_URL
    """Where the models are served. The key for OpenAI's address is read from OPENAI_API_KEY, that
    for any other from OCHAT_RAY_API_KEY."""
    baseline: str = ""
    """Name of the model that the others are held against."""
    baseline_url: str = ""
    """Where it is served, if not at --url."""
    baseline_answers: str = ""
    """File with the baseline's answers, instead of a place that serves it."""

    judge: str = ""
    """Name of the model that judges."""
    judge_url: str = OPENAI_URL
    """Where the judge is served."""
    prompts: str = ""
    """The judge's prompts, JSONL of FastChat's or OpenChat's form; our own where not given."""
    samples: int = SAMPLES
    """vicuna: judgments of each question and order (evidence calibration's k); 2023 took 1 at
    --judge-temperature 0.2."""
    judge_temperature: float | None = None
    """1 for vicuna, whose samples differ by it, and 0 for the others where not given."""
    judge_max_tokens: int = 2048
    judge_scores_only: Annotated[bool, Off] = False
    """vicuna: the judge says the two scores and no reasons, held to it by a JSON schema; for judges
    that are too small to keep to a form."""
    failures: Literal["drop", "zero"] = "drop"
    """vicuna: a judgment without readable scores counts nowhere, or as 0 to 0."""
    control: Annotated[bool, Off] = False
    """Show the judge every answer beside itself, too: what it makes of two equal ones."""
    references: str = ""
    """mt_bench: reference answers for math, reasoning and coding, JSONL of FastChat's form."""

    temperature: float | None = None
    """Of the answers; 0.7, and the category's own for mt_bench, where not given."""
    top_p: float | None = None
    """Of the answers; 0.9 for vicuna where not given, and none for mt_bench."""
    max_tokens: int = 1024
    """Of an answer."""

    at_once: int = 32
    """Calls under way, at most; fewer as long as an endpoint says that it has too much to do."""
    timeout_s: float = 600
    """Of a call."""
    attempts: int = 8
    """Of a call that failed for a reason that may pass."""
    prices: str = ""
    """JSON: {"MODEL": {"prompt": USD, "completion": USD}}, for a million tokens."""
    dry_run: Annotated[bool, Off] = False
    """Say how many calls and tokens are left, and what they cost; make none."""

    annotations: str = ""
    """alpaca_eval's annotations.json, to compute its numbers from."""
    seed: int = 42
    """Of the bootstrap."""
    json: Annotated[bool, Off] = False
    """Print the result as one JSON object on the last line."""

    def check(self) -> None:
        """Hold the options against each other.

        Raises:
            UserError: one is missing, out of range, or has no effect.
        """
        for name in ("samples", "at_once", "attempts", "max_tokens", "judge_max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError("--limit must be at least 1")
        self._check_suite()
        if self.annotations:
            if (self.suite, self.step) != ("alpaca_eval", "score"):
                raise UserError("--annotations is for `score --suite alpaca_eval`")
            if len(self.model) > 1 or self._named - set(self.model):
                raise UserError("--annotations goes with one --model, whose they are, alone")
        elif not self.is_demo:
            self._check_judged()

    def _check_suite(self) -> None:
        if self.suite != "mt_bench" and (self.pairwise or self.references):
            raise UserError("--pairwise and --references are for --suite mt_bench")
        if self.suite != "vicuna" and self.judge_scores_only:
            raise UserError("--judge-scores-only is for --suite vicuna")
        if self.suite != "vicuna" and self.failures == "zero":
            raise UserError("--failures zero is for --suite vicuna; here a failure is missing")
        if self.control and not self.compares:
            raise UserError("--control has no effect without --pairwise")
        if self.suite != "alpaca_eval" and self.weighted:
            raise UserError("--weighted is for --suite alpaca_eval")
        if self.suite != "vicuna" and self.samples != SAMPLES:
            raise UserError("--samples is for --suite vicuna")

    def _check_judged(self) -> None:
        for name in ("questions", "output", "model"):
            if not getattr(self, name):
                raise UserError(f"--{name} is needed")
        if self.baseline_answers and self.baseline_url:
            raise UserError("give --baseline-url or --baseline-answers, not both")
        baseline = self.baseline or self.baseline_answers or self.baseline_url
        if self.compares and not (self.baseline or self.baseline_answers):
            raise UserError("--baseline or --baseline-answers is needed")
        if not self.compares and baseline:
            raise UserError("--baseline has no effect without --pairwise")
        if self.step != "answer" and not self.judge:
            raise UserError("--judge is needed")

    @property
    def is_demo(self) -> bool:
        """Whether nothing says what to evaluate, and where: the demo's model is."""
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
        """Whether answers are held against a baseline's."""
        return self.suite != "mt_bench" or self.pairwise

    def answering(self, model: str, temperature: float) -> dict[str, Any]:
        """The fields of a request for an answer, beside its messages."""
        given = self.temperature
        fields = {
            "model": model, "temperature": temperature if given is None else given,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        top_p = 0.9 if self.top_p is None and self.suite == "vicuna" else self.top_p
        return fields | ({} if top_p is None else {"top_p": top_p})

    def judging(self, *, temperature: float) -> dict[str, Any]:
        """The fields of a request to the judge, beside its messages."""
        given = self.judge_temperature
        fields = {
            "model": self.judge, "temperature": temperature if given is None else given,
            "max_tokens": self.judge_max_tokens,
        }  # fmt: skip
        return fields | ({"response_format": _TWO_SCORES} if self.judge_scores_only else {})


def key_for(url: str) -> str:
    """The key for an address, from the environment; empty where there is none.

    OpenAI's key is sent to OpenAI alone, whatever address is given.
    """
    is_openai = url.rstrip("/") == OPENAI_URL
    return os.environ.get("OPENAI_API_KEY" if is_openai else "OCHAT_RAY_API_KEY", "")
