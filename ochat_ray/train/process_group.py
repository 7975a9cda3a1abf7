"""Process group of Ray Train's workers, over the network interface that Ray itself uses."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend  # Ray 2.60 has no hook before the group exists


class OwnNetworkConfig(TorchConfig):
    """TorchConfig that also works where the hostname resolves to 127.0.1.1 (Debian, Ubuntu).

    gloo listens on the address of the hostname; with a loopback address, workers on other hosts
    would connect to themselves (ray issue 37461). NCCL finds an interface itself.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Backend class that sets up the workers."""
        return _OwnNetworkBackend


class _OwnNetworkBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


def use_interface_of_ray() -> None:
    """Make gloo use the interface with this node's address, unless the environment sets one."""
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the network interface with an address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
