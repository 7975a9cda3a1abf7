"""Parse ratings, verdicts and scores from the text of a judgment.

The judge's reasoning is removed first, and the last mark counts: a judge may repeat its
instructions, or quote an answer, before its verdict. What is out of scale is unreadable.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

LOWEST, HIGHEST = 1, 10

Verdict = Literal["A", "B", "tie"]
Pair = tuple[float, float]

_REASONING = "think|thinking|thought|thoughts|reasoning|reflection"
# Not in quotes, where the judge writes about the tag. The forms after <think> are of Mistral, Kimi,
# Cohere and gpt-oss (harmony: every channel but `final`), whose special tokens may be missing.
_TAG = re.compile(
    rf"(?<![`\"'“‘])(?:<(?P<close>/?)(?:\w+:)?(?:{_REASONING})\b[^<>]*>|"
    r"\[(?P<close2>/?)THINK\]|◁(?P<close3>/?)think▷|<\|(?:START|(?P<close4>END))_THINKING\|>"
    r"|<\|channel\|>\s*(?:(?P<close5>final)|\w*)(?:[^<]*<\|(?!channel)\w+\|>)*"
    r"|\A(?-i:analysis(?=[A-Z]))|(?P<close6>assistantfinal)(?-i:(?=[^a-z])))",
    re.IGNORECASE,
)
_CLOSING = [name for name in _TAG.groupindex if name.startswith("close")]
# A judge that does not stop writes a user's turn next, and verdicts on what it invents there.
_NEXT_TURN = re.compile(
    r"<\|im_end\|>\s*<\|im_start\|>|<\|eot_id\|>\s*<\|start_header_id\|>"
    r"|<end_of_turn>\s*<start_of_turn>|<\|end\|>\s*<\|user\|>|</s>\s*(?:\[INST\]|###|USER\b)"
)
_MARK = re.compile(r"\[\[([^\[\]]*)\]\]")
_OF_TEN = r"(?:\s*(?:/|out\s+of)\s*10(?:\.0)?(?![\d.]*\d))"
_RATING = re.compile(rf"\s*(?:rating\s*[:=]?)?\s*(\d+(?:[.,]\d*)?){_OF_TEN}?\s*", re.IGNORECASE)
_RATING_ALONE = re.compile(
    rf"(?:[\w ]{{0,20}}\brating\s*[:=]\s*)?\[{_RATING.pattern}\]\.?", re.IGNORECASE
)
_VERDICT = re.compile(
    r"\s*(?:(?:assistant|answer|model|response)?\s*([ABC]|tie|draw)"
    r"|([AB])\s*(<{1,2}|>{1,2}|=)\s*([AB]))\s*",
    re.IGNORECASE,
)


def without_reasoning(text: str) -> str:
    """Return the text without reasoning in tags such as `<think>`.

    A tag that is never closed extends to the end. A closing tag alone ends a reasoning that began
    with the reply, as when the chat template opens it.
    """
    kept, start, inside = "", 0, False
    for tag in _TAG.finditer(text):
        if not any(tag.group(*_CLOSING)):
            kept += "" if inside else text[start : tag.start()]
            inside = True
        else:
            kept, inside = kept if inside else "", False
        start = tag.end()
    return kept if inside else kept + text[start:]


def declined(judgment: Mapping[str, Any]) -> bool:
    """Return whether a complete judgment is about an empty answer.

    If it has no verdict, the judge declined to rate it: the empty answer has the lowest score.
    """
    # A weighted judgment has one token, and its length as the reason to finish.
    complete = judgment.get("finish_reason", "stop") in ("stop", "") or judgment.get("logprobs")
    text = without_reasoning(judgment["text"]).strip()
    return any(judgment.get("empty", ())) and bool(complete and text)


def rating_of(judgment: Mapping[str, Any]) -> float | None:
    """Return the rating in a judgment; 1 if the judge declined to rate an empty answer."""
    rating = parse_rating(judgment["text"])
    return float(LOWEST) if rating is None and declined(judgment) else rating


def verdict_of(judgment: Mapping[str, Any]) -> Verdict | None:
    """Return the verdict in a judgment; an empty answer that was not rated loses."""
    verdict = parse_verdict(judgment["text"])
    if verdict is not None or not declined(judgment):
        return verdict
    first, second = judgment["empty"]
    return "tie" if first and second else "B" if first else "A"


def scores_of(judgment: Mapping[str, Any]) -> Pair | None:
    """Return the scores in a judgment; 1 to 10 against an empty answer that was not rated."""
    # A list in the prose of a judgment that was cut off is not its verdict.
    complete = judgment.get("finish_reason") not in ("length", "content_filter")
    pair = parse_scores(judgment["text"], prose=complete)
    if pair is not None or not declined(judgment):
        return pair
    first, second = (float(LOWEST if empty else HIGHEST) for empty in judgment["empty"])
    return first, second


def parse_rating(text: str) -> float | None:
    """Parse a rating: the last `[[x]]`, else a last line that holds nothing but `Rating: [x]`.

    None if there is none, or if it is no number from 0 to 10.
    """
    mark = _last_mark(text)
    lines = _plain(text).split("\n") if mark is None else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    found = _RATING_ALONE.fullmatch(last) if mark is None else _RATING.fullmatch(mark)
    rating = float(found[1].replace(",", ".")) if found else HIGHEST + 1
    return rating if rating <= HIGHEST else None


def parse_verdict(text: str) -> Verdict | None:
    """Parse the preferred answer, A or B, or a tie, from the last `[[...]]`; None if unreadable.

    `[[C]]` is a tie. Arena-Hard's five labels, such as `[[A>>B]]` and `[[A=B]]`, are read as well.
    """
    found = _VERDICT.fullmatch(html.unescape(_last_mark(text) or ""))
    if not found:
        return None
    letter, left, sign, right = ((group or "").upper() for group in found.groups())
    if left and left == right:
        return None
    preferred = letter or {"=": "tie", ">": left, "<": right}[sign[0]]
    return "A" if preferred == "A" else "B" if preferred == "B" else "tie"


def parse_votes(text: str) -> tuple[float, int] | None:
    """Parse Arena-Hard's label: the first answer's share of the win, and the number of votes.

    A clear verdict, such as `[[A>>B]]`, has three votes; any other one. None if unreadable.
    """
    verdict = parse_verdict(text)
    if verdict is None:
        return None
    mark = html.unescape(_last_mark(text) or "")
    votes = 3 if "<<" in mark or ">>" in mark else 1
    return {"A": 1.0, "B": 0.0, "tie": 0.5}[verdict], votes


def votes_of(judgment: Mapping[str, Any]) -> tuple[float, int] | None:
    """Return the votes in a judgment; an empty answer that was not rated loses clearly."""
    votes = parse_votes(judgment["text"])
    if votes is not None or not declined(judgment):
        return votes
    first, second = judgment["empty"]
    return (0.5, 1) if first and second else (0.0, 3) if first else (1.0, 3)


def _last_mark(text: str) -> str | None:
    """Return the content of the last double brackets, without emphasis; None without any."""
    marks = _MARK.findall(_plain(text))
    return marks[-1] if marks else None


def readable_mark(content: str) -> bool:
    """Return whether a judge's `[[content]]` would be read as a rating or a verdict."""
    mark = f"[[{content}]]"
    return parse_rating(mark) is not None or parse_verdict(mark) is not None


