"""Speed of prepare, from share pages to tokens, compared with the pipeline of 2023.

    python benchmarks/share_pages.py --output pages --count 90000
    python benchmarks/prepare_speed.py --pages pages --counts 10000,30000,90000

Ours is `jobs/prepare.py` as a user runs it, including Ray's start. The peer does what OpenChat's
pipeline of July 2023 did, in two processes: parse the page with BeautifulSoup, convert every turn
with markdownify, drop exact duplicates, write JSON, read and filter by model, write JSON, read and
tokenize turn by turn, write JSON. It is slow, so it processes only `--peer-pages` of the pages, and
its rate excludes the time for imports and loading the tokenizer: the difference favours the peer.

All pages are read once before, so that neither side waits for the disk.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
SAMPLE_EVERY_S = 0.5

# ---- measuring


@dataclass
class Memory:
    """Peak memory of a process and its descendants, in bytes: resident minus shared."""

    driver: int = 0
    worker: int = 0
    """Peak of the largest worker."""
    workers: int = 0
    """Peak of all workers together."""
    total: int = 0
    """Peak of all processes, including Ray's own services."""

    def sample(self, driver: psutil.Process) -> None:
        sizes = {"driver": _private_bytes(driver), "worker": 0, "workers": 0}
        total = sizes["driver"]
        for process in _children(driver):
            size = _private_bytes(process)
            total += size
            if _is_worker(process):
                sizes["worker"] = max(sizes["worker"], size)
                sizes["workers"] += size
        for name, size in sizes.items():
            setattr(self, name, max(getattr(self, name), size))
        self.total = max(self.total, total)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def _private_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def _is_worker(process: psutil.Process) -> bool:
    """Return whether a process is a worker.

    A Ray worker is named after its task; the peer's workers are forks of this script.
    """
    try:
        command = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return command.startswith("ray::") or "--run-peer" in command


@dataclass(kw_only=True)
class Measured:
    """Measurements of one run of one program."""

    program: str
    pages: int
    seconds: float
    memory: Memory
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.pages / self.seconds

    def row(self, peer: Measured | None) -> str:
        ratio = f"{self.rate / peer.rate:.1f}x" if peer and peer is not self else ""
        mib = [f"{size / 2**20:,.0f}" for size in (self.memory.driver, self.memory.worker)]
        return (
            f"| {self.program} | {self.pages:,} | {self.seconds:.1f} | {self.rate:,.0f} | {ratio} "
            f"| {1000 * self.seconds / self.pages:.2f} | {mib[0]} | {mib[1]} "
            f"| {self.memory.total / 2**20:,.0f} |"
        )


HEADER = (
    "| program | pages | seconds | conversations per second | ratio | ms per page | driver, MiB "
    "| largest worker, MiB | all processes, MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- "
    "| --- |"
)


