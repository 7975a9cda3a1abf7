"""Scale of prepare with the number of nodes: use of all nodes, and memory of the driver.

    python benchmarks/cluster_scale.py --nodes 4,16,50

Real raylets, workers and tasks, with one CPU each, for the given numbers of nodes, all on this
machine; only the separate processors are simulated. So the absolute seconds are those of this
machine's few processors, and the relevant result is how the times and the driver grow. A node needs
about 0.4 GiB. Linux only; run it alone on the machine: it starts a Ray for each size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ochat_ray.demo import assets

FILES_A_NODE = 4
RECORDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="4,16,50", help="sizes, with commas between")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.size:
        print(json.dumps(measure(arguments.size)))
        return
    print(
        "| nodes | started, s | placed on all, s | files | nodes that cleaned | clean, s | "
        "dedup, s | tokenize, s | driver: CPU s | driver, MiB |\n" + "| --- " * 10 + "|"
    )
    for size in map(int, arguments.nodes.split(",")):
        # A separate process each, since a driver does not release memory.
        command = [sys.executable, __file__, "--size", str(size)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row = json.loads(printed.splitlines()[-1])
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


def measure(size: int) -> dict[str, Any]:
    """Return one row of the table."""
    os.environ |= {
        "RAY_enable_worker_prestart": "0",  # a node's worker starts with its first task
        # As many workers as nodes start at the same time, on few processors.
        "RAY_worker_register_timeout_seconds": "600",
        # The nodes' reports to the dashboard would occupy these few processors.
        "RAY_metrics_report_interval_ms": "60000",
        "REPORTER_UPDATE_INTERVAL_MS": "60000",
        "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
    }
    import ray
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its nodes end with it
    started = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    for _ in range(size):
        cluster.add_node(wait=False, num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes(timeout=600)
    ready = time.monotonic()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return {
                "nodes": size,
                "started": round(ready - started, 1),
                "placed": round(seconds_to_place(size), 1),
                **prepare(Path(folder), size * FILES_A_NODE),
            }
    finally:
        ray.shutdown()
        cluster.shutdown()


def seconds_to_place(size: int) -> float:
    """Measure the time until a placement group has a bundle on each node, as for a training job."""
    from ray.util.placement_group import placement_group, remove_placement_group

    started = time.monotonic()
    group = placement_group([{"CPU": 1}] * size, strategy="STRICT_SPREAD")
    assert group.wait(600), "not placed"
    seconds = time.monotonic() - started
    remove_placement_group(group)
    return seconds


def prepare(folder: Path, files: int) -> dict[str, Any]:
    """Measure a run of prepare; each file is cleaned by a separate task."""
    from ray.util.state import list_tasks

    from ochat_ray.data import pipeline
    from ochat_ray.data.config import PrepareConfig

    write_input(folder / "in", files)
    config = PrepareConfig(
        input=(str(folder / "in"),),
        output=str(folder / "out"),
        keep_model="any",
        tokenizer=str(assets.base_model()),
        eval_ratio=0.1,
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    manifest = pipeline.prepare(config)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert manifest["counts"]["kept"] == files * RECORDS
    tasks = list_tasks(filters=[("state", "=", "FINISHED")], limit=10_000)
    nodes = Counter(task.node_id for task in tasks if "clean_group" in task.name)
    seconds = manifest["seconds"]
    return {
        "files": files,
        "nodes that cleaned": len(nodes),
        **{stage: seconds[stage] for stage in ("clean", "dedup", "tokenize")},
        "driver CPU": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "driver MiB": after.ru_maxrss // 1024,
    }


def write_input(folder: Path, files: int) -> None:
    folder.mkdir()
    for number in range(files):
        lines = [
            json.dumps({"id": f"{number}-{n}", "conversations": [
                {"from": "human", "value": f"question {n} of file {number}"},
                {"from": "gpt", "value": f"<p>answer {n} of file {number}</p>"},
            ]}) + "\n"
            for n in range(RECORDS)
        ]  # fmt: skip
        (folder / f"{number:06d}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
