"""Connect a job to a running Ray cluster, or start a local one."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import ray
from ray._private.services import get_ray_address_from_environment  # Ray 2.60 has no public one
from ray.job_config import JobConfig

from ochat_ray.cluster.view import LABEL
from ochat_ray.errors import UserError, first_line

WAIT = 20.0
"""Seconds to wait for a Ray cluster to answer; a head that restarts needs some of them."""


def join_or_start() -> bool:
    """Join the Ray cluster given by RAY_ADDRESS or the last local `ray start`, or start one.

    Returns:
        True if this call connected; False if the process was already connected.

    Raises:
        UserError: The named cluster does not answer.
    """
    if ray.is_initialized():
        return False
    try:
        address = get_ray_address_from_environment(None, None)  # type: ignore[arg-type]
        if address not in (None, "local"):
            _wait_for(address)
        # A cluster started here is for this process alone, so it needs no dashboard.
        label = JobConfig(metadata={LABEL: "true"})
        ray.init(log_to_driver=False, include_dashboard=False, job_config=label)
    except ConnectionError as error:
        raise UserError(
            f"{first_line(error).rstrip('.')}; RAY_ADDRESS or an earlier `ray start` "
            "names it: start it, unset RAY_ADDRESS, or have `ray stop` forget one that has crashed"
        ) from error
    return True


def would_start() -> bool:
    """Return whether `join_or_start` would start a cluster for this process alone."""
    address = get_ray_address_from_environment(None, None)  # type: ignore[arg-type]
    return not ray.is_initialized() and address in (None, "local")


def _wait_for(address: str) -> None:
    """Wait until something listens at the address; ray.init itself gives up only after 15 minutes.

    Raises:
        ConnectionError: Nothing listened within WAIT seconds, or the address is invalid.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is not a number
        host, port = None, None
    if not host or not port:
        raise ConnectionError(f"{address} is not the address of a Ray cluster, which is host:port")
    deadline = time.monotonic() + WAIT
    while True:
        try:
            socket.create_connection((host, port), timeout=WAIT).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(f"no Ray answers at {address}") from error
            time.sleep(1)
