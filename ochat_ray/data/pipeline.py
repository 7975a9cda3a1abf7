"""Data job on Ray Data: passes over parts of the input.

1. clean: read every file, apply the rules, convert, write the conversations kept, in parts; 2.
duplicates: compare digests, and signatures if near duplicates are requested; 3. tokenize: drop
duplicates, tokenize, split, write the parts' tables; 4. write: concatenate the parts' tables to
files of a fixed number of rows.

Each task reads and writes files with fixed names in the run's work folder, so a retried task counts
once, the conversations never have to fit in memory, and a resumed run does only the missing work.
The driver moves the finished tables to their places, verifies them and writes the manifest, under
the output directory's lock.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import pyarrow as pa
import ray.data

from ochat_ray.cluster import ray_session
from ochat_ray.cluster.resources import apart_from_gpus, most, room_for
from ochat_ray.data import clean
from ochat_ray.data.advice import explain_nothing
from ochat_ray.data.assemble import FILE_ROWS, assemble, plan_files
from ochat_ray.data.config import PrepareConfig, Resolved
from ochat_ray.data.decontaminate import load_questions
from ochat_ray.data.dedup.minhash import banding
from ochat_ray.data.dedup.tables import band_name
from ochat_ray.data.dedup.tasks import (
    exact_is_done,
    find_exact,
    find_near,
    find_pairs,
    shards_of,
    write_minhash,
)
from ochat_ray.data.group_parts import clean_group, finished_group
from ochat_ray.data.inputs import check_apart, check_inputs
from ochat_ray.data.manifest import manifest_of
from ochat_ray.data.output import FINISHED, REPORT, Output
from ochat_ray.data.parts.files import Summary, done_name, names_done
from ochat_ray.data.parts.samples import SAMPLES
from ochat_ray.data.parts.tokenize import FEW, tokenize_part, with_some_held_out
from ochat_ray.data.plan import (
    Identity,
    Plan,
    check_inputs_stayed,
    completed_already,
    identity_of,
    set_up,
)
from ochat_ray.data.records import ReadOptions
from ochat_ray.data.report import render_report
from ochat_ray.data.statistics import Statistics
from ochat_ray.data.tokenize_chat import open_tokenizer_once
from ochat_ray.data.verify import (
    ALL_TABLES,
    FileSummary,
    check_files,
    check_totals,
    list_tables,
    summarize_files,
)
from ochat_ray.errors import UserError
from ochat_ray.locations import check_is_folder
from ochat_ray.progress import Progress
from ochat_ray.recipes import CHAT
from ochat_ray.run_dir import MANIFEST, RunDir, absolute_if_local
from ochat_ray.run_lock import RunLock, hold


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Run all passes and return the manifest of the run directory.

    Does nothing if the same run is already complete.

    Raises:
        UserError: An input, the tokenizer or the output directory is not usable, nothing was kept,
            or the cluster never has a CPU.
    """
    started = time.monotonic()
    resolved = config.check()
    check_is_folder(config.output)
    check_apart(config.input, config.output)
    check_inputs(config.input)
    rules = clean.rules(
        keep_model=resolved.kept_labels or "any",
        blocked_words=resolved.blocked_words,
        merge_turns=config.merge_turns,
        min_fidelity=config.min_fidelity,
        questions=load_questions(config.decontaminate) if config.decontaminate else None,
        noise=resolved.noise_rules,
    )
    output = Output(RunDir.open(config.output))
    identify = cache(partial(identity_of, config, resolved))
    if output.run.exists(MANIFEST) and (
        done := completed_already(config, output, identify().values)
    ):
        if output.has_work():  # it was killed during cleanup
            with hold(output.run, "prepare"):
                output.clear_work()
        return done
    with ExitStack() as stack:
        # Ray takes seconds to start, as long as opening the tokenizer and listing the inputs.
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(set_up, config, output, stack, identify)
            _start_ray()
            lock, plan, identity = starting.result()
        if isinstance(plan, dict):
            return plan
        return _run(config, resolved, output, lock, plan, identity, rules, started)


