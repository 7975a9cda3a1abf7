"""Process one part of the conversations in a task: read, transform, write, summarize.

A part is a fixed range of the input's records, so its files have the same name and content whenever
and wherever it is processed. They are stored in the run's work folder, passed here as `run`. The
summary of a part, a plain JSON value, is written last: if it exists, the part is complete, and a
resumed run reuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ochat_ray.data import clean, dedup
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.language import language_of
from ochat_ray.data.long_conversations import CHOICES, Long
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.data.near_duplicates import conversation_text
from ochat_ray.data.statistics import worse_fidelity
from ochat_ray.data.tokenize import Tokenized, TokenRow, table_digest
from ochat_ray.data.tokenize_chat import (
    reason_for_no_sample,
    shown_text,
    sum_notes,
    tokenize_as_configured,
)
from ochat_ray.run_dir import RunDir, Split
from ochat_ray.schema import (
    CONVERSATIONS,
    DROPPED,
    TOKENS,
    Conversation,
    Drop,
    PassedOver,
    Reason,
    Record,
    Stage,
    Turn,
    conversation_row,
    drop_row,
    turn_of,
)

PART_ROWS = 1000
PART_CHARACTERS = 64_000_000
"""Maximum records and characters of a part, since a worker holds one part in memory."""

SAMPLES = 50
"""Number of conversations in the report, and limits of each: characters per turn, turns, tokens."""
SHOWN_CHARACTERS, SHOWN_TURNS, SHOWN_TOKENS = 4000, 8, 700

Summary = dict[str, Any]

CLEANED = CONVERSATIONS.append(pa.field("original", pa.list_(pa.string())))
"""Schema of cleaned conversations; `original` has the turns as read, for a few samples."""


def parts_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records in parts of bounded number and size."""
    part: list[Record] = []
    characters = 0
    for record in records:
        part.append(record)
        if isinstance(record, Conversation):
            characters += sum(len(turn.text) for turn in record.turns)
        if len(part) == PART_ROWS or characters > PART_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def clean_part(
    run: RunDir, part: str, records: Sequence[Record], rules: Sequence[clean.Rule]
) -> Summary:
    """Apply the rules to a part's records; write the conversations kept and the table of drops."""
    results = [clean.clean(r, rules) if isinstance(r, Conversation) else r for r in records]
    pairs = [
        (old, new)
        for old, new in zip(records, results, strict=True)
        if isinstance(old, Conversation) and isinstance(new, Conversation)
    ]
    rows = [conversation_row(new, dedup.digest(new.turns, new.tools)) for _, new in pairs]
    shown = set(sorted(str(row["digest"]) for row in rows)[:SAMPLES])
    for (old, new), row in zip(pairs, rows, strict=True):
        is_shown = row["digest"] in shown
        shown_turns = _as_read(old, new) if is_shown else ()
        if len(shown_turns) != len(new.turns):  # consecutive turns were merged
            shown_turns = ()
        row["original"] = [turn.text[:SHOWN_CHARACTERS] for turn in shown_turns] or None
    if rows:
        write_parquet(run, cleaned(part), pa.Table.from_pylist(rows, CLEANED))
    read_well = [r for r in records if isinstance(r, Conversation)]
    return {
        "part": part,
        "read": len(records),
        "read_well": len(read_well),
        "passed_over": _count(r.kind for r in records if isinstance(r, PassedOver)),
        "unknown_keys": _count(key for r in read_well for key in r.unknown_keys),
        "left_out": _count(name for _, new in pairs for name in new.left_out),
        "answers": _count(
            "html" if turn.html else "markdown"
            for r in read_well
            for turn in r.turns
            if turn.role == "assistant"
        ),
        "models": _count(normalize_model(r.model) for r in read_well),
        "noise": _count(
            [name for _, new in pairs for name in new.noise]
            + [
                drop.detail.partition(":")[0]
                for drop in results
                if isinstance(drop, Drop) and drop.reason == Reason.PROVIDER_ERROR
            ]
        ),
        "rows": len(rows),
        **_write_drops(run, f"clean/{part}", [r for r in results if isinstance(r, Drop)]),
    }


def _as_read(old: Conversation, new: Conversation) -> Sequence[Turn]:
    """Return the turns of a record that the rules kept, as they were read.

    From a conversation that passes, the rules remove a system turn, answers before the first
    question, and turns at the end.
    """
    turns = old.turns
    system = turns[:1] if new.turns[0].role == "system" else ()
    first = next(n for n, turn in enumerate(turns) if turn.role == "user")
    return (*system, *turns[first:])[: len(new.turns)]


def minhash_input(run: RunDir, part: str) -> tuple[pa.Table, list[str]]:
    """Return digests, ids, row numbers and texts of a part's exactly unique conversations."""
    table = read_parquet(run, cleaned(part), ["id", "source", "digest", "turns"])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    repeated = duplicates_of(run, part)
    table = table.filter(pa.array([row not in repeated for row in range(len(table))], pa.bool_()))
    texts = [
        conversation_text(Turn(role=t["role"], text=t["text"]) for t in turns)
        for turns in table["turns"].to_pylist()
    ]
    return table.drop_columns(["turns"]), texts


def with_some_held_out(
    run: RunDir, part_names: Iterable[str], config: PrepareConfig
) -> PrepareConfig:
    """Return the configuration with a share that holds out a few conversations of a small input."""
    digests = [
        digest
        for part in part_names
        for digest in read_parquet(run, cleaned(part), ["digest"])["digest"].to_pylist()
    ]
    ratio = dedup.ratio_for_some(digests, eval_ratio=config.eval_ratio, seed=config.seed)
    return replace(config, eval_ratio=ratio)


