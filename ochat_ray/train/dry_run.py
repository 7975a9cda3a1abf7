"""Summary of a planned training run: steps, packs, memory, and one decoded pack."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ochat_ray.train import packing
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.flops import ModelShape, attention_tokens, training_flops
from ochat_ray.train.memory import MemoryPlan, fits
from ochat_ray.train.packing import StepPacks
from ochat_ray.train.steps import forward_passes

if TYPE_CHECKING:
    from ochat_ray.train.probe import AttentionMode

_SUPERVISED, _OTHER, _SPECIAL, _BORDER, _RESET = (
    "\x1b[32m",
    "\x1b[2m",
    "\x1b[7m",
    "\x1b[36m",
    "\x1b[0m",
)


def dry_run(
    config: TrainConfig,
    *,
    lengths: np.ndarray,
    epoch: Sequence[StepPacks],
    steps_per_epoch: Sequence[int],
    world_size: int,
    shape: ModelShape,
    memory: MemoryPlan,
    schedule_from: int = 0,
    device_bytes: int | None = None,
    longest_pack: int | None = None,
    deepspeed: Mapping[str, Any] | None = None,
    mode: AttentionMode | None = None,
) -> dict[str, Any]:
    """Return the summary of a run before it starts, in plain JSON values.

    Args:
        config: options of the run.
        lengths: tokens of every conversation of the training split.
        epoch: steps of the first epoch, as steps[rank[pack[index]]].
        steps_per_epoch: number of steps of every epoch.
        world_size: number of workers.
        shape: sizes of the model.
        memory: memory plan of one device.
        schedule_from: step from which a run continues with a new schedule.
        device_bytes: memory of a device; None if unknown.
        longest_pack: tokens of the longest conversation that fits a device by the plan.
        deepspeed: DeepSpeed's configuration.
        mode: result of `probe.choose_attention_mode`.

    Returns:
        Among others `packing.efficiency`, the share of the packs' capacity that tokens fill, and
        `packing.balance`, the share of its time that an average rank computes while all wait for
        the most loaded one, by the operations of its conversations.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    costs = packing.cost(lengths, attention_tokens(shape))
    loads = np.asarray(
        [[sum(float(costs[pack].sum()) for pack in packs if pack) for packs in s] for s in epoch]
    ).reshape(-1, world_size)
    packs = [pack for step in epoch for packs in step for pack in packs]
    used = [index for pack in packs for index in pack]
    tokens = int(lengths[used].sum())
    per_step = [len(step[0]) for step in epoch]
    total = sum(steps_per_epoch)
    slowest = float(loads.max(axis=1).sum()) * world_size
    return {
        "steps": total,
        "steps_per_epoch": list(steps_per_epoch),
        "schedule_from": schedule_from,
        "warmup_steps": math.ceil(config.warmup_ratio * (total - schedule_from)),
        "world_size": world_size,
        "epoch": {
            "conversations": len(used),
            "tokens": tokens,
            "longest": int(lengths[used].max(initial=0)),
            "flops": training_flops(shape, lengths[used]),
        },
        "packing": {
            "max_tokens": config.max_tokens,
            "packs": len(packs),
            "efficiency": tokens / (len(packs) * config.max_tokens) if packs else 0.0,
            "balance": float(loads.sum()) / slowest if slowest else 0.0,
            "packs_per_rank_and_step": {
                "least": min(per_step, default=0),
                "mean": float(np.mean(per_step)) if per_step else 0.0,
                "most": max(per_step, default=0),
            },
        },
        "model": asdict(shape),
        "memory": {
            **asdict(memory),
            "total": memory.total,
            "device": device_bytes,
            "fits": None if device_bytes is None else fits(memory, device_bytes),
            "longest_pack": longest_pack,
        },
        "deepspeed": None if deepspeed is None else dict(deepspeed),
        "attention": None
        if mode is None
        else asdict(mode) | {"forward_passes": _passes(epoch, mode)},
    }


