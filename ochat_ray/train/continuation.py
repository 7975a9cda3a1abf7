"""Checkpoint that a run starts from, and options that may differ from the run that wrote it.

A run with the same options resumes from the latest checkpoint. `--from-checkpoint` continues from a
chosen one with other epochs, steps, schedule, learning rates or `--merge`; the run's identity then
records the step and the previous values of these options under "continues".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ochat_ray.command_line import flag
from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership
from ochat_ray.run_dir import RunDir, completed
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.checkpoint import Checkpoint, check_same_run
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.output import MODEL_MANIFEST, check_output_dir, read_model_manifest
from ochat_ray.train.samples import drop_later_samples

CONTINUES = "continues"

MAY_DIFFER = frozenset(
    """
    epochs max_steps schedule warmup_ratio min_rate_ratio wsd_decay_ratio learning_rate
    embedding_learning_rate early_stopping eval_every merge
    """.split()
)
"""Keys of an identity in which a run may differ from the run whose checkpoint it starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Starting point of a run.

    `checkpoint` is None for a run from the base model; `identity` is that of the run. If it
    differs from the checkpoint's, `continues` is set, and `discarded` are the checkpoints after
    the chosen one.
    """

    checkpoint: Checkpoint | None
    identity: dict[str, Any]
    discarded: tuple[Checkpoint, ...] = ()
    continues: bool = False

    @property
    def expected(self) -> dict[str, Any]:
        """Identity that the checkpoint must have."""
        if self.continues and self.checkpoint is not None:
            return self.checkpoint.identity
        return self.identity


def schedule_from(identity: Mapping[str, Any]) -> int:
    """Return the step after which the learning-rate schedule starts."""
    continues = identity.get(CONTINUES)
    return int(continues["step"]) if continues else 0


def start_of(config: TrainConfig, identity: dict[str, Any], output: Ownership) -> Start:
    """Return the starting point of a run with this output; `identity` is that of its options.

    Raises:
        UserError: `--from-checkpoint` names no checkpoint, or an option differs that may not.
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
    """Remove checkpoints and samples after the chosen step, which will be computed again."""
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
    """Return the checkpoint to start from, and the identity of the run that starts there.

    Args:
        chosen: `--from-checkpoint`; None resumes from the latest checkpoint.
        identity: that of the options.
        found: complete checkpoints, in the order of their steps.
        before: identity in ochat.json if a run is complete.
        where: output directory for messages.

    Raises:
        UserError: there is no such checkpoint, or an option differs that may not.
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


def find_resume_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """Return the latest checkpoint in the output directory; None with --overwrite."""
    return None if config.overwrite else checkpoints.latest(RunDir.open(config.output))


def completed_already(
    config: TrainConfig, output: Ownership, start: Start
) -> dict[str, Any] | None:
    """Return the content of ochat.json if the same training is complete, or None.

    Raises:
        UserError: a file that no training wrote would be overwritten, or another training is
            complete and --overwrite is not given.
    """
    check_output_dir(output)
    if read_model_manifest(output) is None:
        return None
    replaces = config.overwrite or start.continues
    return completed(output.run, MODEL_MANIFEST, start.identity, overwrite=replaces)


def announce_start(
    config: TrainConfig, resumed: Checkpoint | None, identity: dict[str, Any]
) -> None:
    """Print the step at which training starts.

    Raises:
        UserError: there are checkpoints of another run, and --overwrite is not given.
    """
    if resumed is not None:
        check_same_run(resumed, identity, config.output)
        print(
            f"resuming from step {resumed.step}; --overwrite starts from the beginning",
            file=sys.stderr,
        )
    elif config.resume:
        print(
            f"{config.output} has no checkpoint yet; starting from the beginning", file=sys.stderr
        )


def _point_to_option(last: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    keys = (set(last) | set(identity)) - {CONTINUES} if last else set[str]()
    different = sorted(key for key in keys if last.get(key) != identity.get(key))
    if different and MAY_DIFFER.issuperset(different):
        options = ", ".join(flag(key) for key in different)
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
        f"--from-checkpoint {chosen}: {where} has no such checkpoint, only those of steps "
        f"{', '.join(map(str, steps))}"
    )


def _check_difference(checkpoint: Checkpoint, identity: dict[str, Any], where: str) -> None:
    there = checkpoint.identity
    may_differ = MAY_DIFFER | {CONTINUES}
    # With their own learning rate, embeddings are a separate group in the optimizer's state.
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
