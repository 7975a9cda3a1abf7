"""Write report.html: scores with confidence intervals, and all transcripts.

One file that opens offline and runs no script: the filters are radio buttons and style sheets. All
text from models, judges and questions is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ochat_ray.evaluate.length_control import LEADERBOARD_MODEL
from ochat_ray.evaluate.questions import Question
from ochat_ray.report_style import STYLE

_STYLE = """
.forest { display: grid; grid-template-columns: 14rem minmax(0, 1fr) 15rem; gap: .15rem 1rem; }
.forest > div:nth-child(3n+2) { position: relative; height: 1.5rem; }
.forest u { position: absolute; top: 0; bottom: -.15rem;
  border-left: 1.5px dashed var(--soft); }
.forest i { position: absolute; top: .65rem; height: .25rem; border-radius: .15rem;
  background: var(--main); opacity: .55; min-width: 2px; }
.forest em { position: absolute; top: .4rem; width: .75rem; height: .75rem; border-radius: 50%;
  background: var(--main); transform: translateX(-50%); }
.biases td:first-child { width: 26rem; }
.filters { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-block: .6rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
.answers > div { min-width: 0; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
  background: var(--shade); border-radius: .4rem; padding: .5rem .7rem; margin: .2rem 0 .6rem; }
h4 { font-size: .9rem; margin: .7rem 0 .1rem; color: var(--soft); font-weight: 500; }
@media (max-width: 40rem) { .forest { grid-template-columns: 1fr; }
  .forest > div:nth-child(3n) { margin-bottom: .6rem; } }
"""


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
    scores = results["scores"]
    groups = _groups(entries, _even(results))
    title = f"{results['suite']}: {', '.join(one['model'] for one in scores)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>{escape(_against(results))}</p>",
        _warnings(results),
        _section("Scores", _forest(results, [(o["model"], o) for o in scores])),
        *(_categories(results, one) for one in scores),
        _length_controlled(results),
        _differences(results),
        *(_biases(one) for one in scores if one.get("biases")),
        _questions(entries, groups),
        _section("How this was made", _facts(results)),
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}{_STYLE}{_filter_style(groups)}</style>"
        f"<body>{''.join(body)}</body></html>"
    )


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the scores as a Markdown table."""
    head = f"| model | {results['unit']} | 95% interval | judgments | not readable |\n"
    rows = [
        f"| {_plain(one['model'])} | {_number(one['score'])} | {_interval(one)} "
        f"| {one['judgments']} | {one['failed']} |\n"
        for one in results["scores"]
    ]
    return head + "| --- | --- | --- | --- | --- |\n" + "".join(rows)


def _against(results: Mapping[str, Any]) -> str:
    against = f"against {results['baseline']}, " if results["baseline"] else ""
    return (
        f"{against}judged by {results['judge']} on {results['questions']} questions, "
        f"{results['time'][:10]}"
    )


def _warnings(results: Mapping[str, Any]) -> str:
    judged = {one["model"] for one in results["scores"]} | {results["baseline"]}
    itself = (
        "<p><b>The judge is one of the models that it judges.</b> Such scores test the machinery "
        "and say little of the models.</p>"
    )
    others = [f"<p>{escape(text)}</p>" for text in results.get("warnings", ())]
    return "".join([*([itself] if results["judge"] in judged else []), *others])


def _forest(results: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    known = [one for _, one in rows if one["score"] is not None]
    mark = _even(results)
    values = [v for one in known for v in (one["low"], one["high"])] + ([mark] if mark else [])
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = (high - low) or 1.0
    low, span = low - 0.05 * span, 1.1 * span

    def left(value: float) -> str:
        return f"left:{100 * (value - low) / span:.2f}%"

    line = f'<u style="{left(mark)}"></u>' if mark else ""
    cells = []
    for name, one in rows:
        drawn = line
        if one["score"] is not None:
            width = 100 * (one["high"] - one["low"]) / span
            drawn += f'<i style="{left(one["low"])};width:{width:.2f}%"></i>'
            drawn += f'<em style="{left(one["score"])}"></em>'
        cells.append(
            f"<div>{escape(name)}</div><div>{drawn}</div>"
            f"<div><b>{_number(one['score'])}</b> <span class=soft>{_interval(one)}</span></div>"
        )
    note = f"{results['unit']}, with the 95% interval over questions"
    if mark:
        note += f"; the line is {results['baseline']}'s own"
    return f"<p class=soft>{escape(note)}</p><div class=forest>{''.join(cells)}</div>"


def _even(results: Mapping[str, Any]) -> float | None:
    """Return the score of the baseline against itself."""
    even = {"vicuna": 100.0, "alpaca_eval": 50.0, "mt_bench": 50.0}[results["suite"]]
    return even if results["baseline"] else None


def _categories(results: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    rows = [(f"{name or 'none'} ({c['questions']})", c) for name, c in one["by_category"].items()]
    drawn = _forest(results, rows)
    return _section(f"{one['model']} by category", drawn + _failures(one))


def _failures(one: Mapping[str, Any]) -> str:
    if not one["failed"]:
        return "<p class=soft>Every judgment could be read.</p>"
    text = (
        f"{one['failed']} of {one['judgments']} judgments could not be read "
        f"({one['failed'] / one['judgments']:.1%}); {one['not_judged']} questions count nowhere."
    )
    for rule, found in one.get("by_failures", {}).items():
        how = {"drop": "left out", "zero": "counted as 0 to 0"}[rule]
        text += f" With them {how}: {_number(found['score'])} ({_interval(found)})."
    return f"<p>{escape(text)}</p>"


def _differences(results: Mapping[str, Any]) -> str:
    if not results["differences"]:
        return ""
    rows = "".join(
        f"<tr><td>{escape(d['first'])} − {escape(d['second'])}<td class=n>{_number(d['score'])}"
        f"<td>{_interval(d)}<td>{_verdict(d)}"
        for d in results["differences"]
    )
    return _section("Differences, question by question", f"<table>{rows}</table>")


def _length_controlled(results: Mapping[str, Any]) -> str:
    known = [one for one in results["scores"] if one.get("lc_model")]
    if not known:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one['model'])}<td class=n>{_number(one['length_controlled_winrate'])}"
        f"<td class=n>{_number(one['win_rate'])}<td class=n>{one['avg_length']:,}"
        for one in known
    )
    note = (
        "The win rate that a model would have with answers as long as the baseline's, by "
        f"alpaca_eval's {known[0]['lc_model']}"
    )
    if known[0]["lc_model"] != LEADERBOARD_MODEL:
        note += "; with --difficulty it is the leaderboard's"
    head = "<tr><th><th class=n>controlled<th class=n>win rate<th class=n>characters"
    return _section(
        "Length-controlled", f"<p class=soft>{escape(note)}.</p><table>{head}{rows}</table>"
    )


