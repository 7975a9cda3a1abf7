"""Write report.html of a `prepare` run: one file that opens offline and runs no script.

All text from the inputs is escaped. As a second safeguard, the page's content security policy
forbids scripts and external resources.
"""

from __future__ import annotations

import math
from collections import Counter
from html import escape
from typing import Any

from ochat_ray.data.report_html import (
    bar,
    bars_of,
    cut,
    fidelity_in_words,
    histogram,
    percent,
    section,
)
from ochat_ray.data.report_inputs import inputs_section
from ochat_ray.data.report_names import EXPLANATIONS, LANGUAGES
from ochat_ray.data.report_samples import samples_section
from ochat_ray.data.statistics import Shares, Statistics, most_first
from ochat_ray.report_style import STYLE
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
    title = f"Data report: {escape(str(manifest['config']['recipe']))}"
    sections = [
        _funnel(manifest["counts"], statistics),
        _passed_over(manifest["counts"]),
        _reasons(manifest["counts"], statistics),
        _noise(statistics),
        _labels(statistics),
        inputs_section(statistics),
        _turns(statistics),
        _lengths(manifest["context_length"], manifest["config"].get("long"), statistics),
        _template(statistics),
        _languages(statistics),
        _fidelity(statistics),
        _speed(manifest["seconds"], statistics),
        samples_section(statistics.samples),
        _configuration(manifest),
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style><h1>{title}</h1>"
        f"<p class=soft>template {escape(manifest['model_type'])}, context "
        f"{manifest['context_length']:,} tokens, digest "
        f"<code>{escape(manifest['digest'][:16])}</code>{_jump(statistics)}</p>"
        f"{_tiles(manifest, statistics)}{''.join(sections)}</html>\n"
    )


def _jump(statistics: Statistics) -> str:
    n = len(statistics.samples)
    return f'<br><a href="#samples">{n} conversations to look into</a>' if n else ""


def _tiles(manifest: dict[str, Any], statistics: Statistics) -> str:
    counts, tokens = manifest["counts"], manifest["tokens"]
    total = statistics.token_count
    supervised = sum(split["supervised_tokens"] for split in tokens.values())
    tiles = [
        (f"{counts['read']:,}", "read"),
        (f"{counts['kept']:,}", f"kept, {percent(counts['kept'], counts['read'])}"),
        (f"{statistics.kept['eval']:,}", "of them held out"),
        (f"{total:,}", "tokens"),
        (percent(supervised, total), "supervised"),
        (percent(_lost(statistics), statistics.offered), "lost to the limit"),
        (f"{manifest['seconds']['total']:,.0f} s", "from start to end"),
    ]
    body = "".join(f"<div class=tile><b>{value}</b>{label}</div>" for value, label in tiles)
    return f"<div class=tiles>{body}</div>"


def _lost(statistics: Statistics) -> int:
    """Return the tokens of unique conversations that are in no sample."""
    kept = sum(length * n for length, n in statistics.lengths.items())
    return statistics.offered - kept + statistics.cut_tokens


def _funnel(counts: dict[str, Any], statistics: Statistics) -> str:
    """Show every reason in the order of the stages; each bar marks the share that it removes."""
    read = left = counts["read"]
    rows = [_row("read", read, read, bar(read, read), "sum")]
    if n := sum(counts["passed_over"].values()):
        left -= n
        rows.append(_row("− passed over", n, read, bar(n, read, start=left, drop=True), "drop"))
    for stage in Stage:
        dropped = [
            (reason, n)
            for reason, n in counts["dropped"].items()
            if _stage(reason, statistics) == stage
        ]
        for reason, n in dropped:
            left -= n
            rows.append(_row(f"− {reason}", n, read, bar(n, read, start=left, drop=True), "drop"))
        if dropped and stage != Stage.TOKENIZE:
            rows.append(_row(_LEFT_AFTER[stage], left, read, bar(left, read), "sum"))
    rows.append(_row("kept", counts["kept"], read, bar(counts["kept"], read), "sum"))
    body = f"<table>{''.join(rows)}</table>"
    return section("funnel", "From read to kept", body)


def _passed_over(counts: dict[str, Any]) -> str:
    if not counts["passed_over"]:
        return ""
    body = _counted(Counter(counts["passed_over"]), 15, "kinds") + (
        "<p class=soft>Files, and members of archives, of kinds that hold no conversations.</p>"
    )
    return section("passed-over", "What was passed over", body)


def _stage(reason: str, statistics: Statistics) -> str:
    return statistics.examples[reason][0]["stage"]


def _row(label: str, n: int, total: int, drawn: str, kind: str = "") -> str:
    return (
        f'<tr class="{kind}"><td>{escape(label).replace("_", "_<wbr>")}<td class=n>{n:,}'
        f"<td class=n>{percent(n, total)}<td class=bar>{drawn}"
    )