def _run(
    config: PrepareConfig,
    resolved: Resolved,
    output: Output,
    lock: RunLock,
    plan: Plan,
    identity: Identity,
    rules: list[clean.Rule],
    started: float,
) -> dict[str, Any]:
    """Run all passes; return the manifest of the run directory."""
    work = plan.work
    statistics = Statistics()
    statistics.add_passed_over(plan.passed_over)
    parts_found = _clean_pass(config, work, resolved, plan.groups, rules, statistics)
    check_inputs_stayed(config, plan)
    lock.check()
    _duplicates_pass(config, work, parts_found, statistics)
    lock.check()
    summaries = _tokenize_pass(config, work, resolved, identity, list(parts_found), statistics)
    if statistics.counts()["kept"] == 0:
        raise UserError(explain_nothing("nothing was kept", config, statistics))
    lock.check()
    files = _write_pass(output, work, lock, summaries, statistics)

    statistics.seconds["total"] = time.monotonic() - started
    manifest = manifest_of(config, resolved, plan, identity, files, summaries, statistics)
    check_totals(output.run.root, files, manifest)
    output.run.write_text(REPORT, render_report(manifest, statistics))
    lock.check()
    output.run.write_json(MANIFEST, manifest)
    output.clear_work()  # last: a run that is killed here is complete
    return manifest


