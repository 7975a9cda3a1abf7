"""Report section with sampled conversations: as read, as converted, as tokenized.

It runs no script: each conversation is a `<details>`, and their shared name allows one to be open
at a time. A page's HTML is shown as source, never rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from ochat_ray.data.parts import SHOWN_CHARACTERS
from ochat_ray.data.report_html import cut, fidelity_in_words, section
from ochat_ray.data.statistics import worse_fidelity
from ochat_ray.tokenizer import END_OF_TURN

_KEY = (
    "<span class=key>Tokens alternate in shade: <mark><i>learned</i><i> from</i></mark> "
    "(supervised, weight above 0), <i>read</i><i> only</i> (context, weight 0).</span>"
)

Token = tuple[str, float]

_COMPLETE = ""
"""Text after the tokens of a sample that is shown as a whole."""


def samples_section(samples: Sequence[dict[str, Any]]) -> str:
    """Return the samples one below the other, collapsed."""
    if not samples:
        return ""
    intro = (
        f"<p class=soft>{len(samples)} of the kept conversations, chosen by the hash of their "
        "content. Each turn as it was read, as it was converted and as the model gets it. "
        f"{_KEY}</p>"
    )
    body = "".join(_sample(number, sample) for number, sample in enumerate(samples, 1))
    return section("samples", "Sampled conversations", intro + body, wide=True)


def _sample(number: int, sample: dict[str, Any]) -> str:
    turns = sample["turns"]
    facts = [f"{sample['turn_count']:,} turns", f"{sample['length']:,} tokens"]
    further = sample.get("samples", 1) - 1
    if further:
        facts.append(f"the first of {further + 1:,} samples")
    if sample["split"] == "eval":
        facts.append("held out")
    if worse_fidelity(sample) < 1:
        facts.append(f"fidelity {fidelity_in_words(sample)}")
    question = cut(next((text for role, _, text in turns if role == "user"), ""), 110)
    own_template = sample.get("own_template", False)
    tokens = None if own_template else tokens_by_turn(sample["tokens"])
    rest = _COMPLETE if own_template else "cut here at the context length"
    if sample["length"] > len(sample["tokens"]):
        rest = "more tokens, not shown"
    elif further:
        rest = "in a further sample"
    shown = "".join(
        _turn(position, turn, _tokens_at(position, tokens), rest)
        for position, turn in enumerate(turns)
    )
    if own_template:  # which may write a turn more than once, or in another order
        runs = _token_runs([(piece, weight) for piece, weight in sample["tokens"]])
        more = f"<span class=soft>… {rest}</span>" if rest != _COMPLETE else ""
        shown += _pane("Tokens of the first sample", runs + more)
    hidden = sample["turn_count"] - len(turns)
    if hidden > 0:
        shown += f"<p class=soft>… {hidden:,} more {'turn' if hidden == 1 else 'turns'}</p>"
    return (
        f"<details name=sample><summary>{number}. <code>{cut(sample['id'], 80)}</code> "
        f"<span class=soft>{', '.join(facts)}</span><bdi>{question}</bdi></summary>"
        f"<p class=soft>from <code>{cut(sample['source'], 200)}</code></p>{shown}</details>"
    )


def _tokens_at(position: int, tokens: list[list[Token]] | None) -> list[Token] | None:
    if tokens is None:
        return None
    return tokens[position] if position < len(tokens) else []


def _turn(position: int, turn: Sequence[Any], tokens: list[Token] | None, rest: str) -> str:
    role, original, text = turn
    panes = []
    if original is None or original == text:
        panes.append(_pane("Text", _text(text)))
    else:
        is_html = role == "assistant" and "<" in original
        panes.append(_pane("Original HTML" if is_html else "As it was read", _text(original)))
        panes.append(_pane("Markdown" if is_html else "As it was kept", _text(text)))
    if tokens is not None:
        panes.append(_pane("Tokens", _tokens(tokens, rest)))
    return (
        f"<div class=turn><h3>{position + 1}. {escape(role)}</h3>"
        f"<div class=panes>{''.join(panes)}</div></div>"
    )


def _pane(title: str, body: str) -> str:
    # The parser drops a line break right after <pre>, so one is added for it.
    return f"<div><h4>{title}</h4><pre dir=auto>\n{body}</pre></div>"


def _text(text: str) -> str:
    if len(text) < SHOWN_CHARACTERS:
        return escape(text)
    return f"{escape(text)}<span class=soft>… cut here at {SHOWN_CHARACTERS:,} characters</span>"


def tokens_by_turn(tokens: Sequence[Sequence[Any]]) -> list[list[Token]]:
    """Group the tokens by turn, each including its end-of-turn token.

    A person who types the token's name does not end a turn: typed text never becomes that token.
    """
    turns: list[list[Token]] = [[]]
    for piece, weight in tokens:
        turns[-1].append((piece, weight))
        if piece == END_OF_TURN:
            turns.append([])
    return turns


def _tokens(tokens: list[Token], rest: str) -> str:
    runs = _token_runs(tokens)
    if not tokens or tokens[-1][0] != END_OF_TURN:
        runs += f"<span class=soft>… {rest}</span>"
    return runs


def _token_runs(tokens: Sequence[Token]) -> str:
    runs = []
    for supervised, run in groupby(join_broken(tokens), key=lambda token: token[1] > 0):
        pieces = "".join(_piece(piece, count) for piece, _, count in run)
        runs.append(f"<mark>{pieces}</mark>" if supervised else f"<span>{pieces}</span>")
    return "".join(runs)


def join_broken(tokens: Sequence[Token]) -> list[tuple[str, float, int]]:
    """Join the parts of characters: (text, weight, number of tokens).

    A token of a byte-level vocabulary may hold a part of a character, which alone decodes to
    U+FFFD; adjacent ones with the same weight are joined.
    """
    joined: list[tuple[str, float, int]] = []
    for piece, weight in tokens:
        broken = "\ufffd" in piece
        if broken and joined and "\ufffd" in joined[-1][0] and joined[-1][1] == weight:
            before, _, count = joined[-1]
            joined[-1] = (before + piece.lstrip("\ufffd"), weight, count + 1)
        else:
            joined.append((piece, weight, 1))
    return joined


def _piece(piece: str, count: int) -> str:
    hint = f' title="{count} tokens: parts of characters"' if count > 1 else ""
    # A line break has no width that would show its shade.
    return f"<i{hint}>{escape(piece).replace(chr(10), '↵' + chr(10))}</i>"
