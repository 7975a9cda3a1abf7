"""Two answers side by side, each scored from 1 to 10 by a judge.

Source: the Vicuna evaluation of 2023 in OpenChat's variant: the judge explains first (evidence
calibration) and sees both orders of the answers (balanced position calibration); Wang et al.,
"Large Language Models are not Fair Evaluators" (2023).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

HIGHEST = 10
_LIST = re.compile(r"\[[^\[\]]*\]")


def parse_scores(text: str) -> tuple[float, float] | None:
    """The scores of the first and of the second answer shown, as the judge ends with them.

    The last line counts that holds a pair: exactly two numbers, with blanks or a comma between
    them, or a JSON list of two numbers anywhere in it. None where there is no pair, or where it is
    not of numbers from 0 to 10: such a judgment failed, and is worth no score.
    """
    for line in reversed(text.splitlines()):
        for first, second in _pairs(line):
            good = all(math.isfinite(score) and 0 <= score <= HIGHEST for score in (first, second))
            return (first, second) if good else None
    return None


def _pairs(line: str) -> Iterator[tuple[float, float]]:
    words = line.replace(",", " ").split()
    if len(words) == 2 and (pair := _numbers(words)) is not None:
        yield pair
    for found in _LIST.findall(line):
        try:
            values = json.loads(found)
        except ValueError:
            continue
        if len(values) == 2 and all(type(value) in (int, float) for value in values):
            yield float(values[0]), float(values[1])


def _numbers(words: list[str]) -> tuple[float, float] | None:
    try:
        return float(words[0]), float(words[1])
    except ValueError:
        return None


def score(pairs: list[tuple[float, float]]) -> float:
    """The model's scores in per cent of the baseline's; a pair is (model's, baseline's).

    nan where the baseline has none.
    """
    baseline = sum(pair[1] for pair in pairs)
    return 100 * sum(pair[0] for pair in pairs) / baseline if baseline else math.nan
