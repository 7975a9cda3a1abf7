"""The jobs as a client outside submits them, with the options that all tests here share."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

OUTPUT, BASE = "s3://bucket/runs", "s3://bucket/base"


def preparation(output, *options):
    """The command of a run of prepare."""
    return (
        "python", "jobs/prepare.py", "--input", "s3://bucket/input", "--recipe", "openchat",
        "--tokenizer", BASE, "--output", output, "--eval-ratio", "0.1", "--json", *options,
    )  # fmt: skip


def prepare(cluster, name, *options):
    """The manifest of a run of prepare."""
    return result_of(cluster.submit(*preparation(f"{OUTPUT}/{name}", *options)))


def training(name, *options):
    """The command of a training of two workers, each on a host of its own."""
    return (
        "python", "jobs/train.py", "--data", f"{OUTPUT}/data", "--model", BASE, "--recipe",
        "openchat", "--output", f"{OUTPUT}/{name}", "--num-workers", "2", "--dtype", "float32",
        "--max-tokens", "512", "--tokens-per-step", "1024", "--eval-tokens", "1024", "--json",
        *options,
    )  # fmt: skip


def train(cluster, name, *options):
    """The manifest of a model that is trained so."""
    return result_of(cluster.submit(*training(name, *options)))


def result_of(printed):
    """The JSON object of a job's `--json`."""
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


@contextmanager
def meanwhile(work):
    """Do this in a thread; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        yield
        running.result()


def lose_head(cluster, when, *job):
    """Crash the head in the middle of a job, start it again and `ray up`."""

    def crash():
        when()
        cluster.head.crash()
        cluster.hang_up()  # for the client, whom nobody told

    with meanwhile(crash):
        cluster.fail("ray", "job", "submit", "--", *job)
    cluster.head.boot()
    cluster.up()
