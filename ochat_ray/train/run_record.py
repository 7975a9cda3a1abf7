"""A training run as its output directory describes it, for report.html and comparisons.

Every value of a file may be missing or of another type, for example in runs of other versions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ochat_ray.command_line import flag
from ochat_ray.errors import UserError
from ochat_ray.recipes import RECIPES
from ochat_ray.run_dir import RunDir
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.metrics import METRICS, Line, lines_up_to, read_metrics
from ochat_ray.train.output import MODEL_MANIFEST
from ochat_ray.train.samples import SAMPLES, Sample

_NOT_SETTINGS = frozenset("recipe data model output resume overwrite dry_run json".split())
"""Options that name files or actions, and are not settings of a training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Sample prompt with its answers by step, in the order of the steps."""

    text: str
    answers: dict[int, Sample] = field(default_factory=dict)

    @property
    def base(self) -> Sample | None:
        """Answer of the base model."""
        return self.answers.get(0)

    @property
    def last(self) -> Sample | None:
        """Answer after the last step; None if there is only the base's."""
        step = max(self.answers, default=0)
        return self.answers[step] if step else None

    @property
    def between(self) -> list[Sample]:
        """Answers of the steps between."""
        return [answer for answer in self.answers.values() if answer not in (self.base, self.last)]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of a training's output directory.

    Args:
        uri: the directory, as given.
        manifest: content of ochat.json; empty if the run is not complete.
        lines: lines of metrics.jsonl.
        samples: lines of samples.jsonl.
    """

    uri: str
    manifest: Mapping[str, Any]
    lines: Sequence[Line]
    samples: Sequence[Sample]

    @property
    def options(self) -> dict[str, Any]:
        """Options of the run as JSON values, by name; empty if unknown."""
        config = self.manifest.get("config")
        known = config if isinstance(config, dict) else {}
        return {name: value for name, value in known.items() if name not in _NOT_SETTINGS}

    @property
    def steps(self) -> list[Line]:
        """Lines of optimizer steps, in their order."""
        return _sorted(line for line in self.lines if "loss" in line)

    @property
    def evaluations(self) -> list[Line]:
        """Lines of evaluations, in the order of their steps."""
        return _sorted(line for line in self.lines if "eval_loss" in line)

    @property
    def step(self) -> int:
        """Number of the last optimizer step; 0 if there is none."""
        found = self.manifest.get("step")
        return found if isinstance(found, int) else max((x["step"] for x in self.steps), default=0)

    @property
    def total_steps(self) -> int | None:
        """Number of planned steps; None if unknown."""
        found = self.steps[-1].get("total_steps") if self.steps else None
        return found if isinstance(found, int) else None

    def held_out(self, name: str, *, after: bool) -> float | None:
        """Return a figure of the evaluation before the first step, or after the last.

        Args:
            name: "loss" or "end_of_turn".
            after: whether the figure after the last step is meant.
        """
        found = self.manifest.get("eval_after" if after else "eval_before")
        if isinstance(found, dict):
            return number(found.get(name))
        lines = self.evaluations
        if not lines or (not after and lines[0]["step"]):
            return None
        return number(lines[-1 if after else 0].get(f"eval_{name}"))

    @property
    def seconds(self) -> float | None:
        """Seconds of all optimizer steps, without evaluations and checkpoints."""
        return _sum(self.steps, "seconds")

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the optimizer steps, over all workers."""
        tokens, seconds = _sum(self.steps, "tokens"), self.seconds
        return tokens / seconds if tokens and seconds else None

    @property
    def learning_rates(self) -> list[float]:
        """Learning rates of the steps."""
        rates = [number(line.get("learning_rate")) for line in self.steps]
        return [rate for rate in rates if rate is not None]

    @property
    def prompts(self) -> list[Prompt]:
        """Sample prompts, in the order of the file; equal prompts of a step are several."""
        found: dict[tuple[str, int], Prompt] = {}
        seen: Counter[tuple[int, str]] = Counter()
        for sample in sorted(self.samples, key=lambda sample: sample.step):
            key = sample.prompt, seen[sample.step, sample.prompt]
            seen[sample.step, sample.prompt] += 1
            found.setdefault(key, Prompt(text=sample.prompt)).answers[sample.step] = sample
        return list(found.values())

    @property
    def digest(self) -> str | None:
        """SHA-256 of ochat.json's content, by which a server names the model's training."""
        if not self.manifest:
            return None
        content = json.dumps(self.manifest, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def differences(self) -> list[tuple[str, str, str]]:
        """Return (option, value, recipe's value) of options that differ from the recipe's."""
        recipe = self.manifest.get("recipe")
        if not isinstance(recipe, str) or recipe not in RECIPES:
            return []
        usual = json.loads(json.dumps(asdict(TrainConfig.for_recipe(recipe))))
        return [
            (flag(name), text(value), text(usual.get(name)))
            for name, value in self.options.items()
            if value != usual.get(name)
        ]


def read_run(uri: str) -> RunRecord:
    """Return the record of a training's output directory, at a local path or URI.

    Raises:
        UserError: it holds no training, or is damaged.
    """
    run = RunDir.open(uri)
    if not run.exists():
        raise UserError(f"{uri} does not exist; give the output directory of a training")
    manifest = run.read_json(MODEL_MANIFEST, "train again with --overwrite")
    if manifest is not None and not isinstance(manifest, dict):
        raise UserError(f"{run.path(MODEL_MANIFEST)} is damaged: it is not a JSON object")
    record = RunRecord(
        uri=uri,
        manifest=manifest or {},
        lines=read_metrics(run),
        samples=_read_samples(run),
    )
    if not record.manifest and not record.lines:
        raise UserError(
            f"{uri} has neither {MODEL_MANIFEST} nor {METRICS}; give the output directory of a "
            "training that has started"
        )
    return record


def number(value: Any) -> float | None:
    """Return a finite number as a float; None for any other value."""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if valid else None


def text(value: Any) -> str:
    """Return an option's value as it is written on a command line."""
    if isinstance(value, list):
        return " ".join(map(text, value)) or "none"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_samples(run: RunDir) -> list[Sample]:
    found = []
    for line in lines_up_to(run, SAMPLES, 1 << 62):
        value = json.loads(line)
        prompt, answer = value.get("prompt"), value.get("answer")
        if isinstance(prompt, str) and isinstance(answer, str):
            found.append(
                Sample(
                    step=value["step"],
                    prompt=prompt,
                    answer=answer,
                    ended=value.get("ended") is True,
                )
            )
    return found


def _sorted(lines: Any) -> list[Line]:
    return sorted(lines, key=lambda line: line["step"])


def _sum(lines: Sequence[Line], name: str) -> float | None:
    values = [value for line in lines if (value := number(line.get(name))) is not None]
    return sum(values) if values else None