def describe(result: Mapping[str, Any]) -> str:
    """Format the result of `dry_run` for a terminal."""
    epoch, packs, memory, model = (result[k] for k in ("epoch", "packing", "memory", "model"))
    per_rank = packs["packs_per_rank_and_step"]
    many = result["steps_per_epoch"]
    steps = f"{result['steps']:,}, of which {result['warmup_steps']:,} warm up"
    if len(many) > 1:
        steps += f"; {_range(min(many), max(many))} per epoch, {len(many)} epochs"
    if result["schedule_from"]:
        steps += f"; the schedule starts after step {result['schedule_from']:,}"
    rows = [
        ("Run", ""),
        ("optimizer steps", steps),
        ("conversations per epoch", f"{epoch['conversations']:,}"),
        ("tokens per epoch", f"{epoch['tokens']:,}; longest conversation {epoch['longest']:,}"),
        ("FLOPs per epoch", f"{epoch['flops']:.2e}"),
        ("Packs", f"{packs['max_tokens']:,} tokens, {result['world_size']} workers"),
        ("packs per epoch", f"{packs['packs']:,}, {_percent(packs['efficiency'])} full"),
        (
            "packs per worker and step",
            f"{_range(per_rank['least'], per_rank['most'])}, {per_rank['mean']:.1f} on average",
        ),
        ("balance of the workers", _percent(packs["balance"])),
        *_attention_rows(result["attention"]),
        (
            "Memory per device",
            f"an estimate, which no GPU has confirmed; model of {model['parameters']:,} parameters",
        ),
        *(
            [("trained parameters", f"{model['parameters'] - model['frozen_parameters']:,}")]
            if model["frozen_parameters"]
            else []
        ),
        *(
            [("quantized parameters", f"{model['quantized_parameters']:,}")]
            if model["quantized_parameters"]
            else []
        ),
        *((name, _gib(memory[name])) for name in _PARTS if memory[name]),
        ("total", f"{_gib(memory['total'])}  {_verdict(memory)}"),
        *(
            [("longest conversation", f"{memory['longest_pack']:,} tokens (--max-tokens)")]
            if memory["longest_pack"]
            else []
        ),
        *([("host memory per device", _gib(memory["host"]))] if memory["host"] else []),
    ]
    return "\n".join(
        f"\n{name}{f': {value}' if value else ''}" if name[0].isupper() else f"  {name:<26}{value}"
        for name, value in rows
    ).lstrip("\n")


def _passes(epoch: Sequence[StepPacks], mode: AttentionMode) -> int:
    """Return the forward passes of a worker per epoch."""
    return sum(len(forward_passes(packs, 0, packed=mode.packed)) for packs in epoch)


def _attention_rows(attention: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if attention is None:
        return []
    together = "one per pack" if attention["packed"] else "one per conversation"
    return [
        ("forward passes per epoch", f"{attention['forward_passes']:,} per worker, {together}"),
        ("attention", f"{attention['attention']}, exact on a tiny model of this kind"),
        *([("reason for this mode", attention["because"])] if attention["because"] else []),
    ]


_PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "communication",
    "activations",
    "logits",
    "update",
    "loading",
)


def _verdict(memory: Mapping[str, Any]) -> str:
    if memory["device"] is None:
        return "(the device's memory is not known)"
    verdict = "fits" if memory["fits"] else "does NOT fit"
    return f"{verdict} in {_gib(memory['device']).strip()}"


def _gib(size: int) -> str:
    return f"{size / 2**30:6.2f} GiB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def coloured_pack(
    ids: Sequence[int],
    weights: Sequence[float],
    starts: Sequence[int],
    tokenizer: Any,
    *,
    colour: bool,
) -> str:
    """Return a pack's text with supervised and special tokens marked.

    With colour, supervised tokens are green, others dim and special tokens reversed; without,
    supervised tokens are in 「」 and special ones in ⟪⟫. `starts` are the conversations' first
    positions. Characters that control a terminal are escaped.
    """
    lines = []
    borders = [*starts, len(ids)]
    for number, (start, end) in enumerate(pairwise(borders), 1):
        supervised = int(np.count_nonzero(weights[start:end]))
        title = (
            f"── conversation {number} of {len(starts)} · {end - start:,} tokens, "
            f"{supervised:,} supervised ──"
        )
        lines.append(f"{_BORDER}{title}{_RESET}" if colour else title)
        text = "".join(
            _painted(escaped(part), weighs=weighs, special=special, colour=colour)
            for part, weighs, special in _runs(ids[start:end], weights[start:end], tokenizer)
        )
        lines.append(text)
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Escape control, format and surrogate characters of untrusted text for a terminal.

    Newlines, tabs and the zero-width joiner of emoji are kept.
    """
    return "".join(
        c
        if c in "\n\t\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def _runs(
    ids: Sequence[int], weights: Sequence[float], tokenizer: Any
) -> Iterator[tuple[str, bool, bool]]:
    """Yield (text, supervised, special) for each run of tokens of one kind in a conversation."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    kinds = [(bool(w), int(i) in special) for i, w in zip(ids, weights, strict=True)]
    end, before = 0, ""
    for (weighs, is_special), run in groupby(kinds):
        end += len(list(run))
        # From the conversation's start, since a decoder may strip a space at the start of a text.
        text = tokenizer.decode(
            list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        yield text[len(before) :], weighs, is_special
        before = text


def _painted(text: str, *, weighs: bool, special: bool, colour: bool) -> str:
    if not colour:
        text = f"⟪{text}⟫" if special else text
        return f"「{text}」" if weighs else text
    code = (_SUPERVISED if weighs else _OTHER) + (_SPECIAL if special else "")
    # Line by line, since a pager resets colours at the end of a line.
    return "\n".join(f"{code}{line}{_RESET}" if line else "" for line in text.split("\n"))
