"""The checkpoint that a run starts from, and what may differ from the run that wrote it.

A run of the same options resumes from the latest checkpoint. `--from-checkpoint` continues from a
chosen one with other epochs, steps, schedule or learning rates; the run's identity then records
under "continues" the step, and the options of before that differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership
from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.checkpoint import Checkpoint, check_same_run
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.output import read_model_manifest
from ochat_ray.train.samples import drop_later_samples

CONTINUES = "continues"

MAY_DIFFER = frozenset(
    """
    epochs max_steps schedule warmup_ratio min_rate_ratio wsd_decay_ratio learning_rate
    embedding_learning_rate early_stopping eval_every
    """.split()
)
"""Keys of an identity that may differ between a run and the one whose checkpoint it starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run starts.

    `checkpoint` is None for a run from the base model; `identity` is that of the run;
    `continues` where it is another than the checkpoint's, and `discarded` are then the checkpoints
    after the chosen one.
    """

    checkpoint: Checkpoint | None
    identity: dict[str, Any]
    discarded: tuple[Checkpoint, ...] = ()
    continues: bool = False

    @property
    def expected(self) -> dict[str, Any]:
        """The identity that the checkpoint must have."""
        if self.continues and self.checkpoint is not None:
            return self.checkpoint.identity
        return self.identity


def schedule_from(identity: Mapping[str, Any]) -> int:
    """The step after which the learning rate's schedule starts."""
    continues = identity.get(CONTINUES)
    return int(continues["step"]) if continues else 0


def start_of(config: TrainConfig, identity: dict[str, Any], output: Ownership) -> Start:
    """Return where a run into this output directory starts; `identity` is of its options alone.

    Raises:
        UserError: `--from-checkpoint` names no checkpoint, or other options differ than may.
    """
    if config.overwrite:
        return Start(checkpoint=None, identity=identity)
    complete = read_model_manifest(output)
    return choose_start(
        config.from_checkpoint,
        identity,
        checkpoints.list_complete(output.run),
        None if complete is None else complete.get("identity"),
        config.output,
    )


def discard(run: RunDir, start: Start) -> None:
    """Remove checkpoints and samples after the chosen step; what follows is computed again."""
    if start.checkpoint is not None:
        drop_later_samples(run, start.checkpoint.step)
    if start.discarded:
        steps = ", ".join(str(checkpoint.step) for checkpoint in start.discarded)
        print(f"the checkpoints of steps {steps} are removed", file=sys.stderr)
    checkpoints.remove(run, [checkpoint.name for checkpoint in start.discarded])


def choose_start(
    chosen: str | None,
    identity: dict[str, Any],
    found: Sequence[Checkpoint],
    before: Mapping[str, Any] | None,
    where: str,
) -> Start:
    """Return the checkpoint to start from, and the identity of the run that does so.

    Args:
        chosen: `--from-checkpoint`; None resumes from the latest checkpoint.
        identity: of the options alone.
        found: whole checkpoints, in the order of their steps.
        before: the identity in ochat.json where a run is complete.
        where: the output directory, for messages.

    Raises:
        UserError: there is no such checkpoint, or other options differ than may.
    """
    latest = max(found, key=lambda checkpoint: checkpoint.step, default=None)
    last = before if before is not None else latest.identity if latest else {}
    history = last.get(CONTINUES)
    same = {key: value for key, value in last.items() if key != CONTINUES} == identity
    resumes = chosen is None or (
        same
        and (
            chosen == "latest" or (history is not None and chosen in ("best", str(history["step"])))
        )
    )
    if resumes:
        _point_to_option(last, identity, where)
        return Start(
            checkpoint=latest,
            identity=identity if history is None else identity | {CONTINUES: history},
        )
    checkpoint = _chosen(chosen, found, where)
    _check_difference(checkpoint, identity, where)
    return Start(
        checkpoint=checkpoint,
        identity=identity | {CONTINUES: _record(checkpoint, identity)},
        discarded=tuple(c for c in found if c.step > checkpoint.step),
        continues=True,
    )


def _point_to_option(last: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    keys = (set(last) | set(identity)) - {CONTINUES} if last else set[str]()
    different = sorted(key for key in keys if last.get(key) != identity.get(key))
    if different and MAY_DIFFER.issuperset(different):
        options = ", ".join(f"--{key.replace('_', '-')}" for key in different)
        raise UserError(
            f"{where} holds a run with another {options}; continue it with --from-checkpoint "
            "latest, choose another --output, or replace it with --overwrite"
        )


def _chosen(chosen: str | None, found: Sequence[Checkpoint], where: str) -> Checkpoint:
    if not found:
        raise UserError(
            f"--from-checkpoint {chosen}: {where} has no checkpoint; leave the option out"
        )
    if chosen == "latest":
        return max(found, key=lambda c: c.step)
    if chosen == "best" and (best := checkpoints.best(found)):
        return best
    steps = sorted({c.step for c in found})
    for checkpoint in found:
        if str(checkpoint.step) == chosen:
            return checkpoint
    raise UserError(
        f"--from-checkpoint {chosen}: {where} has no such checkpoint; those of steps "
        f"{', '.join(map(str, steps))} are there"
    )


def _check_difference(checkpoint: Checkpoint, identity: dict[str, Any], where: str) -> None:
    there = checkpoint.identity
    may_differ = MAY_DIFFER | {CONTINUES}
    # With a rate of their own, embeddings are a group of their own in the optimizer's state.
    rates = [i.get("embedding_learning_rate") for i in (there, identity)]
    if None in rates:
        may_differ -= {"embedding_learning_rate"}
    same = {key: there[key] for key in may_differ if key in there}
    kept = {key: value for key, value in identity.items() if key not in may_differ}
    check_same_run(checkpoint, kept | same, where)


def _record(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> dict[str, Any]:
    there = checkpoint.identity
    before = {
        key: there.get(key)
        for key in sorted(MAY_DIFFER | {CONTINUES})
        if there.get(key) != identity.get(key)
    }
    return {"step": checkpoint.step, "before": before}