def _reasons(counts: dict[str, Any], statistics: Statistics) -> str:
    if not counts["dropped"]:
        return ""
    body = ""
    for reason, n in counts["dropped"].items():
        examples = "".join(
            f'<li title="{cut(example["source"], 300)}"><code>{cut(example["id"], 80)}</code> '
            f"<bdi class=soft>{cut(example['detail'], 240)}</bdi>"
            for example in statistics.examples[reason]
        )
        body += (
            f"<div class=reason><p><b>{escape(reason)}</b> {n:,}<br>"
            f"<span class=soft>{escape(EXPLANATIONS.get(reason, ''))}</span></p>"
            f"<ul>{examples}</ul></div>"
        )
    note = "<p class=soft>Every one is in dropped/*.parquet, with its source file.</p>"
    return section("reasons", "Why the others were dropped", body + note)


def _template(statistics: Statistics) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td class=n>{n:,}<td>{escape(NOTES.get(name, ''))}"
        for name, n in most_first(statistics.template_notes).items()
    )
    return section("template", "Chat template", f"<table>{rows}</table>") if rows else ""


def _noise(statistics: Statistics) -> str:
    if not statistics.noise:
        return ""
    total = statistics.noise.total()
    body = "".join(
        _row(name, n, total, bar(n, total)) for name, n in most_first(statistics.noise).items()
    )
    note = (
        "<p class=soft>Turns from which a rule removed text: a browser extension's, or all of "
        "a provider's error message (also of the conversations that were dropped for one). "
        "docs/data-format.md lists the rules; --keep-noise switches them off.</p>"
    )
    return section("noise", "Removed text", f"<table>{body}</table>{note}")


def _labels(statistics: Statistics) -> str:
    labels = Counter({label or "no label": n for label, n in statistics.models.items()})
    body = _counted(labels, 15, "labels") + (
        f"<p class=soft>Of the {statistics.read_well:,} conversations that could be read, before "
        "any filter.</p>"
    )
    return section("models", "Model labels", body)


def _languages(statistics: Statistics) -> str:
    names: Counter[str] = Counter()
    for code, n in statistics.languages.items():
        names[LANGUAGES.get(code, code) or "unclear"] += n
    body = _counted(names, 10, "languages") + (
        "<p class=soft>Of the kept conversations, guessed from the first words; among rare ones "
        "many guesses are wrong.</p>"
    )
    return section("languages", "Languages", body)


def _counted(counts: Counter[str], rows: int, plural: str) -> str:
    """Show the most frequent names as a table, and the rest as its last line."""
    total = counts.total()
    # Not by order of arrival: the report must not depend on which part came first.
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ordered[:rows], ordered[rows:]
    body = "".join(_row(label[:120], n, total, bar(n, total)) for label, n in shown)
    if rest:
        others = sum(n for _, n in rest)
        body += _row(f"{len(rest):,} other {plural}", others, total, bar(others, total))
    return f"<table>{body}</table>"


def _turns(statistics: Statistics) -> str:
    longest = max(statistics.turns, default=0)
    # In pairs: nearly all conversations consist of questions with one answer each.
    bars = bars_of(
        statistics.turns, span=2, bars_a_span=1, bars=min(20, max(5, math.ceil(longest / 2)))
    )
    step = 1 if len(bars) <= 10 else 2
    ticks = [((i + 0.5) / len(bars), f"{2 * (i + 1)}") for i in range(0, len(bars) - step, step)]
    ticks.append((1.0, f"{2 * len(bars)}+" if longest > 2 * len(bars) else f"{2 * len(bars)}"))
    return section("turns", "Turns in a conversation", histogram(bars, unit="turns", ticks=ticks))


def _lengths(limit: int, long: str | None, statistics: Statistics) -> str:
    """Show lengths before truncation; the context length is between two bars."""
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
    chart = histogram(bars, unit="tokens", ticks=ticks, mark=(to_limit, f"context {limit:,}"))
    return section(
        "lengths",
        "Tokens in a conversation",
        f"{chart}<p class=soft>{_cut_note(limit, statistics)}</p>{_choices(long, statistics)}",
    )


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


def _choices(chosen: str | None, statistics: Statistics) -> str:
    """Compare the unique conversations' yields for each choice of --long."""
    body = (
        "<tr><th>--long<th class=n>conversations<th class=n>samples<th class=n>tokens"
        "<th class=n>supervised"
    )
    for choice, sums in statistics.yields.items():
        names = ("conversations", "samples", "tokens", "supervised_tokens")
        label = f"{choice}, this run" if choice == chosen else choice
        body += f"<tr><td>{escape(label)}" + "".join(f"<td class=n>{sums[n]:,}" for n in names)
    note = (
        "<p class=soft>What each choice of --long keeps of the unique conversations. A sample of "
        "split begins with the system turn again.</p>"
    )
    return f"<table>{body}</table>{note}" if statistics.yields else ""


