"""The data job on Ray Data: three passes over files of conversations.

1. clean: read every input file, apply the rules, write what is left in parts;
2. dedup: shuffle digests and keys only, find the digests that occur twice;
3. tokenize: drop duplicates, tokenise, split, write the tables.

Each pass reads files and writes files of fixed names, so a task that runs twice counts once, and
the conversations never have to fit in memory.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.aggregate import Count, Min

from ochat_ray.data import clean
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.parts import WORK, clean_part, part_keys, tokenize_part
from ochat_ray.data.report import render_report
from ochat_ray.data.sources import find_files, read_file
from ochat_ray.data.statistics import Statistics
from ochat_ray.data.tokenize import DIGEST_MODULUS
from ochat_ray.errors import UserError
from ochat_ray.progress import Progress
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import MANIFEST, RunDir, completed, open_location
from ochat_ray.tokenizer import load_tokenizer, tokenizer_digest

PART_ROWS = 2000
"""Records of one part: a worker holds about this many in memory."""

SURVIVORS = f"{WORK}/survivors.json"

_ARTIFACTS = (MANIFEST, "report.html", "conversations", "dropped", "tokens", WORK)


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Run the whole job; the manifest of the run directory.

    Does nothing where the same run is complete already.

    Raises:
        UserError: an input, the tokenizer or the output directory is not usable, or nothing was
            kept.
    """
    started = time.monotonic()
    config.check()
    files = find_files(config.input)
    digest_of_tokenizer = tokenizer_digest(load_tokenizer(config.tokenizer))
    identity: dict[str, Any] = {
        **config.identity(),
        "files": [{"path": path, "bytes": _size(path)} for path in files],
        "tokenizer": digest_of_tokenizer,
    }
    run = RunDir.open(config.output)
    if done := completed(run, MANIFEST, identity, overwrite=config.overwrite):
        return done
    for name in _ARTIFACTS:
        run.remove(name)

    _start_ray()
    statistics = Statistics()
    parts = _clean_pass(config, run, files, statistics)
    _dedup_pass(run, parts, statistics)
    digest = _tokenize_pass(config, run, parts, statistics)
    if statistics.counts()["kept"] == 0:
        raise UserError(f"nothing was kept: {statistics.explain_drops()}")

    model_type = recipe(config.recipe).model_type
    statistics.seconds["total"] = time.monotonic() - started
    manifest = {
        "counts": statistics.counts(),
        "tokens": statistics.tokens(),
        "digest": digest,
        "tokenizer": digest_of_tokenizer,
        "tokenizer_path": config.tokenizer,
        "model_type": model_type,
        "context_length": config.max_length,
        "config": config.identity(),
        "inputs": [entry["path"] for entry in identity["files"]],
        "identity": identity,
        "seconds": {stage: round(s, 1) for stage, s in statistics.seconds.items()},
        "versions": {
            package: version(package)
            for package in ("ochat-ray", "ray", "transformers", "tokenizers", "pyarrow")
        },
    }
    run.write_text("report.html", render_report(manifest, statistics))
    run.remove(WORK)
    run.write_json(MANIFEST, manifest)
    return manifest


def _start_ray() -> None:
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A failed task's exception is raised here; Ray Data would log its traceback besides.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _size(path: str) -> int:
    fs, name = open_location(path)
    return fs.get_file_info(name).size


