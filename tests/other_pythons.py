"""Plugin of `make test-pythons`: skip what takes long or needs what another Python may not have.

A test is skipped, with the reason, when it

- starts a process or a Ray, which `make test` does with the Python of `.venv`;
- imports a package that is left out of the environment (`LEFT_OUT`, which the target sets).
"""

from __future__ import annotations

import os
import subprocess

import pytest

LEFT_OUT = set(os.environ.get("LEFT_OUT", "").split())


@pytest.fixture(autouse=True, scope="session")
def start_no_process():
    """Skip the test, or those of the fixture, that starts a process."""

    def skip(*_, **__):
        pytest.skip("starts a process")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess.Popen, "__init__", skip)
        yield


def pytest_collection_modifyitems(items):
    for item in items:
        if "shared_ray" in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="starts a Ray"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return skipped_if_left_out((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call):
    return skipped_if_left_out((yield))


def skipped_if_left_out(report):
    """Return the report, as a skip when a missing package that was left out made it fail."""
    if report.failed:
        for package in LEFT_OUT:
            if f"No module named '{package}'" in str(report.longrepr):
                report.outcome = "skipped"
                report.longrepr = (str(report.nodeid), 0, f"Skipped: {package} is left out")
                break
    return report
