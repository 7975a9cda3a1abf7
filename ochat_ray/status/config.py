"""Command-line options of `jobs/status.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import tyro

from ochat_ray.command_line import flag
from ochat_ray.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Show what runs on a Ray cluster: jobs, run directories, replicas, waits and cost.

    The exit status is 0 if all is well, 1 if something failed or stalled, and 2 for wrong arguments
    or if no cluster answers.
    """

    address: str | None = None
    """URL of the dashboard, such as http://127.0.0.1:8265. Default: RAY_API_SERVER_ADDRESS,
    RAY_ADDRESS, or the last `ray start` on this machine."""
    output: tuple[str, ...] = ()
    """Output directories of prepare and train to report, besides those of the cluster's jobs."""
    price: tuple[str, ...] = ()
    """Price per hour and node type, such as head=0.38 train=27.4: sums up the cost so far."""
    stalled_after: float = 30.0
    """Minutes without progress after which a run counts as stalled."""
    since: float = 24.0
    """Hours for which a failed job is reported after its end."""
    idle_for: float | None = None
    """Exit with 0 only if the cluster has had no job and no served model for this many hours, and
    with 1 otherwise; for a script that shuts the head down."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the status as one JSON object on the last line of standard output."""

    def prices(self) -> dict[str, float]:
        """Return the price per hour of each node type, and raise a UserError for invalid ones."""
        for name in ("stalled_after", "since", "idle_for"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{flag(name)} must be a positive number, not {value}")
        if self.address is not None and "://" not in self.address:
            raise UserError(f"--address {self.address} is not a URL, such as http://127.0.0.1:8265")
        found: dict[str, float] = {}
        for text in self.price:
            kind, _, amount = text.partition("=")
            try:
                found[kind] = float(amount)
            except ValueError:
                found[kind] = math.nan
            if not kind or not (math.isfinite(found[kind]) and found[kind] >= 0):
                raise UserError(f"--price {text} is not TYPE=PRICE, such as train=27.4")
        return found
