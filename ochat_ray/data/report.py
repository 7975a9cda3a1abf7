"""Write report.html of a `prepare` run: one file that opens offline and runs no script.

The template, templates/report.html, escapes all text. As a second safeguard, the page's content
security policy forbids scripts and external resources.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment

from ochat_ray.data.parts.samples import SHOWN_CHARACTERS
from ochat_ray.data.report_figures import (
    Histogram,
    Row,
    bars_of,
    cut,
    fidelity_in_words,
    percent,
    place,
)
from ochat_ray.data.report_inputs import inputs_tables
from ochat_ray.data.report_names import EXPLANATIONS, LANGUAGES
from ochat_ray.data.report_samples import shown_samples
from ochat_ray.data.statistics import Shares, Statistics, most_first
from ochat_ray.report_template import page_environment
from ochat_ray.schema import Stage
from ochat_ray.tokenization.supervision import NOTES

_LEFT_AFTER = {
    Stage.READ: "could be read",
    Stage.CLEAN: "pass the rules",
    Stage.DEDUP: "are unique",
    Stage.TOKENIZE: "kept",
}


def render_report(manifest: dict[str, Any], statistics: Statistics) -> str:
    """Return the report's HTML; `manifest` is the manifest that will be written."""
    counts, limit = manifest["counts"], manifest["context_length"]
    noise = statistics.noise
    values = {
        "manifest": manifest,
        "statistics": statistics,
        "tiles": _tiles(manifest, statistics),
        "funnel": _funnel(counts, statistics),
        "passed_over": _counted(Counter(counts["passed_over"]), 15, "kinds"),
        "explanations": EXPLANATIONS,
        "noise": [
            Row(label=name, n=n, total=noise.total()) for name, n in most_first(noise).items()
        ],
        "labels": _counted(_labels(statistics), 15, "labels"),
        "inputs": inputs_tables(statistics),
        "turns": _turns(statistics),
        "lengths": _lengths(limit, statistics),
        "cut_note": _cut_note(limit, statistics),
        "template_notes": most_first(statistics.template_notes),
        "notes": NOTES,
        "languages": _counted(_languages(statistics), 10, "languages"),
        "fidelity": _fidelity(statistics),
        "speed": _speed(manifest["seconds"], statistics),
        "samples": shown_samples(statistics.samples),
        "limit": SHOWN_CHARACTERS,
        "configuration": _configuration(manifest),
    }
    return _environment().get_template("report.html").render(values)


@cache
def _environment() -> Environment:
    return page_environment("ochat_ray.data", percent, place, cut, fidelity_in_words)


def _tiles(manifest: dict[str, Any], statistics: Statistics) -> list[tuple[str, str]]:
    counts, tokens = manifest["counts"], manifest["tokens"]
    total = statistics.token_count
    supervised = sum(split["supervised_tokens"] for split in tokens.values())
    return [
        (f"{counts['read']:,}", "read"),
        (f"{counts['kept']:,}", f"kept, {percent(counts['kept'], counts['read'])}"),
        (f"{statistics.kept['eval']:,}", "of them held out"),
        (f"{total:,}", "tokens"),
        (percent(supervised, total), "supervised"),
        (percent(_lost(statistics), statistics.offered), "lost to the limit"),
        (f"{manifest['seconds']['total']:,.0f} s", "from start to end"),
    ]


def _lost(statistics: Statistics) -> int:
    """Return the tokens of unique conversations that are in no sample."""
    kept = sum(length * n for length, n in statistics.lengths.items())
    return statistics.offered - kept + statistics.cut_tokens


def _funnel(counts: dict[str, Any], statistics: Statistics) -> list[Row]:
    """Return every reason in the order of the stages; each bar marks the share that it removes."""
    read = left = counts["read"]
    rows = [Row(label="read", n=read, total=read, kind="sum")]

    def removed(label: str, n: int) -> Row:
        return Row(label=f"− {label}", n=n, total=read, start=left, kind="drop", drop=True)

    if n := sum(counts["passed_over"].values()):
        left -= n
        rows.append(removed("passed over", n))
    for stage in Stage:
        dropped = [
            (reason, n)
            for reason, n in counts["dropped"].items()
            if _stage(reason, statistics) == stage
        ]
        for reason, n in dropped:
            left -= n
            rows.append(removed(reason, n))
        if dropped and stage != Stage.TOKENIZE:
            rows.append(Row(label=_LEFT_AFTER[stage], n=left, total=read, kind="sum"))
    rows.append(Row(label="kept", n=counts["kept"], total=read, kind="sum"))
    return rows


def _stage(reason: str, statistics: Statistics) -> str:
    return statistics.examples[reason][0]["stage"]


def _labels(statistics: Statistics) -> Counter[str]:
    return Counter({label or "no label": n for label, n in statistics.models.items()})


def _languages(statistics: Statistics) -> Counter[str]:
    names: Counter[str] = Counter()
    for code, n in statistics.languages.items():
        names[LANGUAGES.get(code, code) or "unclear"] += n
    return names


def _counted(counts: Counter[str], rows: int, plural: str) -> list[Row]:
    """Return rows of the most frequent names, and the rest as the last one."""
    total = counts.total()
    # Not by order of arrival: the report must not depend on which part came first.
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ordered[:rows], ordered[rows:]
    found = [Row(label=label[:120], n=n, total=total) for label, n in shown]
    if rest:
        others = sum(n for _, n in rest)
        found.append(Row(label=f"{len(rest):,} other {plural}", n=others, total=total))
    return found


