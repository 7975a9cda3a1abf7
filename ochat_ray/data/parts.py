"""What one task does to one part of the conversations: read, transform, write, sum up.

A part is a fixed range of an input file's records, so its files have the same name and content
however often it is done, and whoever does it. The summaries are plain JSON values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ochat_ray.data import clean, dedup
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.tokenize import TokenRow, table_digest, tokenize
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import (
    CONVERSATIONS,
    DROPPED,
    TOKENS,
    Conversation,
    Drop,
    Reason,
    Stage,
    Turn,
    conversation_row,
    drop_row,
)

WORK = ".work"
"""Folder of what only later passes need; it is gone when the run is complete."""

Summary = dict[str, Any]


def clean_part(
    run: RunDir, part: str, records: Sequence[Conversation | Drop], rules: Sequence[clean.Rule]
) -> Summary:
    """Apply the rules to a part's records; write what is left and the ledger of what is not."""
    results = [r if isinstance(r, Drop) else clean.clean(r, rules) for r in records]
    kept = [r for r in results if isinstance(r, Conversation)]
    rows = [conversation_row(c, dedup.digest(c.turns)) for c in kept]
    if rows:
        _write_parquet(run, _cleaned(part), rows, CONVERSATIONS)
    return {
        "part": part,
        "read": len(records),
        "read_well": sum(isinstance(r, Conversation) for r in records),
        "models": _count(r.model or "" for r in records if isinstance(r, Conversation)),
        "rows": len(rows),
        **_write_drops(run, f"clean-{part}", [r for r in results if isinstance(r, Drop)]),
    }


def part_keys(run: RunDir, part: str) -> pa.Table:
    """Columns digest and key of a part's cleaned conversations: all that dedup shuffles."""
    rows = _read_parquet(run, _cleaned(part), ["id", "source", "digest"]).to_pylist()
    return pa.table(
        {
            "digest": [row["digest"] for row in rows],
            "key": [_key(row, part, number) for number, row in enumerate(rows)],
        }
    )


def tokenize_part(
    run: RunDir,
    part: str,
    *,
    config: PrepareConfig,
    model_type: str,
    tokenizer: Any,
    survivors: dict[str, str],
) -> Summary:
    """Drop a part's duplicates, tokenise and split the rest, and write all its tables.

    `survivors` maps each digest that occurs more than once to the key of the record that stays.
    """
    rows = _read_parquet(run, _cleaned(part)).to_pylist()
    unique, dropped = [], []
    for number, row in enumerate(rows):
        key = _key(row, part, number)
        survivor = survivors.get(row["digest"], key)
        if survivor == key:
            unique.append(row)
        else:
            first = survivor.split("\x00")[0]
            dropped.append(_drop(row, Stage.DEDUP, Reason.DUPLICATE, f"same as {first}"))

    tokens = tokenize(
        [_conversation(row) for row in unique],
        model_type=model_type,
        tokenizer=tokenizer,
        max_length=config.max_length,
    )
    kept = []
    for row, token_row in zip(unique, tokens, strict=True):
        if token_row.supervised:
            split = dedup.split_of(row["digest"], eval_ratio=config.eval_ratio, seed=config.seed)
            kept.append((split, row, token_row))
        else:
            detail = f"no answer within {config.max_length} tokens"
            dropped.append(_drop(row, Stage.TOKENIZE, Reason.NO_SUPERVISED_TOKENS, detail))

    if kept:
        conversations = [row for _, row, _ in kept]
        _write_parquet(run, f"conversations/{part}.parquet", conversations, CONVERSATIONS)
    for split in ("train", "eval"):
        rows_of_split = [token_row for s, _, token_row in kept if s == split]
        if rows_of_split:
            _write_tokens(run, f"tokens/{split}/{part}.arrow", rows_of_split)
    return {
        "part": part,
        "read": len(rows),
        "kept": [
            [split, len(row["turns"]), len(token.input_ids), token.supervised, token.cut]
            for split, row, token in kept
        ],
        "samples": _samples(kept, tokenizer),
        "digest": f"{table_digest((split, token) for split, _, token in kept):x}",
        **_write_drops(run, f"tokenize-{part}", dropped),
    }


def _cleaned(part: str) -> str:
    return f"{WORK}/clean/{part}.parquet"


def _key(row: dict[str, Any], part: str, number: int) -> str:
    return dedup.survivor_key(id=row["id"], source=row["source"], part=part, row=number)


def _samples(kept: list[tuple[Any, dict[str, Any], TokenRow]], tokenizer: Any) -> list[Summary]:
    """The conversations with the smallest digests, token by token, for the report."""
    return [
        {
            "digest": row["digest"],
            "id": row["id"],
            "split": split,
            "length": len(token.input_ids),
            "tokens": [
                [tokenizer.decode([token_id]), weight]
                for token_id, weight in zip(
                    token.input_ids[:500], token.loss_weights[:500], strict=True
                )
            ],
        }
        for split, row, token in sorted(kept, key=lambda k: k[1]["digest"])[:3]
    ]


def _conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(
        id=row["id"],
        source=row["source"],
        model=row["model"],
        title=row["title"],
        turns=tuple(Turn(role=t["role"], text=t["text"]) for t in row["turns"]),
    )


def _drop(row: dict[str, Any], stage: Stage, reason: Reason, detail: str) -> Drop:
    return Drop(id=row["id"], source=row["source"], stage=stage, reason=reason, detail=detail)


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _examples(drops: list[Drop]) -> list[Drop]:
    """The first three of each reason."""
    seen: dict[Reason, int] = {}
    examples = []
    for drop in drops:
        seen[drop.reason] = seen.get(drop.reason, 0) + 1
        if seen[drop.reason] <= 3:
            examples.append(drop)
    return examples


def _write_drops(run: RunDir, name: str, drops: list[Drop]) -> Summary:
    if drops:
        _write_parquet(run, f"dropped/{name}.parquet", [drop_row(d) for d in drops], DROPPED)
    return {
        "dropped": [drop_row(drop) for drop in _examples(drops)],
        "drop_counts": _count(str(drop.reason) for drop in drops),
    }


def _write_parquet(run: RunDir, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    with run.writing(name) as stream:
        pq.write_table(pa.Table.from_pylist(rows, schema), stream, compression="zstd")


def _read_parquet(run: RunDir, name: str, columns: list[str] | None = None) -> pa.Table:
    with run.fs.open_input_file(run.path(name)) as file:
        return pq.read_table(file, columns=columns)


def _write_tokens(run: RunDir, name: str, rows: list[TokenRow]) -> None:
    table = pa.table(
        {
            "id": [row.id for row in rows],
            "input_ids": [row.input_ids for row in rows],
            "loss_weights": [row.loss_weights for row in rows],
            "length": [len(row.input_ids) for row in rows],
        },
        schema=TOKENS,
    )
    # Arrow IPC, not compressed: training maps the file into memory and reads rows at random.
    with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(table)
