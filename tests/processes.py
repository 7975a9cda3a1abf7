"""Processes that this test run has started: those of other runs are not its own."""

from __future__ import annotations

import psutil


def descendants(title: str) -> list[psutil.Process]:
    """Those of this process whose command line has the title, in the order of their ids."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return sorted(found, key=lambda process: process.pid)
