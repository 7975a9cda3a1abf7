"""Tokenize one part: drop duplicates, convert the rest to token rows, and write its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.dedup import exact
from ochat_ray.data.dedup.tasks import duplicates_of
from ochat_ray.data.language import language_of
from ochat_ray.data.long_conversations import CHOICES, Long
from ochat_ray.data.parts.files import (
    Summary,
    cleaned,
    read_parquet,
    write_drops,
    write_parquet,
    write_tokens,
)
from ochat_ray.data.parts.samples import describe
from ochat_ray.data.statistics import worse_fidelity
from ochat_ray.data.tokenize import Tokenized, table_digest
from ochat_ray.data.tokenize_chat import reason_for_no_sample, sum_notes, tokenize_as_configured
from ochat_ray.run_dir import RunDir, Split
from ochat_ray.schema import CONVERSATIONS, Conversation, Drop, ModelClass, Reason, Stage, turn_of

FEW = 20
"""Held-out conversations, as expected, below which their number is looked at."""


def with_some_held_out(
    run: RunDir, part_names: Iterable[str], config: PrepareConfig
) -> PrepareConfig:
    """Return the configuration with a share that holds out a few conversations of a small input."""
    digests = [
        digest
        for part in part_names
        for digest in read_parquet(run, cleaned(part), ["digest"])["digest"].to_pylist()
    ]
    ratio = exact.ratio_for_some(digests, eval_ratio=config.eval_ratio, seed=config.seed)
    return replace(config, eval_ratio=ratio)


def tokenize_part(
    run: RunDir,
    part: str,
    *,
    config: PrepareConfig,
    classes: Mapping[str, ModelClass],
    tokenizer: Any,
    sample_share: float,
) -> Summary:
    """Drop a part's duplicates, tokenize and split the rest, and write all its tables.

    Args:
        run: Work folder.
        part: Name of the part.
        config: The configuration.
        classes: Weight and condition by normalized model label.
        tokenizer: Tokenizer of the base model, opened for the run's template.
        sample_share: Share of conversations, by their digests, that may be samples of the report.
    """
    rows = read_parquet(run, cleaned(part)).to_pylist()
    duplicates = duplicates_of(run, part)
    unique, dropped = [], []
    for number, row in enumerate(rows):
        if number in duplicates:
            reason, survivor = duplicates[number]
            dropped.append(_drop(row, Stage.DEDUP, Reason(reason), f"same as {survivor}"))
        else:
            unique.append(row)

    tokenized = tokenize_as_configured(list(map(_conversation, unique)), config, classes, tokenizer)
    kept: list[tuple[Split, dict[str, Any], Tokenized]] = []
    for row, result in zip(unique, tokenized, strict=True):
        if result.samples:
            split = exact.split_of(row["digest"], eval_ratio=config.eval_ratio, seed=config.seed)
            kept.append((split, row, result))
        else:
            reason, detail = reason_for_no_sample(_conversation(row), result, config)
            dropped.append(_drop(row, Stage.TOKENIZE, reason, detail))

    if kept:
        conversations = pa.Table.from_pylist([row for _, row, _ in kept], CONVERSATIONS)
        write_parquet(run, f"conversations/{part}.parquet", conversations)
    samples = [(split, sample) for split, _, result in kept for sample in result.samples]
    for split in ("train", "eval"):
        rows_of_split = [sample for s, sample in samples if s == split]
        if rows_of_split:
            write_tokens(run, f"tokens/{split}/{part}.arrow", rows_of_split)
    return {
        "part": part,
        "read": len(rows),
        "kept": [
            [
                *(split, len(row["turns"]), result.length, result.cut, len(result.samples)),
                sum(len(sample.input_ids) for sample in result.samples),
                sum(sample.supervised for sample in result.samples),
                *(row["fidelity"], row["text_fidelity"], language_of(_beginning(row))),
            ]
            for split, row, result in kept
        ],
        "offered": sum(result.length for result in tokenized),
        "yields": {choice: _sum_yields(tokenized, choice) for choice in CHOICES},
        "samples": [describe(*k, tokenizer) for k in kept if _share(k[1]["digest"]) < sample_share],
        "worst": [
            {name: row[name] for name in ("id", "source", "fidelity", "text_fidelity")}
            for _, row, _ in sorted(kept, key=_worse_fidelity)[:5]
            if worse_fidelity(row) < 1.0
        ],
        "digest": f"{table_digest(samples):x}",
        "template_notes": sum_notes(tokenized),
        **write_drops(run, f"tokenize/{part}", dropped),
    }


def _beginning(row: dict[str, Any]) -> str:
    return " ".join(turn["text"][:100] for turn in row["turns"][:2])


def _sum_yields(tokenized: Sequence[Tokenized], choice: Long) -> dict[str, int]:
    found = [result.yields[choice] for result in tokenized]
    return {
        "conversations": sum(y.samples > 0 for y in found),
        "samples": sum(y.samples for y in found),
        "tokens": sum(y.tokens for y in found),
        "supervised_tokens": sum(y.supervised for y in found),
    }


def _share(digest: str) -> float:
    """Return the position of a digest in the range of all digests, in [0, 1)."""
    return int(digest[:8], 16) / 2**32


def _worse_fidelity(kept: tuple[Any, dict[str, Any], Any]) -> float:
    return worse_fidelity(kept[1])


def _conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(
        id=row["id"],
        source=row["source"],
        model=row["model"],
        title=row["title"],
        turns=tuple(map(turn_of, row["turns"])),
        condition=row["condition"],
        tools=row["tools"] or "",
    )


def _drop(row: dict[str, Any], stage: Stage, reason: Reason, detail: str) -> Drop:
    return Drop(id=row["id"], source=row["source"], stage=stage, reason=reason, detail=detail)
