"""A Ray that is named and gone."""

import socket

import pytest

from ochat_ray.cluster import ray_session
from ochat_ray.errors import UserError

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.mark.parametrize("named_by", ["RAY_ADDRESS", "ray start"])
def test_a_ray_that_is_gone_is_one_clear_line(tmp_path, monkeypatch, named_by):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    if named_by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:  # what it leaves behind when it is killed
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    monkeypatch.setattr(ray_session, "WAIT", 0)
    with pytest.raises(UserError, match=f"no Ray answers at {address}; .*`ray stop`"):
        ray_session.join_or_start()


def test_where_any_ray_is_asked_for_and_none_is_it_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    # Others of this machine would be found, too: running ones, and what `ray start` wrote down.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    with pytest.raises(UserError, match=r"not find any running Ray.*unset RAY_ADDRESS"):
        ray_session.join_or_start()


@pytest.mark.parametrize("address", ["10.0.0.1:head", "10.0.0.1", ":6379"])
def test_what_is_no_address_is_one_clear_line_at_once(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        UserError, match=f"^{address} is not the address of a Ray cluster, which is host:port; "
    ):
        ray_session.join_or_start()
