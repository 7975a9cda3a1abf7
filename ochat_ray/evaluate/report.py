"""Write report.html: scores with confidence intervals, and all transcripts.

One file that opens offline and runs no script: the filters are radio buttons and style sheets. The
template is templates/report.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ochat_ray.command_line import flag
from ochat_ray.evaluate.length_control import LEADERBOARD_MODEL
from ochat_ray.evaluate.pages import interval, number, render
from ochat_ray.evaluate.questions import Question

Groups = dict[str, set[int]]
"""Filters by name: the indices of their entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One judgment: its label, the result parsed from it (None: unreadable) and its text."""

    label: str
    reading: str | None
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One question to one model with all judgments; `value` is in the score's unit."""

    question: Question
    model: str
    value: float | None
    answers: Mapping[str, Sequence[str]]
    judgments: Sequence[Said]


def report_html(results: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """Return the page; `results` is the content of results.json."""
    scores, even = results["scores"], results.get("even")
    groups = _groups(entries, even)
    return render(
        "report.html",
        title=f"{results['suite']}: {', '.join(one['model'] for one in scores)}",
        results=results,
        even=even,
        judges_itself=results["judge"] in {one["model"] for one in scores} | {results["baseline"]},
        named_scores=[{**one, "name": one["model"]} for one in scores],
        leaderboard_model=LEADERBOARD_MODEL,
        entries=entries,
        groups=groups,
        classes=[
            " ".join(f"g{n}" for n, members in enumerate(groups.values()) if position in members)
            for position in range(len(entries))
        ],
        filter_style=_filter_style(groups),
        facts=_facts(results),
    )


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the scores as a Markdown table."""
    head = f"| model | {results['unit']} | 95% interval | judgments | not readable |\n"
    rows = [
        f"| {_plain(one['model'])} | {number(one['score'])} | {interval(one)} "
        f"| {one['judgments']} | {one['failed']} |\n"
        for one in results["scores"]
    ]
    return head + "| --- | --- | --- | --- | --- |\n" + "".join(rows)


def _groups(entries: Sequence[Entry], even: float | None) -> Groups:
    """Group entries by filter: all, each category, behind the baseline, and unreadable."""
    found: list[tuple[str, int]] = []
    for position, entry in enumerate(entries):
        found.append((entry.question.category or "no category", position))
    for position, entry in enumerate(entries):
        if even is not None and entry.value is not None and entry.value < even:
            found.append(("behind the baseline", position))
    for position, entry in enumerate(entries):
        if any(said.reading is None for said in entry.judgments):
            found.append(("not readable", position))
    groups = {"all": set(range(len(entries)))}
    for name, position in found:
        groups.setdefault(name, set()).add(position)
    return groups


def _filter_style(groups: Groups) -> str:
    return "".join(
        f"body:has(#show{n}:checked) details.entry:not(.g{n}) {{ display: none; }}"
        for n in range(1, len(groups))
    )


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "judge": results["judge"], "baseline": results["baseline"], "time": results["time"],
        "ochat_ray": results["version"], "questions' digest": results["questions_digest"],
        "prompts' digest": results["prompts_digest"],
        **_origins(results),
        **{flag(name): value for name, value in results["config"].items()},
    }  # fmt: skip
    return {name: str(value) for name, value in facts.items() if value not in (None, "", (), [])}


def _origins(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the provenance of the models as far as their endpoints report it."""
    said = {}
    for kind, whose in (("models", ""), ("judges", "judge ")):
        for name, entry in results.get(kind, {}).items():
            training = entry.get("training")
            if isinstance(training, dict):
                known = [f"{what} {value}" for what, value in training.items() if value is not None]
                said[f"{whose}{name} was trained by"] = ", ".join(known)
    return said


def _plain(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
    return " ".join(escaped.split())
