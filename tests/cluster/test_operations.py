"""docs/operations.md's lines from nothing to an answer, run as they stand there."""

import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
from contextlib import suppress

import pytest

from ochat_ray.local_cluster import need_free_ports
from tests.cluster.hosts import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

BY_THE_FIXTURE = ("# ", "git clone ", "$EDITOR ", "ray up ", "ray down ")
"""How the lines begin that `cluster` has done, or will do."""


def documented_lines():
    text = (ROOT / "docs/operations.md").read_text()
    block = re.search(r"\nFrom nothing to an answer.*\n\n((?:    .*\n)+)", text)[1]
    return textwrap.dedent(block).splitlines()


@pytest.fixture
def assets(cluster):
    """What `ochat_ray.demo_assets` finds at the client's: small files of the demo's names."""
    folder = cluster.hosts.folder / "home/.cache/ochat_ray"
    folder.mkdir(parents=True)
    shutil.copytree(cluster.repository / "tiny", folder / "smollm2-135m-instruct")
    turns = [
        {"id": str(n), "conversations": [
            {"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"A number: {n}"},
        ]}
        for n in range(2000)
    ]  # fmt: skip
    (folder / "sharegpt_v3_first_125509632_bytes.json").write_text(json.dumps(turns))


def test_the_lines_of_the_docs_lead_to_an_answer(cluster, assets):
    need_free_ports((8265, 8000))
    shared = cluster.hosts.disk / "shared"
    shared.mkdir()
    lines = [line for line in documented_lines() if not line.startswith(BY_THE_FIXTURE)]
    script = "\n".join(lines).replace("HEAD:", f"{cluster.head.address}:")
    environment = cluster.environment | {"RSYNC_RSH": cluster.hosts.ssh}
    del environment["RAY_API_SERVER_ADDRESS"], environment["RAY_UP_enable_autoscaler_v2"]
    walk = subprocess.Popen(
        ["bash", "-e", "-c", script.replace("/shared", str(shared))],
        cwd=cluster.repository, env=environment, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        printed = walk.communicate(timeout=400)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(walk.pid, signal.SIGTERM)  # what goes on in the background
        cluster.submit("serve", "shutdown", "--yes")
    assert walk.returncode == 0, printed
    answer = printed.splitlines()[-1]
    assert answer.startswith('{"id":"chatcmpl-'), printed
    assert json.loads(answer)["usage"]["completion_tokens"] > 0