def _plain(text: str) -> str:
    """Return the judge's own turn without reasoning, Markdown's emphasis and TeX's backslashes."""
    own = _NEXT_TURN.split(without_reasoning(text), maxsplit=1)[0]
    return re.sub(r"[*`\\]", "", own)


_NUMBER = r"(-?\d+(?:\.\d+)?)"
_SCORE_OF_TEN = rf"\s*{_NUMBER}{_OF_TEN}"
_PAIR = rf"\s*{_NUMBER}{_OF_TEN}?\s*,\s*{_NUMBER}{_OF_TEN}?\s*"
# Only where the sentence is about scores: a judge also writes of lists, points and results.
_LIST_IN_PROSE = re.compile(
    rf"(?:\b(?:scores?|ratings?)\b[^\n()\[\]]{{0,80}}|\bthe (?:final )?output(?: tuple)? is:?\s*)"
    rf"(?:\[{_PAIR}\]|\({_PAIR}\))|\[{_SCORE_OF_TEN}\s*,{_SCORE_OF_TEN}\s*\]",
    re.IGNORECASE,
)
_PAIR_ALONE = re.compile(
    r"^[ \t]*(?:(?:[>#]+|-)[ \t]+)?(?:[\w ]{0,40}\b(?:scores?|ratings?|output)[ \t]*[:=][ \t]*)?"
    rf"(?:\[?[\[(]{_PAIR}[\])]\]?|{_NUMBER}(?:[ \t]*,[ \t]*|[ \t]+){_NUMBER})[ \t]*\.?[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
_ANSWER = r"(?:assistant|answer|response|model)"
_LABELLED = re.compile(
    r"(?P<before>\b(?:scores?|ratings?)[ \t]+(?:of|for)[ \t]+(?:the[ \t]+)?)?"
    rf"\b(?P<what>{_ANSWER})[ _#]*(?P<who>[12AB])(?:'s|’s)?(?:[ \t]+(?:answer|response))?"
    r"(?P<after>[\s:_–—-]*(?:score|rating))?[\"\])]*[ \t]*[:=][ \t]*(?P<score>-?\d+(?:\.\d+)?)"
    rf"(?:(?P<of_ten>{_OF_TEN})|(?=[ \t]*(?:[.,;}}]?[ \t]*$|[(–—-][ \t]*[a-z]"
    rf"|[,;|]?[ \t\"]*(?:and[ \t]+)?(?:the[ \t]+)?(?:scores?|ratings?|{_ANSWER})(?![a-z]))))",
    re.MULTILINE | re.IGNORECASE,
)


def parse_scores(text: str, *, prose: bool = True) -> Pair | None:
    """Parse the scores of the first and second answer from a judgment; None if unreadable.

    The last line counts that holds nothing but two numbers, a list or a tuple of them; so do
    labelled scores, such as FairEval's `Score of the Assistant 1: 8` and its second line. Without
    any, and with `prose`, the last list or tuple of two numbers counts in a sentence on scores,
    such as "the scores are [8, 7]" or "I give [8/10, 7/10]". A judgment whose pair is incomplete or
    outside 0 to 10 is unreadable.
    """
    plain = _plain(text)
    found: list[tuple[int, Pair | None]] = [
        (line.start(), _numbers(line)) for line in _PAIR_ALONE.finditer(plain)
    ]
    found += _labelled(plain)
    if prose and not found:
        found = [(one.start(), _numbers(one)) for one in _LIST_IN_PROSE.finditer(plain)]
    pair = max(found, key=lambda one: one[0])[1] if found else None
    return pair if pair and all(0 <= score <= HIGHEST for score in pair) else None


def _numbers(found: re.Match[str]) -> Pair:
    first, second = (float(group) for group in found.groups() if group is not None)
    return first, second


def _labelled(text: str) -> Iterator[tuple[int, Pair | None]]:
    """Yield position and scores of both answers; None for one score after the last pair.

    `Answer 1: 42` may be what an answer says: without the word "score" or `/10`, only an
    assistant's number is a score.
    """
    seen: dict[bool, float] = {}
    complete = False
    for one in _LABELLED.finditer(text):
        if one["what"].lower() != "assistant" and not (
            one["before"] or one["after"] or one["of_ten"]
        ):
            continue
        first = one["who"] in "1Aa"
        seen = {first: float(one["score"])} | ({} if first in seen else seen)
        if len(seen) == 2:
            yield one.start(), (seen[True], seen[False])
            seen, complete = {}, True
        at = one.start()
    if seen and complete:
        yield at, None