def _verdict(difference: Mapping[str, Any]) -> str:
    if difference["score"] is None:
        return "nothing was judged"
    unsure = difference["low"] <= 0 <= difference["high"]
    return "may be chance: the interval holds 0" if unsure else "more than chance"


def _biases(one: Mapping[str, Any]) -> str:
    found = one["biases"]
    rows = [
        ("the verdict changes with the order", _share(found["order_changes_verdict"])),
        ("the first answer leads by, on average", _number(found["first_minus_second"])),
        ("of unequal answers, the longer one is preferred", _share(found["longer_preferred"])),
    ]
    if control := one.get("control"):
        rows += [
            ("an answer compared with itself is judged equal", _share(control["called_equal"])),
            ("the first of the two leads by, on average", _number(control["first_minus_second"])),
        ]
    table = "".join(f"<tr><td>{what}<td class=n>{value}<td>" for what, value in rows)
    return _section(
        f"The judge's biases, on {one['model']}", f"<table class=biases>{table}</table>"
    )


def _questions(entries: Sequence[Entry], groups: Groups) -> str:
    radios = "".join(
        f"<label><input type=radio name=show id=show{number} {'checked' if not number else ''}> "
        f"{escape(name)} ({len(members)})</label>"
        for number, (name, members) in enumerate(groups.items())
    )
    shown = "".join(
        _entry(entry, [f"g{n}" for n, members in enumerate(groups.values()) if number in members])
        for number, entry in enumerate(entries)
    )
    return _section("Questions", f"<div class=filters>{radios}</div>{shown}", wide=True)


def _groups(entries: Sequence[Entry], even: float | None) -> Groups:
    """Group entries by filter: all, each category, behind the baseline, and unreadable."""
    found: list[tuple[str, int]] = []
    for number, entry in enumerate(entries):
        found.append((entry.question.category or "no category", number))
    for number, entry in enumerate(entries):
        if even is not None and entry.value is not None and entry.value < even:
            found.append(("behind the baseline", number))
    for number, entry in enumerate(entries):
        if any(said.reading is None for said in entry.judgments):
            found.append(("not readable", number))
    groups = {"all": set(range(len(entries)))}
    for name, number in found:
        groups.setdefault(name, set()).add(number)
    return groups


def _filter_style(groups: Groups) -> str:
    return "".join(
        f"body:has(#show{number}:checked) details.entry:not(.g{number}) {{ display: none; }}"
        for number in range(1, len(groups))
    )


def _entry(entry: Entry, classes: Sequence[str]) -> str:
    columns = "".join(
        f"<div><h4>{escape(name)}</h4>{''.join(_said(text) for text in turns)}</div>"
        for name, turns in entry.answers.items()
    )
    judgments = "".join(
        f"<div><h4>{escape(said.label)}: "
        f"<b>{'not readable' if said.reading is None else escape(said.reading)}</b></h4>"
        f"{_said(said.text)}</div>"
        for said in entry.judgments
    )
    value = "not judged" if entry.value is None else _number(entry.value)
    asked = "".join(_said(turn) for turn in entry.question.turns)
    return (
        f'<details class="entry {" ".join(classes)}"><summary>{escape(entry.question.id[:60])} '
        f"<span class=soft>{escape(entry.question.category)} · {escape(entry.model)} · </span>"
        f"<b>{value}</b><bdi>{escape(entry.question.turns[0][:160])}</bdi></summary>"
        f"<h4>Question</h4>{asked}<div class=answers>{columns}</div>"
        f"<h4>The judge's words</h4><div class=answers>{judgments}</div></details>"
    )


def _said(text: str) -> str:
    return f"<div class=said>{escape(text)}</div>"


def _facts(results: Mapping[str, Any]) -> str:
    facts = {
        "judge": results["judge"], "baseline": results["baseline"], "time": results["time"],
        "ochat_ray": results["version"], "questions' digest": results["questions_digest"],
        "prompts' digest": results["prompts_digest"],
        **_origins(results),
        **{f"--{name.replace('_', '-')}": value for name, value in results["config"].items()},
    }  # fmt: skip
    rows = "".join(
        f"<tr><td>{escape(name)}<td><code>{escape(str(value))}</code>"
        for name, value in facts.items()
        if value not in (None, "", (), [])
    )
    return f"<table>{rows}</table>"


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


def _section(title: str, body: str, *, wide: bool = False) -> str:
    return f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2>{body}</section>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _interval(one: Mapping[str, Any]) -> str:
    """Format an interval; empty for a single question, which says nothing about others."""
    return (
        ""
        if one["score"] is None or one.get("questions") == 1
        else f"{one['low']:,.2f} to {one['high']:,.2f}"
    )


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
