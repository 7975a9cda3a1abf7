"""Comparison of finished evaluations: one page, with everything that makes scores comparable."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.bias import agreement
from ochat_ray.evaluate.bradley_terry import Battle, bradley_terry
from ochat_ray.evaluate.outputs import RESULTS, claim
from ochat_ray.evaluate.pages import render
from ochat_ray.evaluate.records import make_folder
from ochat_ray.evaluate.stats import Part, differences
from ochat_ray.run_dir import RunDir

PAGE = "comparison.html"
TABLE = "comparison.json"

Row = dict[str, Any]


def compare(runs: Sequence[str], output: str, *, seed: int) -> dict[str, Any]:
    """Write comparison.html and comparison.json about finished evaluations; make no call.

    Raises:
        UserError: A run has no scores, or is given twice.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    notes: list[str] = []
    for run, results in _read(runs):
        for row in _rows_of(run, results):
            found[row["group"]].append(row)
        if any("by_question" not in one for one in results["scores"]):
            notes.append(
                f"{run} has no scores by question; run the step `score` of this version there for "
                "its differences and ratings"
            )
    result = {
        "runs": list(runs),
        "groups": [_group(rows, seed) for rows in found.values()],
        "notes": notes,
    }
    target = RunDir.open(output)
    if "://" not in output:
        make_folder(Path(output).expanduser())
    claim(target, [PAGE, TABLE])
    with target.writing(PAGE) as stream:
        stream.write(render("comparison.html", **result).encode("utf-8", "replace"))
    target.write_json(TABLE, result)
    return {**result, "page": f"{output}/{PAGE}"}


def _read(runs: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if twice := [run for run, count in Counter(runs).items() if count > 1]:
        raise UserError(f"--runs {twice[0]} is given twice")
    for run in runs:
        path = Path(run).expanduser() / RESULTS
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            known = (results["suite"], results["unit"], results["judge"], results["config"])
            complete = all(known) and all("model" in one for one in results["scores"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"--runs {run}: {path.name} cannot be read ({type(error).__name__} {error}); give "
                "the output directory of an evaluation that has finished"
            ) from error
        if not complete:
            raise UserError(f"--runs {run}: {path.name} has no scores")
        yield run, results


def _rows_of(run: str, results: Mapping[str, Any]) -> Iterator[Row]:
    answers = results.get("answers", {})
    for one in results["scores"]:
        model = one["model"]
        counts = answers.get(model, {})
        usages = [counts.get("usage"), one.get("usage")]
        dollars = [u["dollars"] for u in usages if u and u["calls"]]
        known = all(cost is not None for cost in dollars)
        yield {
            "run": run, "suite": results["suite"], "unit": results["unit"],
            "baseline": results["baseline"], "judge": results["judge"],
            "prompts": results["prompts_digest"], "questions": results["questions"],
            "time": results["time"], "version": results["version"],
            "group": json.dumps(
                [results[n] for n in ("suite", "unit", "baseline", "questions_digest")]
            ),
            **{name: one.get(name) for name in (
                "model", "score", "low", "high", "judgments", "failed", "not_judged", "biases",
                "by_question", "outcomes", "length_controlled_winrate", "lc_model", "metrics",
            )},
            "characters": counts.get("mean_characters"), "empty": counts.get("empty"),
            "tokens": [u["completion_tokens"] if u and u["calls"] else None for u in usages],
            "dollars": sum(dollars) if dollars and known else None,
            "training": _training(results, model),
            "temperature": results["config"].get("temperature"),
            "judged_itself": results["judge"] in (model, results["baseline"]),
        }  # fmt: skip


def _training(results: Mapping[str, Any], model: str) -> dict[str, str]:
    """Return what a server reports about a model's origin."""
    entry = results.get("models", {}).get(model, {})
    training = entry.get("training")
    known = training if isinstance(training, dict) else {}
    known = {**{name: entry.get(name) for name in ("root", "digest")}, **known}
    return {name: str(value) for name, value in known.items() if value not in (None, "")}


def _group(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Return the scores of one benchmark, with what may be compared within it."""
    rows = sorted(rows, key=lambda row: -(row["score"] if row["score"] is not None else -1e9))
    names = Counter(row["model"] for row in rows)
    for row in rows:
        row["name"] = row["model"] if names[row["model"]] == 1 else f"{row['model']} ({row['run']})"
    settings: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        settings[row["judge"], row["prompts"]].append(row)
    first = rows[0]
    return {
        **{name: first[name] for name in ("suite", "unit", "baseline", "questions")},
        "rows": [{n: v for n, v in row.items() if n not in _INTERNAL} for row in rows],
        "settings": [
            {"judge": judge, "prompts": prompts, "differences": _differences(own, seed),
             "ratings": _ratings(own, seed)}
            for (judge, prompts), own in settings.items()
        ],
        "agreement": list(_agreement(settings)),
    }  # fmt: skip


_INTERNAL = frozenset({"by_question", "outcomes", "group"})


def _differences(rows: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    known = [row for row in rows if row["by_question"]]
    if len(known) < 2:
        return []
    ids = list(known[0]["by_question"])
    parts = [[Part(*row["by_question"].get(id, (0, 0))) for id in ids] for row in known]
    return [
        {"first": known[i]["name"], "second": known[j]["name"], "score": found.value,
         "low": found.low, "high": found.high}
        for (i, j), found in differences(parts, seed=seed).items() if found
    ]  # fmt: skip


def _ratings(rows: Sequence[Row], seed: int) -> dict[str, Any] | None:
    battles = [
        _battle(row, id, share) for row in rows for id, share in (row["outcomes"] or {}).items()
    ]
    return bradley_terry(battles, anchor=rows[0]["baseline"], seed=seed)


def _battle(row: Row, question: str, share: float) -> Battle:
    votes = 1.0
    if row["suite"] == "arena_hard":
        won, votes = row["by_question"][question]
        share = won / votes / 100
    return Battle(
        question=question, first=row["name"], second=row["baseline"], share=share, votes=votes
    )


def _agreement(settings: Mapping[tuple[str, str], Sequence[Row]]) -> Iterator[dict[str, Any]]:
    """Yield how far each two judges agree on the same model's wins, ties and losses."""
    for (one, own), (other, others) in combinations(settings.items(), 2):
        pairs = [
            (outcome, row["outcomes"][id])
            for first in own
            for row in others
            if row["model"] == first["model"]
            for id, outcome in (first["outcomes"] or {}).items()
            if id in (row["outcomes"] or {})
        ]
        if pairs:
            names = [one[0], other[0]]
            if one[0] == other[0]:
                names = [f"{judge}, prompts {prompts[:8]}" for judge, prompts in (one, other)]
            yield {"first": names[0], "second": names[1], **agreement(pairs)}
