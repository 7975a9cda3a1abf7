"""A lost head, lost hosts, killed workers and a full disk cost prepare time, and nothing else."""

import shutil
import time

import pytest

from ochat_ray.lock_claims import Timing
from tests.cluster.conftest import wait_for
from tests.cluster.jobs import OUTPUT, lose_head, meanwhile, preparation, prepare, result_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

STAGES = {"clean": "/clean/", "dedup": "/done/exact/", "tokenize": "/tokens/"}
"""The folder of a work folder whose first file shows that the stage is under way."""


def files_of_stage(cluster, name, stage):
    return [key for key in cluster.objects(f"runs/{name}/.work-") if STAGES[stage] in key]


def wait_for_stage(cluster, name, stage, done=0):
    """Until there are more than `done` files of it."""
    wait_for(lambda: len(files_of_stage(cluster, name, stage)) > done, f"{stage} of {name}", 240)


def test_a_lost_head_and_hosts_that_crash_in_each_stage_of_prepare_change_nothing(
    cluster, prepared
):
    first, second = cluster.workers
    job = preparation(f"{OUTPUT}/crashed", "--resume")
    lose_head(cluster, lambda: wait_for_stage(cluster, "crashed", "clean"), *job)
    assert not cluster.objects("runs/crashed/manifest.json")
    done = len(files_of_stage(cluster, "crashed", "clean"))
    time.sleep(Timing().stale_s)  # until the lost driver's lock is free

    def crash():
        wait_for_stage(cluster, "crashed", "clean", done)
        first.crash()
        wait_for_stage(cluster, "crashed", "dedup")
        second.crash()
        cluster.wait_for_hosts(1)
        first.boot()
        wait_for_stage(cluster, "crashed", "tokenize")
        first.crash()
        cluster.wait_for_hosts(1)
        first.boot()
        second.boot()

    with meanwhile(crash):
        again = result_of(cluster.submit(*job))
    assert again["digest"] == prepared["digest"]
    assert again["counts"] == prepared["counts"]
    cluster.wait_for_hosts(3)  # the autoscaler starts Ray on them again


FILL = """
import ray, time
ray.init()
fill = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(lambda: bytes(50 << 20))
kept = []
for _ in range(120):  # again and again, also on a host that came back late
    kept = kept[-6:] + [fill.remote() for _ in range(6)]
    ray.wait(kept, num_returns=len(kept), timeout=60)
    time.sleep(5)
"""
"""Several times what the hosts' stores hold, until it is stopped."""


def test_full_object_stores_and_workers_killed_in_each_stage_change_nothing(cluster, prepared):
    killed = []

    def kill():
        for stage in STAGES:
            wait_for_stage(cluster, "killed", stage)
            for host in cluster.workers:
                # Prints how many.
                found = host.inside("pkill -9 -c -f '^ray::(IDLE|MapBatches)' || true").stdout
                killed.append(int(found))

    cluster.head.inside("cat > ~/ochat_ray/fill.py", input=FILL)
    submit = ("ray", "job", "submit", "--no-wait", "--submission-id", "fill")
    cluster.run(*submit, "--", "python", "fill.py")
    spilled = "find ~/.ray -path '*spill*' -type f -size +1M"
    try:
        for host in cluster.workers:
            wait_for(lambda host=host: host.inside(spilled).stdout, "a spilled object", 240)
    except TimeoutError as error:
        error.add_note(cluster.run("ray", "job", "logs", "fill"))
        raise
    with meanwhile(kill):
        again = prepare(cluster, "killed")
    cluster.run("ray", "job", "stop", "fill")  # fails where it has ended
    assert sum(killed) >= len(STAGES), killed
    assert again["digest"] == prepared["digest"]


def test_a_full_disk_is_one_line_and_resume_goes_on(cluster, prepared):
    # Hosts that share a disk need no store.
    output = f"{cluster.hosts.disk}/full"
    filler = cluster.hosts.disk / "filler"
    # Whatever other tests left on it.
    cluster.hosts.resize_disk(1 + -(-shutil.disk_usage(filler.parent).used // 2**20))
    filler.write_bytes(bytes(shutil.disk_usage(filler.parent).free - 150_000))
    printed = cluster.fail("ray", "job", "submit", "--", *preparation(output))
    assert "\njobs/prepare.py: no space left on the device" in printed
    assert "Traceback" not in printed
    filler.unlink()
    cluster.hosts.resize_disk(64)
    again = result_of(cluster.submit(*preparation(output, "--resume")))
    assert again["digest"] == prepared["digest"]