_FIDELITY_STEPS = ((99, "99% or more"), (95, "95% to 99%"), (90, "90% to 95%"), (50, "50% to 90%"))


def _fidelity(statistics: Statistics) -> str:
    if not statistics.converted:
        return ""
    measures = (("Text", statistics.visible_text), ("Structure", statistics.structure))
    body = "".join(_shares(name, shares) for name, shares in measures)
    worst = "".join(
        f'<li title="{cut(w["source"], 300)}"><code>{cut(w["id"], 80)}</code> '
        f"<span class=soft>{fidelity_in_words(w)}</span>"
        for w in statistics.worst
    )
    return section(
        "fidelity",
        "Fidelity of the conversion",
        "<p>A conversation's Markdown is rendered again and compared with the page's HTML. "
        "<b>Text</b> is the share of the visible text that comes back in order, with code line by "
        "line; it shares no code with the converter. <b>Structure</b> is the share of blocks "
        "(paragraphs, list items, code, table rows) that come back as they were.</p>"
        f"<table>{body}</table>"
        f"<p class=soft>{statistics.intact:,} of {statistics.converted:,} converted conversations "
        "are intact in both.</p>" + (f"<p>The worst:</p><ul>{worst}</ul>" if worst else ""),
    )


def _shares(name: str, shares: Shares) -> str:
    """Return the table rows of one measure."""
    rows: Counter[str] = Counter()
    for hundredths, n in shares.hundredths.items():
        if hundredths < 100:
            rows[next((t for low, t in _FIDELITY_STEPS if hundredths >= low), "under 50%")] += n
    all_of_it = f"{name}: all of it"
    body = _row(all_of_it, shares.intact, shares.count, bar(shares.intact, shares.count), "sum")
    for label in [*(text for _, text in _FIDELITY_STEPS), "under 50%"]:
        if rows[label]:
            body += _row(
                label, rows[label], shares.count, bar(rows[label], shares.count, drop=True)
            )
    if not shares.count:
        return ""
    mean = shares.total / shares.count
    shown = "100%" if shares.intact == shares.count else f"{math.floor(mean * 1e5) / 1e3:.3f}%"
    return f"{body}<tr><td class=soft>mean<td class=n><td class=n>{shown}<td>"


def _speed(seconds: dict[str, float], statistics: Statistics) -> str:
    kept = statistics.kept.total()
    done = {
        "clean": statistics.read,
        "dedup": statistics.cleaned,
        "near duplicates": statistics.cleaned - statistics.drops["duplicate"],
        "tokenize": statistics.cleaned,
        "write": kept,
        "total": statistics.read,
    }
    total = seconds["total"]
    stages = {stage: s for stage, s in seconds.items() if stage != "total"}
    # Starting Ray and listing files are nearly all of the time outside of the stages.
    rows = [("start and the rest", max(0.0, total - sum(stages.values()))), *stages.items()]
    body, start = "<tr><th>stage<th class=n>seconds<th class=n>per second<th>", 0.0
    for stage, value in rows:
        # The manifest's seconds are rounded, which would distort the rate of a short stage.
        exact = statistics.seconds.get(stage, value)
        rate = f"{done[stage] / exact:,.0f}" if stage in done and exact > 0 else ""
        body += (
            f"<tr><td>{escape(stage)}<td class=n>{value:,.1f}<td class=n>{rate}"
            f"<td class=bar>{bar(value, total, start=start)}"
        )
        start += value
    rate = f"{done['total'] / total:,.0f}" if total > 0 else ""
    body += f"<tr class=sum><td>total<td class=n>{total:,.1f}<td class=n>{rate}<td>"
    note = "<p class=soft>Per second: conversations that the stage was given.</p>"
    return section("speed", "Speed", f"<table>{body}</table>{note}")


def _configuration(manifest: dict[str, Any]) -> str:
    shown = {
        **manifest["config"],
        "tokenizer": manifest.get("tokenizer_path"),
        "digest": manifest["digest"],
        **manifest.get("versions", {}),
    }
    body = "".join(
        f"<dt>{escape(str(name))}<dd><code>{cut(_plain(value), 400)}</code>"
        for name, value in shown.items()
    )
    details = f"<details><summary>Settings and versions</summary><dl>{body}</dl></details>"
    return section("configuration", "Configuration", details)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value[:20]) or "none"
    return "none" if value is None else str(value)
