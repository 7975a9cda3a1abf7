"""Options that would keep what was dropped, for the last line of prepare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ochat_ray.data.config import PrepareConfig
from ochat_ray.recipes import CHAT
from ochat_ray.schema import Reason

if TYPE_CHECKING:
    from ochat_ray.data.statistics import Statistics

LITTLE = 0.5
"""Share of conversations; if fewer are kept, an option that would keep more is named."""

_OPTIONS = {
    Reason.OTHER_MODEL: "--keep-model any keeps every model label",
    Reason.BLOCKED_WORD: "--blocked-words without a word blocks none",
    Reason.WRONG_ROLE_ORDER: "--merge-turns joins consecutive turns of one role",
    Reason.PROVIDER_ERROR: "--keep-noise all keeps answers that look like error messages",
    Reason.TOO_LONG: "--long cut or --long split keeps parts of them; --max-length is the limit",
    Reason.NO_SUPERVISED_TOKENS: "a larger --max-length includes their answers",
    Reason.TEMPLATE_REFUSED: "--template FILE.jinja gives a template that accepts them",
    Reason.NEAR_DUPLICATE: "a higher --near-duplicates, or none, keeps more of them",
    Reason.LOW_FIDELITY: "a lower --min-fidelity keeps them",
    Reason.CONTAMINATED: "without --decontaminate they are kept",
    Reason.MALFORMED: "--columns conversations=NAME,role=NAME,text=NAME gives the names of records "
    "that use others",
}
_UNSUPPORTED = "--recipe chat keeps tools and their calls, if the model's template writes them"
_WITH_TOOLS = "pictures and files are not supported; remove them from the records"


def advice(config: PrepareConfig, dropped: Mapping[str, int], *, kept: int) -> str:
    """Return what would keep more, if little was kept; "" if nothing is known or needed.

    Args:
        config: The configuration.
        dropped: Number of drops by reason.
        kept: Number of kept conversations.
    """
    total = kept + sum(dropped.values())
    if kept >= LITTLE * total:
        return ""
    options = {reason: _option(config, reason) for reason in dropped}
    known = [reason for reason in dropped if options[reason]]
    if not known:
        return ""
    most = max(known, key=lambda reason: dropped[reason])
    return f"{dropped[most]:,} of {total:,} were dropped as {most}: {options[most]}"


def explain_nothing(what: str, config: PrepareConfig, statistics: Statistics) -> str:
    """Return why nothing is left, and the option that would keep most of it."""
    option = advice(config, statistics.counts()["dropped"], kept=0)
    return f"{what}: {statistics.explain_drops()}{f'; {option}' if option else ''}"


def last_lines(config: PrepareConfig, manifest: Mapping[str, Any]) -> list[str]:
    """Return the advice on a finished run: on what was dropped, and on an empty split."""
    counts, tokens = manifest["counts"], manifest["tokens"]
    found = advice(config, counts["dropped"], kept=counts["kept"])
    lines = [found] if found else []
    if counts["kept"] and not tokens["eval"].get("rows", 1):
        lines.append(
            f"no conversation is held out, and train needs some: give a larger --eval-ratio than "
            f"{config.eval_ratio:g}, such as 0.5"
        )
    return lines


def _option(config: PrepareConfig, reason: str) -> str:
    if reason == Reason.UNSUPPORTED:
        return _WITH_TOOLS if config.model_type == CHAT else _UNSUPPORTED
    return next((text for known, text in _OPTIONS.items() if known == reason), "")
