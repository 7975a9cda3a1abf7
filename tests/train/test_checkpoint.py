"""Completeness, choice and retention of checkpoints."""

import json

import pytest
import torch

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.checkpoint import (
    Checkpoint,
    check_same_run,
    list_complete,
    mark_complete,
    prune,
    to_keep,
)


def made(step, eval_loss=None, attempt="a", files=None, **changes):
    values = {
        "name": checkpoints.directory_name(step, attempt), "step": step, "conversations": 8 * step,
        "world_size": 2, "zero_stage": 3, "dtype": "torch.float32", "eval_loss": eval_loss,
        "eval_before": {}, "identity": {"seed": 0}, "files": files or {"deepspeed/shard.pt": 5},
    }  # fmt: skip
    return Checkpoint(**values | changes)


def write(run, checkpoint, shard="12345", finished=True):
    checkpoints.record(run, checkpoint.name, ["deepspeed/shard.pt"])
    run.write_text(f"{checkpoint.folder}/deepspeed/shard.pt", shard)
    if finished:
        mark_complete(run, checkpoint)


@pytest.fixture
def run(tmp_path):
    return RunDir.open(str(tmp_path))


def test_the_last_complete_checkpoint_is_resumed_from(run):
    assert checkpoints.latest(run) is None
    for step in (100, 20, 5):
        write(run, made(step))
    write(run, made(200), finished=False)
    write(run, made(300), shard="1234")  # a byte is missing
    assert checkpoints.latest(run) == made(100)
    assert [c.step for c in list_complete(run)] == [5, 20, 100]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 3}', '"x"'])
def test_a_damaged_state_is_one_line_and_deletes_nothing(run, tmp_path, text):
    write(run, made(5))
    write(run, made(9))
    (tmp_path / made(9).folder / "state.json").write_text(text)
    for call in (checkpoints.latest, lambda run: prune(run, 1)):
        with pytest.raises(
            UserError, match=r"step-00000009-a/state\.json is damaged .*--overwrite"
        ):
            call(run)
    assert len(list((tmp_path / "checkpoints").rglob("shard.pt"))) == 2
    checkpoints.remove_all(run)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "7"),
        ("conversations", None),
        ("eval_before", []),
        ("eval_loss", "x"),
        ("name", "b"),
    ],
)
def test_a_state_with_a_value_of_another_type_is_damaged(run, tmp_path, key, value):
    write(run, made(5))
    state = tmp_path / made(5).folder / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {key: value}))
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        list_complete(run)


@pytest.mark.parametrize("start", [0, 1000, -30])
def test_a_damaged_shard_is_one_line_with_a_remedy(tmp_path, start):
    names = ["a.pt", "b.pt", "latest"]
    for name in names[:2]:
        torch.save({"weights": torch.ones(1000)}, tmp_path / name)
    (tmp_path / "latest").write_text("x")
    checkpoints.check_shards(tmp_path, names, "out/checkpoints/step-7")
    data = bytearray((tmp_path / "b.pt").read_bytes())
    data[start : start + 30 or None] = bytes(30)
    (tmp_path / "b.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"out/checkpoints/step-7/b\.pt is damaged .*--overwrite"):
        checkpoints.check_shards(tmp_path, names, "out/checkpoints/step-7")


def test_two_attempts_at_a_step_give_one_latest_checkpoint(run):
    write(run, made(7, attempt="b"))
    write(run, made(7, attempt="a"))
    assert checkpoints.latest(run) == made(7, attempt="a")


def test_the_last_and_the_best_are_kept():
    kept = to_keep([made(1, 3.0), made(2, 1.0), made(3), made(4, 2.0), made(5)], 2)
    assert [c.step for c in kept] == [2, 4, 5]
    assert [c.step for c in to_keep([made(1), made(2)], 1)] == [2]
    assert [c.step for c in to_keep([made(1, 2.0), made(2, 1.0)], 1)] == [2]


def test_pruning_removes_old_and_incomplete_checkpoints(run):
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0)):
        write(run, made(step, loss))
    write(run, made(9), finished=False)
    prune(run, 1)
    assert [c.step for c in list_complete(run)] == [2, 4]
    assert not run.exists(made(9).folder)
    prune(run, 1)
    assert [c.step for c in list_complete(run)] == [2, 4]


def test_the_first_difference_to_another_run_is_named():
    there = made(7, identity={"model": "m", "data_digest": "d", "step": {}, "seed": 0})
    check_same_run(there, dict(there.identity), "out")
    for change, line in (
        ({"model": "n"}, "with another base model"),
        ({"data_digest": "e", "seed": 1}, "with other data"),
        ({"step": {"packs_per_step": 4}}, "another step size"),
        ({"seed": 1}, "with --seed 0, not 1; give the same"),
    ):
        with pytest.raises(UserError, match=line):
            check_same_run(there, there.identity | change, "out")


def test_only_another_layout_needs_conversion():
    assert not made(1).needs_conversion(world_size=2, zero_stage=3)
    assert made(1).needs_conversion(world_size=3, zero_stage=3)
    assert made(1).needs_conversion(world_size=2, zero_stage=2)