def _start_ray() -> None:
    ray_session.join_or_start()
    if not room_for({"CPU": 1}):
        raise UserError(
            "each task of prepare takes a CPU, and no node of this cluster has one or may come; "
            "start one, or Ray with --num-cpus"
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Measuring the memory of each task costs 5% of the time, and the result is not used.
    context.memory_usage_poll_interval_s = None
    # A failed task's exception is raised here; Ray Data would also log its traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _map_summaries(items: list[dict[str, Any]], transform: Any) -> Iterator[Summary]:
    """Run `transform` over the items, one per batch; yield its summaries as they arrive."""
    if not items:
        return
    # Ray Data needs 0.1 s between two tasks, so each CPU gets only a few longer ones. A retried
    # task skips the items that are complete.
    blocks = min(len(items), 4 * max(1, most("CPU")))
    dataset = ray.data.from_items(items, override_num_blocks=blocks)
    mapped = dataset.map_batches(
        transform, batch_size=1, batch_format="pyarrow", **apart_from_gpus()
    )
    for row in mapped.iter_rows():
        summary = json.loads(row["summary"])
        if _USER_ERROR in summary:
            raise UserError(summary[_USER_ERROR])
        yield summary


_USER_ERROR = "error of the user"
"""Key of a summary that is the error of a task: raised there, it would come with a traceback."""


def _summary(value: Summary) -> pa.Table:
    return pa.table({"summary": [json.dumps(value)]})


def _each(work: Callable[[dict[str, Any]], Summary]) -> Callable[[pa.Table], pa.Table]:
    """Wrap a function of one item as a function of Ray Data batches of one, with the same name."""

    def each(batch: pa.Table) -> pa.Table:
        try:
            return _summary(work(batch.to_pylist()[0]))
        except UserError as error:
            return _summary({_USER_ERROR: str(error)})

    each.__name__ = work.__name__
    return each


def _clean_pass(
    config: PrepareConfig,
    run: RunDir,
    resolved: Resolved,
    group_count: int,
    rules: list[clean.Rule],
    statistics: Statistics,
) -> dict[str, int]:
    """Return the number of cleaned conversations per part, in order, for parts that have any."""
    options = ReadOptions(
        answers=config.answers,
        columns=resolved.columns,
        branches=config.branches,
        tools=config.model_type == CHAT,
    )

    session = uuid.uuid4().hex

    def clean_parts(batch: pa.Table) -> Iterator[pa.Table]:
        group = batch["group"][0].as_py()
        for summary in clean_group(run, group, rules, options=options, session=session):
            yield _summary(summary)

    progress = Progress("clean", "conversations")
    rows: dict[str, int] = {}

    def add(summary: Summary) -> None:
        statistics.add_clean(summary)
        if summary["rows"]:
            rows[summary["part"]] = summary["rows"]
        progress.add(summary["read"], f"{statistics.cleaned:,} pass the rules")

    finished = names_done(run, "groups")
    for group in sorted(finished):
        for summary in finished_group(run, int(group)):
            add(summary)
    rest = [{"group": n} for n in range(group_count) if f"{n:06d}" not in finished]
    for summary in _map_summaries(rest, clean_parts):
        add(summary)
    statistics.seconds["clean"] = progress.finish(f"{statistics.cleaned:,} pass the rules")
    if statistics.read_well == 0:
        what = explain_nothing(f"no conversations in {', '.join(config.input)}", config, statistics)
        raise UserError(
            f"{what}; expected share pages, or ShareGPT or OpenAI records "
            "({id, conversations: [{from, value}]})"
        )
    return dict(sorted(rows.items()))


def _duplicates_pass(
    config: PrepareConfig, run: RunDir, rows: dict[str, int], statistics: Statistics
) -> None:
    """Write the list of cleaned conversations that duplicate another one."""
    progress = Progress("dedup", "digests")
    part_names = list(rows)
    shards = shards_of(sum(rows.values()))
    todo = [{"shard": s} for s in range(shards) if not exact_is_done(run, s)]

    def exact(item: dict[str, Any]) -> Summary:
        found = find_exact(run, part_names, item["shard"], shards)
        run.write_json(done_name("exact", f"{item['shard']:06d}"), found)
        return found

    for _ in _map_summaries(todo, _each(exact)):
        pass
    found = sum(run.load_json(done_name("exact", f"{s:06d}"))["found"] for s in range(shards))
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
        done = done_name("minhash", item["part"])
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


def _tokenize_pass(
    config: PrepareConfig,
    run: RunDir,
    resolved: Resolved,
    identity: Identity,
    part_names: list[str],
    statistics: Statistics,
) -> list[Summary]:
    """Return the summaries of the parts' tables, in the order of the parts."""
    progress = Progress("tokenize", "conversations", total=statistics.cleaned)
    summaries: list[Summary] = []

    def add(summary: Summary) -> None:
        statistics.add_tokenize(summary)
        progress.add(summary["read"], f"{statistics.token_count:,} tokens")
        rows = {"train": 0, "eval": 0}
        for split, _, _, _, samples, *_ in summary["kept"]:
            rows[split] += samples
        summaries.append(
            {
                "part": summary["part"],
                "digest": summary["digest"],
                "kept": len(summary["kept"]),
                "dropped": sum(summary["drop_counts"].values()),
                **rows,
            }
        )

    finished = names_done(run, "tokenize")
    for part in sorted(finished):
        add(run.load_json(done_name("tokenize", part)))
    rest = [{"part": part} for part in part_names if part not in finished]
    if config.recipe == CHAT and statistics.cleaned * config.eval_ratio < FEW:
        config = with_some_held_out(run, part_names, config)
    template = json.dumps(asdict(identity.template)) if identity.template else ""
    path = absolute_if_local(config.tokenizer)  # tasks run in the directory where Ray was started
    # Four times as many as are shown, since some will be dropped as duplicates.
    sample_share = 4 * SAMPLES / max(1, statistics.cleaned)

    def tokenize(item: dict[str, Any]) -> Summary:
        done = done_name("tokenize", item["part"])
        summary = run.read_json(done) or tokenize_part(
            run,
            item["part"],
            config=config,
            classes=resolved.classes,
            tokenizer=open_tokenizer_once(path, template),
            sample_share=sample_share,
        )
        run.write_json(done, summary)
        return summary

    for summary in _map_summaries(rest, _each(tokenize)):
        add(summary)
    statistics.seconds["tokenize"] = progress.finish(f"{statistics.token_count:,} tokens")
    return sorted(summaries, key=lambda s: str(s["part"]))


def _write_pass(
    output: Output,
    work: RunDir,
    lock: RunLock,
    summaries: list[Summary],
    statistics: Statistics,
) -> dict[str, FileSummary]:
    """Write, place and verify the tables in files of FILE_ROWS rows; summarize the files."""
    progress = Progress("write", "files")
    items = plan_files(work, summaries, FILE_ROWS)
    expected = {
        item["name"]: {"rows": sum(count for *_, count in item["pieces"])} for item in items
    }

    def write(item: dict[str, Any]) -> Summary:
        name = f"{FINISHED}/{item['name']}"
        if not (work.exists(name) or output.run.exists(item["name"])):
            assemble(work, name, item["pieces"])
        return {"name": item["name"]}

    for _ in _map_summaries(items, _each(write)):
        progress.add(1)
    lock.check()
    output.publish(work, expected)
    files = summarize_files(output.run, list_tables(output.run, ALL_TABLES))
    check_files(output.run.root, files, expected)
    statistics.seconds["write"] = progress.finish()
    return files
