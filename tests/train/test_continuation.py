"""Choice of the checkpoint that a run starts from, and options that may differ."""

import pytest

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train.checkpoint import list_complete
from ochat_ray.train.continuation import choose_start, discard, schedule_from
from tests.train.test_checkpoint import made, write

OPTIONS = {
    "epochs": 5, "max_steps": None, "schedule": "cosine", "learning_rate": 1e-3,
    "embedding_learning_rate": None, "seed": 0, "model": "m", "early_stopping": None,
}  # fmt: skip
FOUND = [
    made(20, 1.5, identity=OPTIONS),
    made(50, 1.0, identity=OPTIONS),
    made(75, identity=OPTIONS),
]


def start(chosen, found=FOUND, before=None, **changes):
    return choose_start(chosen, OPTIONS | changes, found, before, "out")


def test_without_the_option_the_same_run_resumes_from_its_latest_checkpoint():
    chosen = start(None)
    assert (chosen.checkpoint, chosen.identity, chosen.continues) == (FOUND[2], OPTIONS, False)
    assert start(None, []).checkpoint is None


@pytest.mark.parametrize(
    ("chosen", "step", "discarded"), [("latest", 75, []), ("50", 50, [75]), ("best", 50, [75])]
)
def test_a_chosen_checkpoint_is_continued_with_other_epochs(chosen, step, discarded):
    result = start(chosen, before=OPTIONS, epochs=8)
    assert result.checkpoint.step == step
    assert [c.step for c in result.discarded] == discarded
    assert result.expected == OPTIONS  # the identity that the checkpoint must have
    assert result.identity == OPTIONS | {
        "epochs": 8,
        "continues": {"step": step, "before": {"epochs": 5}},
    }
    assert schedule_from(result.identity) == step


def test_samples_and_checkpoints_after_the_chosen_step_are_removed(tmp_path):
    """Workers resume from the latest checkpoint, which must then be the chosen one."""
    run = RunDir.open(str(tmp_path))
    for checkpoint in FOUND:
        write(run, checkpoint)
    lines = [f'{{"step": {step}}}\n' for step in (0, 40, 60)]
    (tmp_path / "samples.jsonl").write_text("".join(lines))
    discard(run, start("best", epochs=8))
    assert (tmp_path / "samples.jsonl").read_text() == "".join(lines[:2])
    assert list_complete(run) == FOUND[:2]


@pytest.mark.parametrize("chosen", [None, "50", "latest"])
def test_a_continued_run_that_was_killed_resumes_from_its_own_latest_checkpoint(chosen):
    identity = start("50", epochs=8).identity
    own = made(60, identity=identity)
    # With "latest" the step differs each time; the options identify the run.
    result = start(chosen, [*FOUND[:2], own], epochs=8)
    assert (result.checkpoint, result.identity, result.continues) == (own, identity, False)
    # Its identity is the same if it is complete.
    assert start(chosen, [*FOUND[:2], own], before=identity, epochs=8).identity == identity


def test_a_continued_run_can_be_continued():
    first = start("50", epochs=8).identity
    result = choose_start("latest", OPTIONS | {"epochs": 9}, [made(60, identity=first)], None, "o")
    assert result.identity["continues"] == {
        "step": 60,
        "before": {"continues": first["continues"], "epochs": 8},
    }


@pytest.mark.parametrize(
    ("chosen", "changes", "line"),
    [
        ("latest", {"seed": 1}, "--seed 0, not 1"),
        ("latest", {"model": "n"}, "another base model"),
        ("latest", {"embedding_learning_rate": 1e-2}, "--embedding-learning-rate None, not 0.01"),
        ("30", {"epochs": 8}, "no such checkpoint, only those of steps 20, 50, 75"),
        (None, {"epochs": 8}, r"another --epochs; continue it with --from-checkpoint latest"),
    ],
)
def test_a_difference_that_is_not_allowed_is_one_clear_line(chosen, changes, line):
    with pytest.raises(UserError, match=line):
        start(chosen, **changes)
    with pytest.raises(UserError, match="has no checkpoint"):
        start("latest", [])
