"""The data job on Ray Data: passes over parts of the input.

1. clean: read every file, apply the rules, convert, write what is left in parts;
2. duplicates: compare digests, and signatures where near duplicates are asked for;
3. tokenize: drop duplicates, tokenise, split, write the parts' tables;
4. write: the parts' tables in files of a fixed number of rows.

Each task reads files and writes files of fixed names, so one that runs twice counts once, the
conversations never have to fit in memory, and a resumed run does what is not there yet.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import ray.data

from ochat_ray import ray_session
from ochat_ray.cluster_resources import apart_from_gpus, most, room_for
from ochat_ray.data import clean, parts
from ochat_ray.data.assemble import FILE_ROWS, assemble, plan_files
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.decontaminate import load_questions
from ochat_ray.data.duplicates import band_name
from ochat_ray.data.find_duplicates import (
    find_exact,
    find_near,
    find_pairs,
    shards_of,
    write_minhash,
)
from ochat_ray.data.inputs import Listing, check_inputs, find_files
from ochat_ray.data.near_duplicates import banding
from ochat_ray.data.parts import WORK, Summary, clean_part, tokenize_part
from ochat_ray.data.report import render_report
from ochat_ray.data.statistics import Statistics, most_first
from ochat_ray.data.tokenize import DIGEST_MODULUS
from ochat_ray.errors import UserError
from ochat_ray.progress import Progress
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import MANIFEST, RunDir, completed, not_on_this_host
from ochat_ray.tokenizer import load_tokenizer, tokenizer_digest

PLAN = f"{WORK}/plan.json"
"""What an unfinished run is of, and how many groups of files it has."""

_ARTIFACTS = (MANIFEST, "report.html", "conversations", "dropped", "tokens", WORK)


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Run the whole job; the manifest of the run directory.

    Does nothing where the same run is complete already.

    Raises:
        UserError: an input, the tokenizer or the output directory is not usable, nothing was
            kept, or the cluster never has a CPU.
    """
    started = time.monotonic()
    config.check()
    identity: dict[str, Any] = {
        **config.identity(),
        "tokenizer": tokenizer_digest(load_tokenizer(config.tokenizer)),
        # Signatures are comparable within one version only.
        "rensa": version("rensa"),
    }
    rules = clean.rules(
        keep_model=config.kept_labels() or "any",
        blocked_words=config.words(),
        min_fidelity=config.min_fidelity,
        questions=load_questions(config.decontaminate) if config.decontaminate else None,
    )
    run = RunDir.open(config.output)
    if run.exists(MANIFEST):
        inputs = Listing.of(find_files(config.input)).summary()
        identity_of_run = identity | {"inputs": inputs}
        if done := completed(run, MANIFEST, identity_of_run, overwrite=config.overwrite):
            return done
        run.remove(MANIFEST)
        run.remove(WORK)
    plan = _plan(config, run, identity)

    _start_ray()
    statistics = Statistics()
    statistics.add_passed_over(plan["passed_over"])
    parts_found = _clean_pass(config, run, plan["groups"], rules, statistics)
    _duplicates_pass(config, run, parts_found, statistics)
    summaries = _tokenize_pass(config, run, list(parts_found), statistics)
    if statistics.counts()["kept"] == 0:
        raise UserError(f"nothing was kept: {statistics.explain_drops()}")
    _write_pass(run, summaries, statistics)

    digest = sum(int(summary["digest"], 16) for summary in summaries) % DIGEST_MODULUS
    statistics.seconds["total"] = time.monotonic() - started
    manifest = {
        "counts": statistics.counts(),
        "tokens": statistics.tokens(),
        "digest": f"{digest:064x}",
        "fidelity": statistics.fidelity(),
        "unknown_keys": most_first(statistics.unknown_keys),
        "pagers": statistics.pagers,
        "tokenizer": identity["tokenizer"],
        "tokenizer_path": config.tokenizer,
        "model_type": recipe(config.recipe).model_type,
        "context_length": config.max_length,
        "config": config.identity(),
        "inputs": plan["inputs"],
        "identity": identity | {"inputs": plan["inputs"]},
        "seconds": {stage: round(s, 1) for stage, s in statistics.seconds.items()},
        "versions": {
            package: version(package)
            for package in ("ochat-ray", "ray", "transformers", "tokenizers", "pyarrow", "lxml")
        },
    }
    run.write_text("report.html", render_report(manifest, statistics))
    run.remove(WORK)
    run.write_json(MANIFEST, manifest)
    return manifest