def duplicates_of(run: RunDir, part: str) -> dict[int, tuple[str, str]]:
    """Return the rows of a part that duplicate another: (reason, survivor)."""
    found: dict[int, tuple[str, str]] = {}
    for name in run.files("duplicates", ".parquet"):
        with run.reading(name) as file:
            table = pq.read_table(file, filters=pc.field("part") == part)
        for row in table.to_pylist():
            found.setdefault(row["row"], (row["reason"], row["survivor"]))
    return found


def tokenize_part(
    run: RunDir,
    part: str,
    *,
    config: PrepareConfig,
    tokenizer: Any,
    sample_share: float,
) -> Summary:
    """Drop a part's duplicates, tokenize and split the rest, and write all its tables.

    Args:
        run: Work folder.
        part: Name of the part.
        config: The configuration.
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

    tokenized = tokenize_as_configured(list(map(_conversation, unique)), config, tokenizer)
    kept: list[tuple[Split, dict[str, Any], Tokenized]] = []
    for row, result in zip(unique, tokenized, strict=True):
        if result.samples:
            split = dedup.split_of(row["digest"], eval_ratio=config.eval_ratio, seed=config.seed)
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
            _write_tokens(run, f"tokens/{split}/{part}.arrow", rows_of_split)
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
        "samples": [_sample(*k, tokenizer) for k in kept if _share(k[1]["digest"]) < sample_share],
        "worst": [
            {name: row[name] for name in ("id", "source", "fidelity", "text_fidelity")}
            for _, row, _ in sorted(kept, key=_worse_fidelity)[:5]
            if worse_fidelity(row) < 1.0
        ],
        "digest": f"{table_digest(samples):x}",
        "template_notes": sum_notes(tokenized),
        **_write_drops(run, f"tokenize/{part}", dropped),
    }


def _sum_yields(tokenized: Sequence[Tokenized], choice: Long) -> dict[str, int]:
    found = [result.yields[choice] for result in tokenized]
    return {
        "conversations": sum(y.samples > 0 for y in found),
        "samples": sum(y.samples for y in found),
        "tokens": sum(y.tokens for y in found),
        "supervised_tokens": sum(y.supervised for y in found),
    }


def done_name(stage: str, name: str) -> str:
    """Return the file whose existence marks a part as complete in a stage."""
    return f"done/{stage}/{name}.json"


def cleaned(part: str) -> str:
    """Return the file of a part's cleaned conversations."""
    return f"clean/{part}.parquet"


def _share(digest: str) -> float:
    """Return the position of a digest in the range of all digests, in [0, 1)."""
    return int(digest[:8], 16) / 2**32


def _worse_fidelity(kept: tuple[Any, dict[str, Any], Any]) -> float:
    return worse_fidelity(kept[1])


def _beginning(row: dict[str, Any]) -> str:
    return " ".join(turn["text"][:100] for turn in row["turns"][:2])


def _sample(split: Split, row: dict[str, Any], result: Tokenized, tokenizer: Any) -> Summary:
    """Describe one conversation for the report: as read, as converted, and as tokenized.

    If it has several samples, the first one is shown.
    """
    first = result.samples[0]
    original = row["original"] or [None] * len(row["turns"])
    turns = list(zip(row["turns"], original, strict=True))
    is_system = bool(turns) and turns[0][0]["role"] == "system"
    turns = [*turns[: int(is_system)], *turns[max(result.first_turn, int(is_system)) :]]
    pieces = _pieces(first.input_ids[:SHOWN_TOKENS], tokenizer)
    return {
        "digest": row["digest"],
        "id": row["id"],
        "source": row["source"],
        "split": split,
        "fidelity": row["fidelity"],
        "text_fidelity": row["text_fidelity"],
        "length": len(first.input_ids),
        "samples": len(result.samples),
        "turn_count": len(turns),
        "own_template": hasattr(tokenizer, "chat"),
        "turns": [
            [turn["role"], before, shown_text(turn)[:SHOWN_CHARACTERS]]
            for turn, before in turns[:SHOWN_TURNS]
        ],
        "tokens": [list(t) for t in zip(pieces, first.loss_weights, strict=False)],
    }


def _pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token.

    Each is decoded after another one, since SentencePiece strips the space from the first token.
    """
    (anchor,) = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = tokenizer.decode([anchor])
    return [tokenizer.decode([anchor, id]).removeprefix(before) for id in ids]


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


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _examples(drops: list[Drop]) -> list[Drop]:
    """Return the three drops with the smallest ids per reason."""
    by_reason: dict[Reason, list[Drop]] = {}
    for drop in drops:
        by_reason.setdefault(drop.reason, []).append(drop)
    return [
        drop for found in by_reason.values() for drop in nsmallest(3, found, key=_id_and_source)
    ]


def _id_and_source(drop: Drop) -> tuple[str, str]:
    return drop.id, drop.source


def _write_drops(run: RunDir, name: str, drops: list[Drop]) -> Summary:
    if drops:
        table = pa.Table.from_pylist([drop_row(d) for d in drops], DROPPED)
        write_parquet(run, f"dropped/{name}.parquet", table)
    return {
        "dropped": [drop_row(drop) for drop in _examples(drops)],
        "drop_counts": _count(str(drop.reason) for drop in drops),
    }


def write_parquet(
    run: RunDir, name: str, table: pa.Table, row_group_size: int | None = None
) -> None:
    """Write a Parquet file atomically."""
    with run.writing(name) as stream:
        pq.write_table(
            table,
            stream,
            compression="zstd",
            compression_level=1,
            row_group_size=row_group_size,
        )


def read_parquet(run: RunDir, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of the run."""
    with run.reading(name) as file:
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
    with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(table)
