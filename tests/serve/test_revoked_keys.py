"""A revoked key stays revoked when the ingress is killed."""

import os
import signal

import httpx
import pytest

from tests.processes import descendants
from tests.serve.application import deploy, deployed, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

KEPT, REVOKED = "sk-kept-aaaaaaaaaaaaaaaaaaaaaaaa", "sk-revoked-bbbbbbbbbbbbbbbbbbbbbbbb"


def ingress_pids():
    return [process.pid for process in descendants("ray::ServeReplica:revoked:Ingress")]


def test_a_revoked_key_stays_revoked_after_kill_9_and_with_more_replicas_of_the_ingress(
    cluster, model_directory, tmp_path
):
    def status(key):
        headers = {"Authorization": f"Bearer {key}"}
        try:
            answer = httpx.get(f"{cluster}/revoked/v1/models", headers=headers, timeout=30)
        except httpx.HTTPError:  # while there is no ingress
            return 0
        return answer.status_code

    keys = tmp_path / "keys"
    keys.write_text(f"kept:{KEPT}\nrevoked:{REVOKED}\n")
    keys.chmod(0o600)
    with deployed(model_directory, "revoked", keys=str(keys)):
        wait_until(lambda: status(KEPT) == status(REVOKED) == 200, 120)
        keys.write_text(f"kept:{KEPT}\n")
        wait_until(lambda: status(REVOKED) == 401, 30)
        (pid,) = ingress_pids()
        os.kill(pid, signal.SIGKILL)
        seen = set()

        def is_back():
            seen.add(status(REVOKED))
            return ingress_pids() not in ([], [pid]) and status(KEPT) == 200

        wait_until(is_back, 120)
        assert status(REVOKED) == 401
        options = {"num_cpus": 0.5, "engine": "scripted", "ui": False}
        deploy(model_directory, "revoked", keys=str(keys), ingress_replicas=2, **options)

        def has_two():
            seen.add(status(REVOKED))
            return len(ingress_pids()) == 2

        wait_until(has_two, 120)
        wait_until(lambda: status(KEPT) == 200, 60)
        seen.update(status(REVOKED) for _ in range(20))
        assert 200 not in seen