def _plan(config: PrepareConfig, run: RunDir, identity: dict[str, Any]) -> dict[str, Any]:
    """What is to be done: of the unfinished run that is resumed, or of the inputs as they are."""
    plan = run.read_json(PLAN) if config.resume else None
    if plan is not None and plan["identity"] != identity:
        raise UserError(
            f"{config.output} holds an unfinished run of another configuration; "
            "leave out --resume to start clean"
        )
    if plan is None:
        check_inputs(config.input)  # before anything of an unfinished run is given up
        for name in _ARTIFACTS:
            run.remove(name)
        listing = Listing()
        passed_over: Counter[str] = Counter()
        for number, uris in enumerate(listing.groups(find_files(config.input, passed_over))):
            run.write_json(_group(number), uris)
        plan = {"identity": identity, "inputs": listing.summary(), "groups": listing.count}
        plan["passed_over"] = most_first(passed_over)
        run.write_json(PLAN, plan)
    return dict(plan)


def _group(number: int) -> str:
    return f"{WORK}/inputs/{number:06d}.json"


def _start_ray() -> None:
    ray_session.join_or_start()
    if not room_for({"CPU": 1}):
        raise UserError(
            "each task of prepare takes a CPU, and no node of this cluster has one or may come; "
            "start one, or Ray with --num-cpus"
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A failed task's exception is raised here; Ray Data would log its traceback besides.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _map_summaries(items: list[dict[str, Any]], transform: Any) -> Iterator[Summary]:
    """Run `transform` over the items, one a batch; the summaries that it yields, as they come."""
    if not items:
        return
    # Ray Data takes a tenth of a second between two tasks: a few longer ones for each CPU. A task
    # that is done again skips the items that are done.
    blocks = min(len(items), 4 * max(1, most("CPU")))
    dataset = ray.data.from_items(items, override_num_blocks=blocks)
    mapped = dataset.map_batches(
        transform, batch_size=1, batch_format="pyarrow", **apart_from_gpus()
    )
    for row in mapped.iter_rows():
        yield json.loads(row["summary"])


def _summary(value: Summary) -> pa.Table:
    return pa.table({"summary": [json.dumps(value)]})


def _each(work: Callable[[dict[str, Any]], Summary]) -> Callable[[pa.Table], pa.Table]:
    """A function of one item as a function of Ray Data's batches of one, under the same name."""

    def each(batch: pa.Table) -> pa.Table:
        return _summary(work(batch.to_pylist()[0]))

    each.__name__ = work.__name__
    return each


def _clean_pass(
    config: PrepareConfig,
    run: RunDir,
    group_count: int,
    rules: list[clean.Rule],
    statistics: Statistics,
) -> dict[str, int]:
    """The parts that have a cleaned conversation, in order, and how many they have."""

    session = uuid.uuid4().hex

    def clean_group(batch: pa.Table) -> Iterator[pa.Table]:
        group = batch["group"][0].as_py()
        if (done := run.read_json(_done("groups", f"{group:06d}"))) is not None:
            # The task ended after this group and runs again.
            for number in range(done["parts"]):
                yield _summary(_load(run, _done("clean", f"{group:06d}-{number:04d}")))
            return
        uris = _load(run, _group(group))
        for uri in uris:
            if "://" not in uri and not os.path.exists(uri):
                raise not_on_this_host(uri)
        count, parts_to_do = parts_of_group(
            run,
            _done("attempts", f"{group:06d}"),
            uris,
            session=session,
            is_complete=lambda n: run.exists(_done("clean", f"{group:06d}-{n:04d}")),
            rules=rules,
        )
        for number in range(count):
            yield _summary(_load(run, _done("clean", f"{group:06d}-{number:04d}")))
        for records in parts_to_do:
            part = f"{group:06d}-{count:04d}"
            summary = run.read_json(_done("clean", part))
            if summary is None:
                summary = clean_part(run, part, records, rules)
                run.write_json(_done("clean", part), summary)
            yield _summary(summary)
            count += 1
        run.write_json(_done("groups", f"{group:06d}"), {"parts": count})

    progress = Progress("clean", "conversations")
    rows: dict[str, int] = {}

    def add(summary: Summary) -> None:
        statistics.add_clean(summary)
        if summary["rows"]:
            rows[summary["part"]] = summary["rows"]
        progress.add(summary["read"], f"{statistics.cleaned:,} pass the rules")

    finished = _finished(run, "groups")
    for group in sorted(finished):
        parts_of_group = _load(run, _done("groups", group))["parts"]
        for number in range(parts_of_group):
            add(_load(run, _done("clean", f"{group}-{number:04d}")))
    rest = [{"group": n} for n in range(group_count) if f"{n:06d}" not in finished]
    for summary in _map_summaries(rest, clean_group):
        add(summary)
    statistics.seconds["clean"] = progress.finish(f"{statistics.cleaned:,} pass the rules")
    if statistics.read_well == 0:
        raise UserError(
            f"no conversations in {', '.join(config.input)}: {statistics.explain_drops()}; "
            "expected share pages, or ShareGPT or OpenAI records "
            "({id, conversations: [{from, value}]})"
        )
    return dict(sorted(rows.items()))


def _duplicates_pass(
    config: PrepareConfig, run: RunDir, rows: dict[str, int], statistics: Statistics
) -> None:
    """Write which cleaned conversations are another's duplicates."""
    progress = Progress("dedup", "digests")
    part_names = list(rows)
    shards = shards_of(sum(rows.values()))
    todo = [{"shard": s} for s in range(shards) if not run.exists(_done("exact", f"{s:06d}"))]

    def exact(item: dict[str, Any]) -> Summary:
        found = find_exact(run, part_names, item["shard"], shards)
        run.write_json(_done("exact", f"{item['shard']:06d}"), found)
        return found

    for _ in _map_summaries(todo, _each(exact)):
        pass
    found = sum(_load(run, _done("exact", f"{s:06d}"))["found"] for s in range(shards))
    progress.add(statistics.cleaned)
    statistics.seconds["dedup"] = progress.finish(f"{found:,} duplicates")
    if config.near_duplicates is not None:
        _near_duplicates_pass(config.near_duplicates, run, part_names, statistics)


def _near_duplicates_pass(
    threshold: float, run: RunDir, part_names: list[str], statistics: Statistics
) -> None:
    progress = Progress("near", "signatures")
    bands, rows_a_band = banding(threshold)

    def minhash(item: dict[str, Any]) -> Summary:
        done = _done("minhash", item["part"])
        summary = run.read_json(done) or write_minhash(run, item["part"], bands, rows_a_band)
        run.write_json(done, summary)
        return summary

    total = 0
    for summary in _map_summaries([{"part": part} for part in part_names], _each(minhash)):
        total += summary["rows"]
        progress.add(summary["rows"])
    shards = shards_of(total)
    items = [{"band": band_name(b), "shard": s} for b in range(bands) for s in range(shards)]

    def pairs(item: dict[str, Any]) -> Summary:
        return find_pairs(run, part_names, item["band"], item["shard"], shards)

    for _ in _map_summaries(items, _each(pairs)):
        pass
    found = find_near(run, part_names, threshold)
    statistics.seconds["near duplicates"] = progress.finish(f"{found:,} near duplicates")


@cache
def _tokenizer(path: str) -> Any:
    """Opened once a worker process, which does one part after the other."""
    # One thread a worker: the workers themselves span the CPUs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return load_tokenizer(path)


def _tokenize_pass(
    config: PrepareConfig, run: RunDir, part_names: list[str], statistics: Statistics
) -> list[Summary]:
    """What the parts' tables hold, in the order of the parts."""
    progress = Progress("tokenize", "conversations", total=statistics.cleaned)
    summaries: list[Summary] = []

    def add(summary: Summary) -> None:
        statistics.add_tokenize(summary)
        progress.add(summary["read"], f"{statistics.token_count:,} tokens")
        rows = {"train": 0, "eval": 0}
        for split, *_ in summary["kept"]:
            rows[split] += 1
        dropped = sum(summary["drop_counts"].values())
        summaries.append(
            {"part": summary["part"], "digest": summary["digest"], "dropped": dropped, **rows}
        )

    finished = _finished(run, "tokenize")
    for part in sorted(finished):
        add(_load(run, _done("tokenize", part)))
    rest = [{"part": part} for part in part_names if part not in finished]
    # Four times as many as are shown, since some turn out to be duplicates.
    sample_share = 4 * parts.SAMPLES / max(1, statistics.cleaned)

    def tokenize(item: dict[str, Any]) -> Summary:
        done = _done("tokenize", item["part"])
        summary = run.read_json(done) or tokenize_part(
            run,
            item["part"],
            config=config,
            model_type=recipe(config.recipe).model_type,
            tokenizer=_tokenizer(config.tokenizer),
            sample_share=sample_share,
        )
        run.write_json(done, summary)
        return summary

    for summary in _map_summaries(rest, _each(tokenize)):
        add(summary)
    statistics.seconds["tokenize"] = progress.finish(f"{statistics.token_count:,} tokens")
    return sorted(summaries, key=lambda s: str(s["part"]))


def _write_pass(run: RunDir, summaries: list[Summary], statistics: Statistics) -> None:
    """The tables of the contract, of files of FILE_ROWS rows."""
    progress = Progress("write", "files")
    items = plan_files(run, summaries, FILE_ROWS)

    def write(item: dict[str, Any]) -> Summary:
        if not run.exists(item["name"]):
            assemble(run, item["name"], item["pieces"])
        return {"name": item["name"]}

    for _ in _map_summaries(items, _each(write)):
        progress.add(1)
    statistics.seconds["write"] = progress.finish()


def _done(stage: str, name: str) -> str:
    """The file whose existence says that a stage is done with a part."""
    return f"{WORK}/done/{stage}/{name}.json"


def _load(run: RunDir, name: str) -> Any:
    value = run.read_json(name)
    if value is None:
        raise not_on_this_host(run.path(name))
    return value


def _finished(run: RunDir, stage: str) -> set[str]:
    names = run.files(f"{WORK}/done/{stage}", ".json")
    return {name.rsplit("/", 1)[-1].removesuffix(".json") for name in names}
