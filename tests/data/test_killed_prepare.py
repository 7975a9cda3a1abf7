"""kill -9 of real jobs at random instants, beside a second job, while the inputs change.

Whatever happens before: a job that ends with status 0 has the rows of the inputs as they are, and
its manifest describes them. The jobs share one Ray, where a killed job's workers live on a while.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ochat_ray.data.verify import ALL_TABLES, verify_tables
from ochat_ray.run_dir import open_tokens
from tests.pages import share_page

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
KILLS, PAGES = int(os.environ.get("KILLS", "6")), 36
"""KILLS=30 takes a quarter of an hour."""


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()


class Jobs:
    """Starts jobs/prepare.py on the same pages into the same output."""

    def __init__(self, folder, tokenizer, address):
        self.pages, self.output = folder / "pages", folder / "out"
        self.versions = dict.fromkeys(range(PAGES), 0)
        self.tokenizer = tokenizer
        self.environment = os.environ | {"RAY_ADDRESS": address}
        self.pages.mkdir()
        for number in self.versions:
            self.write(number)

    def write(self, number):
        """One page's current version, of the same size as every other version of it."""
        items = [
            {"from": "human", "value": self.question(number)},
            {"from": "gpt", "value": "<p>fine</p>"},
        ]
        (self.pages / f"{number:02d}.html").write_bytes(share_page(items, id=f"p{number:02d}"))

    def change(self, number):
        self.versions[number] += 1
        self.write(number)

    def question(self, number):
        return f"Question {number:02d}, version {self.versions[number]:03d}?"

    def start(self, *flags, seed=0):
        command = [sys.executable, "jobs/prepare.py", "--recipe", "openchat", "--json"]
        command += ["--input", str(self.pages), "--output", str(self.output)]
        command += ["--tokenizer", self.tokenizer, "--keep-model", "any"]
        command += ["--eval-ratio", "0.3", "--seed", str(seed), *flags]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags, seed=0):
        return finish(self.start(*flags, seed=seed))

    def check(self, printed):
        """The tables are those of the pages as they are, and of the manifest that was printed."""
        manifest = json.loads((self.output / "manifest.json").read_text())
        assert json.loads(printed.splitlines()[-1]) == manifest
        verify_tables(str(self.output), manifest, ALL_TABLES)
        rows = pq.read_table(self.output / "conversations").to_pylist()
        questions = {row["id"]: row["turns"][0]["text"] for row in rows}
        assert questions == {f"p{number:02d}": self.question(number) for number in self.versions}
        assert len(rows) == PAGES == manifest["counts"]["kept"]
        ids = [
            id
            for split in ("train", "eval")
            for id in open_tokens(str(self.output), split)["id"].to_pylist()
        ]
        assert sorted(ids) == sorted(questions)


def finish(process):
    """Status, standard output, and the message, which is one line."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode in (0, 2), errors
    assert "Traceback" not in errors
    message = [line for line in errors.splitlines() if line.startswith("jobs/prepare.py: ")]
    assert len(message) == (process.returncode == 2), errors
    return process.returncode, output, "".join(message)


def test_kill_9_at_random_instants_never_leaves_a_wrong_table(
    tmp_path, tokenizer_directory, address
):
    jobs, rng = Jobs(tmp_path, tokenizer_directory, address), random.Random(0)
    started = time.monotonic()
    status, output, _ = jobs.run()
    assert status == 0
    jobs.check(output)
    undisturbed_s = time.monotonic() - started

    for number in range(KILLS):
        jobs.change(rng.randrange(PAGES))
        first = jobs.start("--overwrite", seed=number)
        time.sleep(rng.uniform(0.3, 1.0) * undisturbed_s)
        first.kill()
        first.communicate()
        if number % 3 == 0:
            # --resume, of the killed run; complete data of the run before needs --overwrite.
            status, output, message = jobs.run("--resume", seed=number)
            if status == 2:
                assert "complete run of another configuration" in message
                status, output, message = jobs.run("--overwrite", seed=number)
        elif number % 3 == 1:
            jobs.change(rng.randrange(PAGES))
            status, output, message = jobs.run("--resume", seed=number)
            if status == 2:
                assert "was changed since" in message or "of another configuration" in message
                status, output, message = jobs.run("--overwrite", seed=number)
        else:
            two = [jobs.start("--overwrite", seed=1000 + 2 * number + i) for i in range(2)]
            results = [finish(process) for process in two]
            assert any(result[0] == 0 for result in results), results
            for status, _, message in results:
                assert status == 0 or "in use by prepare on " in message
            # If one began after the other had ended, the second one's result stays.
            last = json.loads((jobs.output / "manifest.json").read_text())
            (output,) = [
                out
                for status, out, _ in results
                if status == 0 and json.loads(out.splitlines()[-1]) == last
            ]
            status, message = 0, ""
        assert status == 0, message
        jobs.check(output)
        assert not list(jobs.output.glob(".work-*"))
