"""Agreement of a judge with people on which of two answers is better.

Source: Wang et al., "Large Language Models are not Fair Evaluators" (2023), and i-Eval/FairEval:
one label per question, accuracy and Cohen's kappa over win, tie and loss.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.bias import agreement
from ochat_ray.evaluate.questions import Question
from ochat_ray.evaluate.stats import Part, estimate

OUTCOMES = {1.0: "wins", 0.5: "ties", 0.0: "losses"}
_TIES = frozenset({"tie", "draw", "equal"})


def read_labels(
    path: str, questions: Sequence[Question], *, model: str, baseline: str
) -> dict[str, float]:
    """Return the model's outcome by question, as people saw it: 1 a win, 0.5 a tie, 0 a loss.

    The file has one label per line, for all questions in their order, as FairEval's; or JSON lines
    with `question_id` and `winner`, for some of them. A label is `model`, `baseline`, `tie` or a
    model's name; if only one of two names is known, the other one is the other model's.

    Raises:
        UserError: The file cannot be read, or does not have this form.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --human-labels {path}: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    ids = [question.id for question in questions]
    if lines and lines[0].startswith("{"):
        labels = {
            id: label
            for id, label in (_record(line, path, n) for n, line in enumerate(lines, 1) if line)
            if id in set(ids)
        }
    else:
        if len(lines) < len(ids):
            raise UserError(
                f"--human-labels {path}: {len(lines)} lines for {len(ids)} questions; give one "
                "label per question, or JSON lines with `question_id` and `winner`"
            )
        labels = dict(zip(ids, lines, strict=False))
    if not labels:
        raise UserError(f"--human-labels {path}: no label of a question")
    outcome = _outcomes(set(labels.values()), path, model, baseline)
    return {id: outcome[label] for id, label in labels.items()}


def _record(line: str, path: str, number: int) -> tuple[str, str]:
    try:
        record = json.loads(line)
        return str(record["question_id"]), str(record["winner"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--human-labels {path}, line {number}: {type(error).__name__} {error}; "
            "`question_id` and `winner` are needed"
        ) from error


def _outcomes(labels: set[str], path: str, model: str, baseline: str) -> dict[str, float]:
    known = {_plain("model"): 1.0, _plain("baseline"): 0.0, _plain(model): 1.0}
    known |= {_plain(baseline): 0.0} | dict.fromkeys(_TIES, 0.5)
    found = {label: known[_plain(label)] for label in labels if _plain(label) in known}
    unknown = sorted(labels - set(found))
    sides = set(found.values()) - {0.5}
    if len(unknown) == 1 and len(sides) == 1:
        found[unknown[0]] = 1.0 - sides.pop()
        other = model if found[unknown[0]] else baseline
        print(f"--human-labels {path}: {unknown[0]!r} is taken for {other}", file=sys.stderr)
    elif unknown:
        raise UserError(
            f"--human-labels {path}: {unknown[0]!r} is none of {model}, {baseline}, model, "
            "baseline and tie"
        )
    return found


def _plain(label: str) -> str:
    return re.sub(r"[\W_]", "", label).lower()


def human_agreement(
    labels: Mapping[str, float], outcomes: Mapping[str, float], *, seed: int
) -> dict[str, Any]:
    """Return how far the judge's outcomes agree with people's, on questions that have both.

    Returns:
        `accuracy` with its 95% interval over questions, `kappa`, the numbers of wins, ties and
        losses by both, and the number of labels whose question the judge did not decide.
    """
    both = [(labels[id], outcomes[id]) for id in labels if id in outcomes]
    counted: dict[str, Any] = {"labels": len(labels), "not_judged": len(labels) - len(both)}
    if not both:
        return counted | {"questions": 0, "accuracy": None, "kappa": None}
    interval = estimate([Part(float(a == b), 1) for a, b in both], seed=seed)
    assert interval is not None
    counts = [Counter(side) for side in zip(*both, strict=True)]
    return {
        **counted,
        **agreement(both),
        "interval": asdict(interval),
        **{
            who: {name: count[outcome] for outcome, name in OUTCOMES.items()}
            for who, count in zip(("people", "judge"), counts, strict=True)
        },
    }
