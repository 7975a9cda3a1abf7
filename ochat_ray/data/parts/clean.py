"""Divide records into parts, and clean one part: conversations kept, and drops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from ochat_ray.data import clean
from ochat_ray.data.dedup import exact
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.data.parts.files import CLEANED, Summary, cleaned, count, write_drops, write_parquet
from ochat_ray.data.parts.samples import SAMPLES, SHOWN_CHARACTERS
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import Conversation, Drop, PassedOver, Reason, Record, Turn, conversation_row

PART_ROWS = 1000
PART_CHARACTERS = 64_000_000
"""Maximum records and characters of a part, since a worker holds one part in memory."""


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
    rows = [conversation_row(new, exact.digest(new.turns, new.tools)) for _, new in pairs]
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
        "passed_over": count(r.kind for r in records if isinstance(r, PassedOver)),
        "unknown_keys": count(key for r in read_well for key in r.unknown_keys),
        "left_out": count(name for _, new in pairs for name in new.left_out),
        "answers": count(
            "html" if turn.html else "markdown"
            for r in read_well
            for turn in r.turns
            if turn.role == "assistant"
        ),
        "models": count(normalize_model(r.model) for r in read_well),
        "noise": count(
            [name for _, new in pairs for name in new.noise]
            + [
                drop.detail.partition(":")[0]
                for drop in results
                if isinstance(drop, Drop) and drop.reason == Reason.PROVIDER_ERROR
            ]
        ),
        "rows": len(rows),
        **write_drops(run, f"clean/{part}", [r for r in results if isinstance(r, Drop)]),
    }


def _as_read(old: Conversation, new: Conversation) -> Sequence[Turn]:
    """Return the turns of a record that the rules kept, as they were read.

    From a conversation that passes, the rules remove a system turn, answers before the first
    question, and turns at the end.
    """
    turns = old.turns
    kept = {turn.role for turn in clean.instructions(new.turns)}
    system = [turn for turn in clean.instructions(turns) if turn.role in kept]
    first = next(n for n, turn in enumerate(turns) if turn.role == "user")
    return (*system, *turns[first:])[: len(new.turns)]