def measure(program: str, pages: int, command: Sequence[str]) -> Measured:
    """Run a command that prints JSON on its last line; measure wall clock and memory.

    Raises:
        SystemExit: The command failed; the end of its output is shown.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    memory = Memory()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=errors, text=True
        )
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, memory, done))
        sampler.start()
        process.wait()
        seconds = time.monotonic() - started
        done.set()
        sampler.join()
        output.seek(0)
        errors.seek(0)
        lines = output.read().strip().splitlines()
        if process.returncode != 0 or not lines:
            raise SystemExit(
                f"{program} ended with status {process.returncode}\n{errors.read()[-3000:]}"
            )
    result = json.loads(lines[-1])
    return Measured(
        program=program,
        pages=pages,
        seconds=float(result.get("benchmark_seconds", seconds)),
        memory=memory,
        result=result,
    )


def _sample(pid: int, memory: Memory, done: threading.Event) -> None:
    process = psutil.Process(pid)
    while not done.wait(SAMPLE_EVERY_S):
        memory.sample(process)


# ---- the peer, as in 2023

Sample = dict[str, Any]


class _Reject(Exception):  # noqa: N818
    """Reason for which the pipeline of 2023 rejects a page."""


def load_page(path: str) -> Sample:
    """Return the conversation of one page, found by parsing the page as HTML."""
    from bs4 import BeautifulSoup

    with open(path, encoding="utf-8") as file:
        page = BeautifulSoup(file, "html.parser")
    script = page.find("script", {"id": "__NEXT_DATA__"})
    if script is None:
        raise _Reject("no data")
    try:
        properties = json.loads(script.decode_contents())["props"]["pageProps"]
    except ValueError:
        raise _Reject("malformed") from None
    if "items" not in properties.get("content", {}):
        raise _Reject("no content")
    return {**properties["content"], "id": properties.get("id", "")}


def clean_turns(sample: Sample) -> Sample:
    """Trim the ends, check roles and blocked words, and convert every turn."""
    items = sample["items"]
    if items and items[0]["from"] != "human":
        items = items[1:]
    if items and items[-1]["from"] == "human":
        items = items[:-1]
    if len(items) <= 1:
        raise _Reject("too short")
    for position, item in enumerate(items):
        if item["from"] != ("human", "gpt")[position % 2]:
            raise _Reject("wrong order")
        if "openai" in item["value"].lower():
            raise _Reject("blocked word")
        item["value"] = _convert()(item["value"])
    return {**sample, "items": items}


@functools.cache
def _convert() -> Any:
    from markdown_fidelity import reference_2023

    return reference_2023()


def peer_page(path: str) -> Sample | str:
    """Return a page's conversation, or the reason why there is none.

    The pipeline of 2023 crashed on exceptions other than `_Reject`.
    """
    try:
        return clean_turns(load_page(path))
    except _Reject as reason:
        return str(reason)
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


_PREFIXES = {"human": "Human: ", "gpt": "Assistant: "}


def peer_tokens(sample: Sample) -> dict[str, Any]:
    """Return ids and loss weights of one conversation, tokenized turn by turn."""
    tokenizer = _tokenizer()
    ids = [tokenizer.bos_token_id]
    weights = [0.0]
    for item in sample["items"]:
        weight = 1.0 if item["from"] == "gpt" else 0.0
        prefix = tokenizer(_PREFIXES[item["from"]], add_special_tokens=False).input_ids
        text = tokenizer(item["value"], add_special_tokens=False).input_ids
        text = [*text, tokenizer.eos_token_id]
        ids += prefix + text
        weights += [0.0] * len(prefix) + [weight] * len(text)
    return {"ids": ids[:2048], "weights": weights[:2048]}


@functools.cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_tokenizer_directory(), use_fast=True)


def _tokenizer_directory() -> str:
    """Return the tokenizer's location, as set for this process or its parent."""
    return sys.argv[sys.argv.index("--tokenizer") + 1]


def run_peer(list_of_pages: Path, folder: Path, keep_model: str) -> dict[str, Any]:
    """Run the pipeline of 2023; its seconds exclude imports and loading the tokenizer."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pages = list_of_pages.read_text().splitlines()
    _convert()
    _tokenizer()
    stages: dict[str, float] = {}
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        started = time.monotonic()
        results = pool.map(peer_page, pages)
        samples = _without_duplicates([s for s in results if not isinstance(s, str)])
        _write(folder / "clean.json", samples)
        stages["clean"] = time.monotonic() - started
        wanted = [
            sample
            for sample in _read(folder / "clean.json")
            if keep_model == "any" or _label(sample) == keep_model.lower()
        ]
        _write(folder / "filtered.json", wanted)
        stages["filter"] = time.monotonic() - started - stages["clean"]
        tokens = pool.map(peer_tokens, _read(folder / "filtered.json"))
        with (folder / "tokens.json").open("w") as file:
            json.dump(tokens, file)
        seconds = time.monotonic() - started
        stages["tokenise"] = seconds - stages["clean"] - stages["filter"]
    return {
        "benchmark_seconds": seconds,
        "stages": stages,
        "read": len(pages),
        "rejected": dict(Counter(result for result in results if isinstance(result, str))),
        "clean": len(samples),
        "kept": len(tokens),
        "tokens": sum(len(row["ids"]) for row in tokens),
    }


def _without_duplicates(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first of conversations with equal text, by a hash that differs between runs."""
    seen: dict[tuple[int, int], Sample] = {}
    for sample in samples:
        text = "".join(item["value"] for item in sample["items"])
        seen.setdefault((hash(text), len(sample["items"])), sample)
    return list(seen.values())


