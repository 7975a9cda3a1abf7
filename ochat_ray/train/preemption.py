"""Notice of preemption: nodes of the run that will be taken away, such as spot instances."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray.train

CHECK_S = 5.0
"""Seconds between checks; Ray Train 2.60 looks for draining nodes as often by default."""


class PreemptionNotice:
    """Notices that have arrived; each node's notice is reported once.

    Ray Train restarts the workers when the nodes are gone, or at the notice's deadline.

    Args:
        agree: returns the first worker's value on all workers.
    """

    def __init__(self, agree: Callable[[Any], Any]) -> None:
        self._agree = agree
        self._known: set[str] = set()
        self._checked = time.monotonic()

    def arrived(self) -> bool:
        """Return whether another node is to be taken away; all workers must call it together."""
        # Asking Ray Train is a call to an actor and a barrier, too slow for every step.
        if not self._agree(time.monotonic() - self._checked >= CHECK_S):
            return False
        self._checked = time.monotonic()
        info = ray.train.get_preemption_info()
        nodes = {*info.preempted_node_ids} if info else set()
        new = nodes - self._known
        self._known |= nodes
        return bool(new)