def _cluster_cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _items(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """A dataset in few enough blocks that a small file does not cost a task of its own."""
    return ray.data.from_items(items, override_num_blocks=min(len(items), 16 * _cluster_cpus()))


def _map_summaries(
    items: list[dict[str, Any]], transform: Any, **options: Any
) -> Iterator[dict[str, Any]]:
    """Run `transform` over the items, one a batch; the summaries that it yields, as they come."""
    dataset = _items(items)
    mapped = dataset.map_batches(transform, batch_size=1, batch_format="pyarrow", **options)
    for row in mapped.iter_rows():
        yield json.loads(row["summary"])


def _summary(value: dict[str, Any]) -> pa.Table:
    return pa.table({"summary": [json.dumps(value)]})


def _clean_pass(
    config: PrepareConfig, run: RunDir, files: list[str], statistics: Statistics
) -> list[str]:
    """The parts that have a cleaned conversation, in order."""
    rules = clean.rules(keep_model=config.keep_model, blocked_words=config.blocked_words)

    def clean_file(batch: pa.Table) -> Iterator[pa.Table]:
        (item,) = batch.to_pylist()
        records = read_file(item["path"])
        number = 0
        while chunk := list(islice(records, PART_ROWS)):
            yield _summary(clean_part(run, f"{item['number']:05d}-{number:05d}", chunk, rules))
            number += 1

    progress = Progress("clean", "conversations")
    parts = []
    items = [{"path": path, "number": number} for number, path in enumerate(files)]
    for summary in _map_summaries(items, clean_file):
        statistics.add_clean(summary)
        if summary["rows"]:
            parts.append(summary["part"])
        progress.add(summary["read"])
    statistics.seconds["clean"] = progress.finish(f"{statistics.cleaned:,} pass the rules")
    if statistics.read_well == 0:
        raise UserError(
            f"no conversations in {', '.join(config.input)}: {statistics.explain_drops()}; "
            "expected ShareGPT or OpenAI records ({id, conversations: [{from, value}]})"
        )
    return sorted(parts)


def _dedup_pass(run: RunDir, parts: list[str], statistics: Statistics) -> None:
    """Write SURVIVORS: the digests that occur twice or more, with the key of what stays."""
    if not parts:
        return
    progress = Progress("dedup", "digests")
    items = [{"part": part} for part in parts]
    repeated = (
        _items(items)
        .map_batches(
            lambda batch: part_keys(run, batch["part"][0].as_py()),
            batch_size=1,
            batch_format="pyarrow",
        )
        .groupby("digest")
        .aggregate(Min("key", alias_name="key"), Count(alias_name="count"))
        .map_batches(lambda t: t.filter(pc.greater(t["count"], 1)), batch_format="pyarrow")
    )
    survivors = {row["digest"]: row["key"] for row in repeated.iter_rows()}
    run.write_json(SURVIVORS, survivors)
    progress.add(statistics.cleaned)
    statistics.seconds["dedup"] = progress.finish(f"{len(survivors):,} occur more than once")


@dataclass
class _TokenizePart:
    """A Ray Data actor: opens the tokenizer once, then turns parts into tables."""

    run: RunDir
    config: PrepareConfig
    model_type: str

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(self.config.tokenizer)
        self.survivors: dict[str, str] = self.run.read_json(SURVIVORS) or {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _summary(
            tokenize_part(
                self.run,
                batch["part"][0].as_py(),
                config=self.config,
                model_type=self.model_type,
                tokenizer=self.tokenizer,
                survivors=self.survivors,
            )
        )


def _tokenize_pass(
    config: PrepareConfig,
    run: RunDir,
    parts: list[str],
    statistics: Statistics,
) -> str:
    progress = Progress("tokenize", "conversations", total=statistics.cleaned)
    total = 0
    if parts:
        summaries = _map_summaries(
            [{"part": part} for part in parts],
            _TokenizePart,
            fn_constructor_kwargs={
                "run": run,
                "config": config,
                "model_type": recipe(config.recipe).model_type,
            },
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=min(len(parts), _cluster_cpus())
            ),
            num_cpus=1,
            # One thread an actor: the pool itself spans the CPUs.
            runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
        )
        for summary in summaries:
            statistics.add_tokenize(summary)
            total += int(summary["digest"], 16)
            progress.add(summary["read"], f"{statistics.token_count:,} tokens")
    statistics.seconds["tokenize"] = progress.finish(f"{statistics.token_count:,} tokens")
    return f"{total % DIGEST_MODULUS:064x}"
