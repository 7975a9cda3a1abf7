"""report.html of a `prepare` run: one file that opens offline and runs no script.

Everything that came from the inputs is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from ochat_ray.data.statistics import Statistics

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #647084; --line: #d9dee7;
        --paper: #fbfbfd; --card: #fff; --main: #2f6fde; --drop: #d9822b; --good: #dff3e4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #97a1b3; --line: #333b49;
        --paper: #14181f; --card: #1b212b; --main: #6c9cf0; --drop: #e0a05c; --good: #1f3f2b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
td:first-child { overflow-wrap: normal; white-space: nowrap; }
.soft { color: var(--soft); } code { font-size: .88em; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
        padding: .7rem 1rem; flex: 1 1 6.5rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
         vertical-align: top; overflow-wrap: anywhere; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { width: 45%; } .bar i { display: block; height: 1rem; border-radius: .2rem;
         background: var(--main); min-width: 1px; } .bar i.drop { background: var(--drop); }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg rect { fill: var(--main); }
svg line { stroke: var(--drop); stroke-dasharray: 4 3; stroke-width: 1.5; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
          margin: .5rem 0; padding: .4rem .9rem; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
mark { background: var(--good); color: inherit; border-radius: .15rem; }
"""


def render_report(manifest: dict[str, Any], statistics: Statistics) -> str:
    """The report's HTML; `manifest` is the one that is about to be written."""
    counts, tokens = manifest["counts"], manifest["tokens"]
    total_tokens = statistics.token_count
    supervised = sum(split["supervised_tokens"] for split in tokens.values())
    tiles = [
        ("conversations read", f"{counts['read']:,}"),
        ("kept", f"{counts['kept']:,}"),
        ("held out", f"{tokens['eval']['rows']:,}"),
        ("tokens", f"{total_tokens:,}"),
        ("supervised", _percent(supervised, total_tokens)),
        ("seconds", f"{manifest['seconds']['total']:,.0f}"),
    ]
    sections = [
        "".join(f"<div class=tile><b>{value}</b>{label}</div>" for label, value in tiles),
        _funnel(counts),
        _reasons(counts, statistics),
        _lengths(manifest, statistics),
        _turns(statistics),
        _labels(statistics),
        _stages(manifest),
        _samples(statistics),
    ]
    title = f"Data report: {escape(str(manifest['config']['recipe']))}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f"<p class=soft>template {escape(manifest['model_type'])}, context "
        f"{manifest['context_length']:,} tokens, digest <code>{manifest['digest'][:16]}</code></p>"
        f"<div class=tiles>{sections[0]}</div>" + "".join(sections[1:]) + "</html>\n"
    )


def _funnel(counts: dict[str, Any]) -> str:
    rows = [("read", counts["read"], False)]
    rows += [(f"− {reason}", n, True) for reason, n in counts["dropped"].items()]
    rows += [("kept", counts["kept"], False)]
    body = "".join(
        f"<tr><td>{escape(label)}<td class=n>{n:,}<td class=n>{_percent(n, counts['read'])}"
        f"<td class=bar>{_bar(n, counts['read'], drop)}"
        for label, n, drop in rows
    )
    return f"<h2>From read to kept</h2><table>{body}</table>"


def _reasons(counts: dict[str, Any], statistics: Statistics) -> str:
    if not counts["dropped"]:
        return ""
    body = "".join(
        f"<tr><td>{escape(reason)}<td class=n>{n:,}<td>"
        + "<br>".join(
            f"<code>{escape(e['id'])}</code> <span class=soft>{escape(e['detail'])}</span>"
            for e in statistics.examples[reason]
        )
        for reason, n in counts["dropped"].items()
    )
    return (
        "<h2>Why the others were dropped</h2><table><tr><th>reason<th><th>for example"
        f"{body}</table><p class=soft>Every one is in dropped/*.parquet.</p>"
    )


