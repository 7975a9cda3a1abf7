"""What a lost host, a full disk and a lost head cost: time."""

import json
import time

import pytest

from ochat_ray.lock_claims import Timing
from tests.cluster.conftest import LONG, wait_for
from tests.cluster.jobs import OUTPUT, meanwhile, preparation, prepare, result_of, train, training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STAGES = {"clean": "/clean/", "dedup": "/done/exact/", "tokenize": "/tokens/"}
"""The folder of a work folder whose first file shows that the stage is under way."""


def has_reached(cluster, name, stage):
    return any(STAGES[stage] in key for key in cluster.objects(f"runs/{name}/.work-"))


def wait_for_stage(cluster, name, stage):
    wait_for(lambda: has_reached(cluster, name, stage), f"{stage} of {name}", 120)


def test_hosts_that_crash_in_each_stage_of_prepare_change_nothing(cluster, prepared):
    first, second = cluster.workers

    def crash():
        wait_for_stage(cluster, "crashed", "clean")
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
        again = prepare(cluster, "crashed")
    assert again["digest"] == prepared["digest"]
    assert again["counts"] == prepared["counts"]
    cluster.wait_for_hosts(3)  # the autoscaler starts Ray on them again


def test_workers_killed_in_each_stage_change_nothing(cluster, prepared):
    killed = []

    def kill():
        for stage in STAGES:
            wait_for_stage(cluster, "killed", stage)
            for host in cluster.workers:
                # Prints how many.
                found = host.inside("pkill -9 -c -f '^ray::(IDLE|MapBatches)' || true").stdout
                killed.append(int(found))

    with meanwhile(kill):
        again = prepare(cluster, "killed")
    assert sum(killed) >= len(STAGES), killed
    assert again["digest"] == prepared["digest"]


def test_a_full_disk_is_one_line_and_resume_goes_on(cluster, prepared):
    # Hosts that share a disk need no store.
    output = f"{cluster.hosts.disk}/full"
    filler = cluster.hosts.disk / "filler"
    cluster.hosts.resize_disk(1)
    filler.write_bytes(b"x" * 900_000)
    printed = cluster.fail("ray", "job", "submit", "--", *preparation(output))
    assert "\njobs/prepare.py: no space left on the device" in printed
    assert "Traceback" not in printed
    filler.unlink()
    cluster.hosts.resize_disk(64)
    again = result_of(cluster.submit(*preparation(output, "--resume")))
    assert again["digest"] == prepared["digest"]


FILL = """
import ray, time
ray.init()
fill = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(lambda: bytes(50 << 20))
kept = [fill.remote() for _ in range(12)]
ray.wait(kept, num_returns=len(kept))
time.sleep(20)
"""
"""Several times what the hosts' stores hold, for as long as prepare takes."""


def test_full_object_stores_spill_and_change_nothing(cluster, prepared):
    cluster.head.inside("cat > ~/ochat_ray/fill.py", input=FILL)
    spilled = "find /tmp/ray -path '*spill*' -type f -size +1M"
    with meanwhile(lambda: cluster.submit("python", "fill.py")):
        for host in cluster.workers:
            wait_for(lambda host=host: host.inside(spilled).stdout, "a spilled object", 120)
        again = prepare(cluster, "spilled")
    assert again["digest"] == prepared["digest"]


def has_checkpoint(cluster, name):
    # state.json is written last.
    files = cluster.objects(f"runs/{name}/checkpoints/")
    return any(key.endswith("/state.json") for key in files)


def steps_of(cluster, name):
    lines = map(json.loads, cluster.read(f"runs/{name}/metrics.jsonl").splitlines())
    return [line["step"] for line in lines if "loss" in line]


def test_a_host_cut_off_while_training_comes_back_to_the_same_loss(cluster, trained):
    def cut():
        wait_for(lambda: has_checkpoint(cluster, "lost"), "a checkpoint", 180)
        cluster.workers[1].unplug()
        cluster.wait_for_hosts(2)
        cluster.workers[1].plug()

    with meanwhile(cut):
        result = train(cluster, "lost", *LONG)
    assert (result["world_size"], result["step"]) == (2, 40)
    assert steps_of(cluster, "lost") == list(range(1, 41))
    assert result["eval_after"]["loss"] == pytest.approx(trained["eval_after"]["loss"], 1e-5)


def test_a_host_lost_for_good_while_training_leaves_the_same_loss(cluster, trained):
    lost = cluster.workers[0]

    def crash():
        wait_for(lambda: has_checkpoint(cluster, "smaller"), "a checkpoint", 180)
        lost.crash()

    with meanwhile(crash):
        result = train(cluster, "smaller", *LONG, "--num-workers-min", "1")
    assert (result["world_size"], result["step"]) == (1, 40)
    assert steps_of(cluster, "smaller") == list(range(1, 41))
    assert result["eval_after"]["loss"] == pytest.approx(trained["eval_after"]["loss"], 1e-3)
    lost.boot()


def lose_head(cluster, when, *job):
    """Crash the head in the middle of a job, start it again and `ray up`."""

    def crash():
        wait_for(when, "the moment", 180)
        cluster.head.crash()
        time.sleep(5)
        cluster.hang_up()  # for the client, whom nobody told

    with meanwhile(crash):
        cluster.fail("ray", "job", "submit", "--", *job)
    cluster.head.boot()
    cluster.up()


def test_a_head_lost_while_prepare_runs(cluster, prepared):
    job = preparation(f"{OUTPUT}/headless", "--resume")
    lose_head(cluster, lambda: has_reached(cluster, "headless", "clean"), *job)
    assert not cluster.objects("runs/headless/manifest.json")
    time.sleep(Timing().stale_s)  # until the lost driver's lock is free
    assert result_of(cluster.submit(*job))["digest"] == prepared["digest"]


def test_a_head_lost_while_training(cluster, trained):
    job = training("beheaded", *LONG)
    lose_head(cluster, lambda: has_checkpoint(cluster, "beheaded"), *job)
    result = result_of(cluster.submit(*job))
    assert steps_of(cluster, "beheaded") == list(range(1, 41))
    assert result["eval_after"]["loss"] == pytest.approx(trained["eval_after"]["loss"], 1e-5)
