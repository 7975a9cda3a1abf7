"""Local copies of checkpoints: their shards are verified first."""

import pytest
import torch

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train import restore
from tests.train.test_checkpoint import made

SHARDS = ("a.pt", "b.pt", "c.pt", "latest")


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("damaged", SHARDS[:3])
def test_the_workers_together_verify_every_shard(tmp_path, monkeypatch, damaged, world_size):
    checkpoint = made(7, files=dict.fromkeys(SHARDS, 1))
    folder = tmp_path / checkpoint.folder
    folder.mkdir(parents=True)
    for name in SHARDS:
        torch.save({"weights": torch.ones(1000)}, folder / name)
    content = bytearray((folder / damaged).read_bytes())
    content[1000:1030] = bytes(30)
    (folder / damaged).write_bytes(content)
    checkpoints.mark_complete(RunDir.open(str(tmp_path)), checkpoint)
    monkeypatch.setattr(restore.distributed, "barrier", lambda: None)
    monkeypatch.setattr(restore.distributed, "get_world_size", lambda: world_size)
    found = []
    for rank in range(world_size):
        monkeypatch.setattr(restore.distributed, "get_rank", lambda rank=rank: rank)
        copy = restore.local_copy(
            str(tmp_path), checkpoint, staging=str(tmp_path / "staging"), node_rank=0,
            converts=False, leads=rank == 0,
        )  # fmt: skip
        try:
            with copy as directory:
                assert (directory / "latest").exists()
        except UserError as error:
            found.append(str(error))
    assert len(found) == 1
    assert f"{checkpoint.folder}/{damaged} is damaged" in found[0]