def _lengths(manifest: dict[str, Any], statistics: Statistics) -> str:
    limit = manifest["context_length"]
    bins = _bin(statistics.lengths, 4 * limit, 48)
    note = (
        f"{statistics.cut_conversations:,} conversations are cut at {limit:,} tokens, which loses "
        f"{statistics.cut_tokens:,} tokens "
        f"({_percent(statistics.cut_tokens, statistics.token_count + statistics.cut_tokens)})."
    )
    labels = ["1", f"{2 * limit:,}", f"{4 * limit:,} tokens or more"]
    chart = _histogram(bins, labels, line=(0.25, f"context {limit:,}"))
    return f"<h2>Conversation length</h2>{chart}<p class=soft>{note}</p>"


def _turns(statistics: Statistics) -> str:
    bins = _bin(statistics.turns, 40, 20)
    return f"<h2>Turns a conversation</h2>{_histogram(bins, ['1', '20', '40 or more'])}"


def _labels(statistics: Statistics) -> str:
    body = "".join(
        f"<tr><td>{escape(label or 'no label')}<td class=n>{n:,}"
        f"<td class=bar>{_bar(n, statistics.read_well)}"
        for label, n in statistics.models.most_common(15)
    )
    return f"<h2>Model labels, before filtering</h2><table>{body}</table>"


def _stages(manifest: dict[str, Any]) -> str:
    seconds = manifest["seconds"]
    body = "".join(
        f"<tr><td>{stage}<td class=n>{value:,.1f} s<td class=bar>{_bar(value, seconds['total'])}"
        for stage, value in seconds.items()
    )
    return f"<h2>Time</h2><table>{body}</table>"


def _samples(statistics: Statistics) -> str:
    parts = []
    for sample in statistics.samples:
        text = "".join(
            f"<mark>{escape(piece)}</mark>" if weight else escape(piece)
            for piece, weight in sample["tokens"]
        ).replace("</mark><mark>", "")
        more = "" if len(sample["tokens"]) == sample["length"] else " <span class=soft>…</span>"
        parts.append(
            f"<details><summary><code>{escape(sample['id'])}</code> <span class=soft>"
            f"{sample['length']:,} tokens, {sample['split']}</span></summary>"
            f"<pre>{text}{more}</pre></details>"
        )
    return (
        "<h2>What the model sees</h2><p class=soft>Coloured tokens are supervised; the others are "
        f"context.</p>{''.join(parts)}"
    )


def _bin(counts: Counter[int], top: int, bins: int) -> list[int]:
    """Counts in `bins` equal ranges of 1..top; larger values are in the last."""
    heights = [0] * bins
    for value, n in counts.items():
        heights[min(bins - 1, (value - 1) * bins // top)] += n
    return heights


def _histogram(
    heights: Sequence[int], labels: Sequence[str], line: tuple[float, str] | None = None
) -> str:
    """Bars and labels below them; `line` is a labelled mark at a share of the width."""
    width, height, gap = 900, 150, 2
    highest = max(heights, default=0) or 1
    step = width / len(heights)
    bars = "".join(
        f"<rect x={i * step:.1f} y={height - n / highest * height:.1f} "
        f"width={step - gap:.1f} height={n / highest * height:.1f}><title>{n:,}</title></rect>"
        for i, n in enumerate(heights)
    )
    anchors = ("start", "middle", "end")
    ticks = "".join(
        f"<text x={width * i / (len(labels) - 1):.0f} y={height + 16} "
        f"text-anchor={anchors[i]}>{label}</text>"
        for i, label in enumerate(labels)
    )
    mark = ""
    if line is not None:
        x, label = width * line[0], line[1]
        mark = f"<line x1={x:.0f} x2={x:.0f} y1=0 y2={height} />"
        mark += f"<text x={x + 5:.0f} y=12>{label}</text>"
    return f"<svg viewBox='0 0 {width} {height + 22}' role=img>{bars}{mark}{ticks}</svg>"


def _bar(n: float, total: float, drop: bool = False) -> str:
    share = 100 * n / total if total else 0
    return f"<i{' class=drop' if drop else ''} style='width:{share:.2f}%'></i>"


def _percent(n: float, total: float) -> str:
    return f"{100 * n / total:.1f}%" if total else "0%"