def _label(sample: Sample) -> str:
    return re.sub(r"^model:\s*", "", str(sample.get("model", "")).lower())


def _write(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("w") as file:
        json.dump(samples, file, indent="\t")


def _read(path: Path) -> list[Sample]:
    with path.open() as file:
        return list(json.load(file))


# ---- the comparison


def measure_peer(arguments: argparse.Namespace, pages: Sequence[Path], work: Path) -> Measured:
    listed = work / "pages.txt"
    listed.write_text("\n".join(map(str, pages)))
    folder = work / "peer"
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--run-peer", str(listed)]
    command += ["--pages", str(arguments.pages), "--work", str(folder)]
    command += ["--tokenizer", arguments.tokenizer, "--keep-model", arguments.keep_model]
    return measure("2023", len(pages), command)


def measure_ours(arguments: argparse.Namespace, pages: Sequence[Path], work: Path) -> Measured:
    folder = work / f"pages-{len(pages)}"
    _link(pages, folder, arguments.pages)
    command = [sys.executable, "jobs/prepare.py", "--input", str(folder)]
    command += ["--output", str(work / f"ours-{len(pages)}"), "--recipe", "openchat", "--json"]
    command += ["--tokenizer", arguments.tokenizer, "--keep-model", arguments.keep_model]
    measured = measure("ours", len(pages), command)
    shutil.rmtree(folder)
    return measured


def _link(pages: Sequence[Path], folder: Path, root: Path) -> None:
    """Create a folder of exactly these pages as hard links, which every file system API reads."""
    for path in pages:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)


def warm(pages: Sequence[Path]) -> int:
    """Read every page once; return their total size in bytes."""
    return sum(len(path.read_bytes()) for path in pages)


def compare(arguments: argparse.Namespace) -> None:
    pages = sorted(arguments.pages.rglob("*.html"))
    if not pages:
        raise SystemExit(f"prepare: {arguments.pages} holds no .html file")
    counts = [int(count) for count in (arguments.counts or str(len(pages))).split(",")]
    if max(counts) > len(pages):
        raise SystemExit(f"prepare: --counts wants {max(counts):,} of {len(pages):,} pages")
    size = warm(pages[: max([*counts, arguments.peer_pages])])
    print(f"{len(pages):,} pages, {size / 2**20:,.0f} MiB of them used", file=sys.stderr)
    # Next to the pages, because hard links do not cross file systems.
    with tempfile.TemporaryDirectory(dir=arguments.pages.parent, prefix="prepare-") as name:
        work = Path(name)
        peer = None
        if arguments.peer_pages:
            peer = measure_peer(arguments, pages[: arguments.peer_pages], work)
            print(json.dumps({"2023": peer.result}), file=sys.stderr)
        print(HEADER)
        if peer:
            print(peer.row(peer), flush=True)
        for count in counts if arguments.ours else []:
            ours = measure_ours(arguments, pages[:count], work)
            counted = {"counts": ours.result.get("counts"), "tokens": ours.result.get("tokens")}
            print(json.dumps({"ours": counted}), file=sys.stderr)
            print(ours.row(peer), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=Path, required=True, help="made by share_pages.py")
    parser.add_argument("--peer-pages", type=int, default=2000, help="0: without the peer")
    parser.add_argument("--counts", default="", help="10000,30000: runs over that many; all")
    parser.add_argument("--ours", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep-model", default="any", help="GPT-4 or any")
    parser.add_argument("--tokenizer", default="", help="directory; the demo's when not given")
    parser.add_argument("--run-peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.pages = arguments.pages.resolve()
    if arguments.run_peer:
        print(json.dumps(run_peer(arguments.run_peer, arguments.work, arguments.keep_model)))
        return
    if not arguments.tokenizer:
        from ochat_ray.demo import assets

        arguments.tokenizer = str(assets.base_model())
    compare(arguments)


if __name__ == "__main__":
    main()
