"""`jobs/train.py --dry-run`: steps, packs, memory and one decoded pack, without starting a run."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby, takewhile
from typing import Any

import numpy as np

from ochat_ray.train import packing
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import schedule_from
from ochat_ray.train.deepspeed_config import deepspeed_config
from ochat_ray.train.engine import device_memory
from ochat_ray.train.flops import ModelShape, attention_tokens, training_flops
from ochat_ray.train.memory import MemoryPlan, estimate_run, fits, longest_pack
from ochat_ray.train.output import output_of
from ochat_ray.train.packing import StepPacks
from ochat_ray.train.preflight import check_inputs, probe_on_driver, settle
from ochat_ray.train.probe import AttentionMode
from ochat_ray.train.steps import forward_passes
from ochat_ray.train.workers import with_workers

_SUPERVISED, _OTHER, _SPECIAL, _BORDER, _RESET = (
    "\x1b[32m",
    "\x1b[2m",
    "\x1b[7m",
    "\x1b[36m",
    "\x1b[0m",
)


def dry_run(config: TrainConfig, *, colour: bool) -> dict[str, Any]:
    """Return the figures of a run before it starts, in plain JSON values.

    "pack" is the first step's first pack, decoded. The model's configuration is read, not its
    weights. bfloat16 is assumed unless the options set float32, since the workers' hardware is not
    known.

    Raises:
        UserError: data, model and options do not fit each other.
    """
    config.check()
    config = with_workers(config, start_ray=False)
    resolved = check_inputs(config)
    table, shape = resolved.tables["train"], resolved.shape
    config, start = settle(config, resolved, output_of(config.output))
    mode = probe_on_driver(config, resolved.model_config)
    steps = resolved.steps(config, start.identity)
    bf16 = config.dtype != "float32"
    epoch = [
        step.packs
        for step in takewhile(lambda step: step.epoch == 0, steps.after(0, config.num_workers))
    ]
    given = config.gpu_memory_gib

    def memory_of(max_tokens: int) -> MemoryPlan:
        return estimate_run(
            replace(config, max_tokens=max_tokens),
            shape,
            world_size=config.num_workers,
            bf16=bf16,
            attention=mode.attention,
        )

    rows = [table.row(index) for index in epoch[0][0][0]]
    return {
        **figures(
            config,
            lengths=table.lengths,
            epoch=epoch,
            steps_per_epoch=steps.per_epoch,
            schedule_from=schedule_from(start.identity),
            shape=shape,
            memory_of=memory_of,
            device_bytes=device_memory() if given is None else int(given * 2**30),
        ),
        "deepspeed": deepspeed_config(
            config, resolved.override, world_size=config.num_workers, bf16=bf16, cuda=True
        ),
        "attention": attention_figures(mode, epoch),
        "pack": coloured_pack(rows, resolved.tokenizer, colour=colour),
    }


def figures(
    config: TrainConfig,
    *,
    lengths: np.ndarray,
    epoch: Sequence[StepPacks],
    steps_per_epoch: Sequence[int],
    schedule_from: int,
    shape: ModelShape,
    memory_of: Callable[[int], MemoryPlan],
    device_bytes: int | None,
) -> dict[str, Any]:
    """Return the figures of a run's steps, packs, model and memory.

    Args:
        config: options of the run.
        lengths: tokens of every conversation of the training split.
        epoch: steps of the first epoch, as steps[rank[pack[index]]].
        steps_per_epoch: number of steps of every epoch.
        schedule_from: step from which a run continues with a new schedule.
        shape: sizes of the model.
        memory_of: returns the memory plan of one device for packs of this many tokens.
        device_bytes: memory of a device; None if unknown.

    Returns:
        Among others `packing.efficiency`, the share of the packs' capacity that tokens fill, and
        `packing.balance`, the share of its time that an average rank computes while all wait for
        the most loaded one, by the operations of its conversations.
    """
    costs = packing.cost(lengths, attention_tokens(shape))
    loads = np.asarray(
        [[sum(float(costs[pack].sum()) for pack in packs if pack) for packs in s] for s in epoch]
    ).reshape(-1, config.num_workers)
    packs = [pack for step in epoch for packs in step for pack in packs]
    used = [index for pack in packs for index in pack]
    tokens = int(lengths[used].sum())
    per_step = [len(step[0]) for step in epoch]
    total = sum(steps_per_epoch)
    slowest = float(loads.max(axis=1).sum()) * config.num_workers
    memory = memory_of(config.max_tokens)
    return {
        "steps": total,
        "steps_per_epoch": list(steps_per_epoch),
        "schedule_from": schedule_from,
        "warmup_steps": math.ceil(config.warmup_ratio * (total - schedule_from)),
        "world_size": config.num_workers,
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
            "longest_pack": None if device_bytes is None else longest_pack(memory_of, device_bytes),
        },
    }


def attention_figures(mode: AttentionMode, epoch: Sequence[StepPacks]) -> dict[str, Any]:
    """Return the attention mode, and the forward passes of a worker in the first epoch."""
    passes = sum(len(forward_passes(packs, 0, packed=mode.packed)) for packs in epoch)
    return asdict(mode) | {"forward_passes": passes}


def describe(result: Mapping[str, Any]) -> str:
    """Format the result of `dry_run` for a terminal."""
    epoch, packs, memory, model = (result[k] for k in ("epoch", "packing", "memory", "model"))
    per_rank, attention = packs["packs_per_rank_and_step"], result["attention"]
    together = "one per pack" if attention["packed"] else "one per conversation"
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
        ("forward passes per epoch", f"{attention['forward_passes']:,} per worker, {together}"),
        ("attention", f"{attention['attention']}, exact on a tiny model of this kind"),
        *([("reason for this mode", attention["because"])] if attention["because"] else []),
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
    page = "\n".join(
        f"\n{name}{f': {value}' if value else ''}" if name[0].isupper() else f"  {name:<26}{value}"
        for name, value in rows
    ).lstrip("\n")
    deepspeed = json.dumps(result["deepspeed"], indent=2)
    return f"{page}\n\nDeepSpeed\n{deepspeed}\n\nThe first pack\n{result['pack']}"


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
    rows: Sequence[tuple[np.ndarray, np.ndarray]], tokenizer: Any, *, colour: bool
) -> str:
    """Return a pack's text with supervised and special tokens marked.

    `rows` are token ids and loss weights of its conversations. With colour, supervised tokens are
    green, others dim and special tokens reversed; without, supervised tokens are in 「」 and
    special ones in ⟪⟫. Characters that control a terminal are escaped.
    """
    lines = []
    for number, (ids, weights) in enumerate(rows, 1):
        title = (
            f"── conversation {number} of {len(rows)} · {len(ids):,} tokens, "
            f"{np.count_nonzero(weights):,} supervised ──"
        )
        lines.append(f"{_BORDER}{title}{_RESET}" if colour else title)
        text = "".join(
            _painted(escaped(part), weighs=weighs, special=special, colour=colour)
            for part, weighs, special in _runs(ids, weights, tokenizer)
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


def _runs(ids: np.ndarray, weights: np.ndarray, tokenizer: Any) -> Iterator[tuple[str, bool, bool]]:
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
