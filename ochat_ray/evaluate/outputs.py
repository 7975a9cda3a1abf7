"""Files of an evaluation: one that no evaluation wrote is not written over; see `ownership`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership
from ochat_ray.run_dir import RunDir

RESULTS = "results.json"
REPORT = "report.html"
TABLE = "results.md"
MODELS = "models.json"

_SIGNS = {RESULTS: "scores", MODELS: "judges", "comparison.json": "groups"}
"""Fields by which a file of a version without a record is known as ours."""


def claim(output: RunDir, names: Sequence[str]) -> None:
    """Record files as ours before they are written.

    Raises:
        UserError: One is there that no evaluation wrote.
    """
    owner = Ownership(output, "evaluate")
    if not owner.is_recorded() and _is_of_earlier_version(output):
        owner.record(names)
    owner.check(names)
    owner.record(names)


def _is_of_earlier_version(output: RunDir) -> bool:
    for name, field in _SIGNS.items():
        with suppress(UserError):  # not JSON
            found = output.read_json(name)
            if isinstance(found, dict) and field in found:
                return True
    return False
