"""The Ray that a job works on: the cluster there is, or one of its own."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import ray
from ray._private.services import get_ray_address_from_environment  # nothing public says it

from ochat_ray.errors import UserError

WAIT = 20.0
"""Seconds that a Ray has to answer in; a head that is started again needs some."""


def join_or_start() -> bool:
    """Join the Ray that RAY_ADDRESS or the last `ray start` here names, or start one.

    Returns:
        Whether it was this call; False where the process was on a Ray already.

    Raises:
        UserError: the Ray that is named does not answer.
    """
    if ray.is_initialized():
        return False
    try:
        address = get_ray_address_from_environment(None, None)  # type: ignore[arg-type]
        if address not in (None, "local"):
            _wait_for(address)
        # One that this starts is for this process alone; nobody would see its dashboard.
        ray.init(log_to_driver=False, include_dashboard=False)
    except ConnectionError as error:
        raise UserError(
            f"{str(error).splitlines()[0].rstrip('.')}; RAY_ADDRESS or an earlier `ray start` "
            "names it: start it, unset RAY_ADDRESS, or have `ray stop` forget one that has crashed"
        ) from error
    return True


def _wait_for(address: str) -> None:
    """Until something listens there: ray.init takes a quarter of an hour to find out.

    Raises:
        ConnectionError: nothing did in WAIT seconds, or the address is none.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number
        host, port = None, None
    if not host or not port:
        raise ConnectionError(f"{address} is no address of a Ray, which is host:port")
    deadline = time.monotonic() + WAIT
    while True:
        try:
            socket.create_connection((host, port), timeout=WAIT).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(f"no Ray answers at {address}") from error
            time.sleep(1)
