"""The process group of Ray Train's workers, over the network that Ray itself uses."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend  # Ray has no hook before the group is made


class OwnNetworkConfig(TorchConfig):
    """As TorchConfig, on hosts whose name leads to loopback, too.

    gloo listens where the host's name leads, and Debian's and Ubuntu's leads to 127.0.1.1: workers
    on other hosts would call themselves. NCCL looks for an interface by itself.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the workers up."""
        return _OwnNetworkBackend


class _OwnNetworkBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


def use_interface_of_ray() -> None:
    """Have gloo use the interface with this node's address, unless the environment names one."""
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface with an address; None where there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