def _turns(statistics: Statistics) -> Histogram:
    longest = max(statistics.turns, default=0)
    # In pairs: nearly all conversations consist of questions with one answer each.
    bars = bars_of(
        statistics.turns, span=2, bars_a_span=1, bars=min(20, max(5, math.ceil(longest / 2)))
    )
    step = 1 if len(bars) <= 10 else 2
    ticks = [((i + 0.5) / len(bars), f"{2 * (i + 1)}") for i in range(0, len(bars) - step, step)]
    ticks.append((1.0, f"{2 * len(bars)}+" if longest > 2 * len(bars) else f"{2 * len(bars)}"))
    return Histogram(bars=bars, unit="turns", ticks=ticks)


def _lengths(limit: int, statistics: Statistics) -> Histogram:
    """Return lengths before truncation; the context length is between two bars."""
    longest = max(statistics.lengths, default=0)
    to_limit = min(16, limit)
    # Up to the longest conversation, at most four times the limit, and always beyond it.
    count = min(
        4 * to_limit, max(math.ceil(longest * to_limit / limit), math.ceil(1.25 * to_limit))
    )
    bars = bars_of(statistics.lengths, span=limit, bars_a_span=to_limit, bars=count)
    top = count * limit // to_limit
    end = f"{top:,} tokens" + (" or more" if longest > top else "")
    ticks = [(0.0, "1")]
    ticks += [(n * limit / top, f"{n * limit:,}") for n in (1, 2, 3) if n * limit <= 0.8 * top]
    ticks.append((1.0, end))
    return Histogram(bars=bars, unit="tokens", ticks=ticks, mark=(to_limit, f"context {limit:,}"))


def _cut_note(limit: int, statistics: Statistics) -> str:
    whole = sum(length * n for length, n in statistics.lengths.items())
    kept = statistics.lengths.total()
    note = (
        f"{statistics.cut_conversations:,} of the {kept:,} kept conversations "
        f"({percent(statistics.cut_conversations, kept)}) are cut at {limit:,} tokens, which "
        f"loses {statistics.cut_tokens:,} tokens ({percent(statistics.cut_tokens, whole)})."
    )
    further = statistics.rows.total() - kept
    if further:
        note += (
            f" Split at turn boundaries, the conversations have {further:,} further samples; only "
            "rounds (a question with its answer) that are longer than the context are cut."
        )
    return note


_FIDELITY_STEPS = ((99, "99% or more"), (95, "95% to 99%"), (90, "90% to 95%"), (50, "50% to 90%"))


def _fidelity(statistics: Statistics) -> list[tuple[list[Row], str]]:
    """Return the table rows and the mean of each measure that has a conversation."""
    measures = (("Text", statistics.visible_text), ("Structure", statistics.structure))
    return [_shares(name, shares) for name, shares in measures if shares.count]


def _shares(name: str, shares: Shares) -> tuple[list[Row], str]:
    found: Counter[str] = Counter()
    for hundredths, n in shares.hundredths.items():
        if hundredths < 100:
            found[next((t for low, t in _FIDELITY_STEPS if hundredths >= low), "under 50%")] += n
    count = shares.count
    rows = [Row(label=f"{name}: all of it", n=shares.intact, total=count, kind="sum")]
    rows += [
        Row(label=label, n=found[label], total=count, drop=True)
        for label in [*(text for _, text in _FIDELITY_STEPS), "under 50%"]
        if found[label]
    ]
    mean = shares.total / count
    shown = "100%" if shares.intact == count else f"{math.floor(mean * 1e5) / 1e3:.3f}%"
    return rows, shown


@dataclass(frozen=True, kw_only=True)
class _StageTime:
    """Seconds of a stage, from `start` on, and conversations per second."""

    name: str
    seconds: float
    start: float
    rate: str


def _speed(seconds: dict[str, float], statistics: Statistics) -> dict[str, Any]:
    done = {
        "clean": statistics.read,
        "dedup": statistics.cleaned,
        "near duplicates": statistics.cleaned - statistics.drops["duplicate"],
        "tokenize": statistics.cleaned,
        "write": statistics.kept.total(),
        "total": statistics.read,
    }
    total = seconds["total"]
    stages = {stage: s for stage, s in seconds.items() if stage != "total"}
    # Starting Ray and listing files are nearly all of the time outside of the stages.
    rows = [("start and the rest", max(0.0, total - sum(stages.values()))), *stages.items()]
    times, start = [], 0.0
    for stage, value in rows:
        # The manifest's seconds are rounded, which would distort the rate of a short stage.
        exact = statistics.seconds.get(stage, value)
        rate = f"{done[stage] / exact:,.0f}" if stage in done and exact > 0 else ""
        times.append(_StageTime(name=stage, seconds=value, start=start, rate=rate))
        start += value
    rate = f"{done['total'] / total:,.0f}" if total > 0 else ""
    return {"stages": times, "total": total, "rate": rate}


def _configuration(manifest: dict[str, Any]) -> dict[str, str]:
    shown = {
        **manifest["config"],
        "tokenizer": manifest.get("tokenizer_path"),
        "digest": manifest["digest"],
        **manifest.get("versions", {}),
    }
    return {str(name): _plain(value) for name, value in shown.items()}


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value[:20]) or "none"
    return "none" if value is None else str(value)
