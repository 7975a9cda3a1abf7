"""Workers use Ray's network interface, whatever the hostname resolves to."""

import pytest

from ochat_ray.train import process_group
from ochat_ray.train.process_group import interface_of, use_interface_of_ray


def test_the_interface_is_the_one_with_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None


@pytest.mark.parametrize(("given", "used"), [(None, "lo"), ("eth7", "eth7")])
def test_a_users_choice_is_kept(monkeypatch, given, used):
    monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    environment = {} if given is None else {"GLOO_SOCKET_IFNAME": given}
    monkeypatch.setattr(process_group.os, "environ", environment)
    use_interface_of_ray()
    assert environment == {"GLOO_SOCKET_IFNAME": used}
