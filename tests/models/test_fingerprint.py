"""A base model is identified by its content, not by its name or location."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from ochat_ray.models import fingerprint as module
from ochat_ray.models.fingerprint import blocks, content_digest, fingerprint

MIB = 2**20


@pytest.fixture
def base(model_directory, tmp_path):
    return Path(shutil.copytree(model_directory, tmp_path / "base"))


def change(path, position, byte=b"\x55"):
    data = bytearray(path.read_bytes())
    assert data[position : position + 1] != byte
    data[position : position + 1] = byte
    path.write_bytes(data)


def test_the_same_content_elsewhere_is_the_same_base(base, tmp_path):
    one = fingerprint(str(base))
    assert fingerprint(base.as_uri()) == one
    base.rename(tmp_path / "moved")
    assert fingerprint(str(tmp_path / "moved")) == one


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
def test_one_other_byte_of_the_weights_is_another_base(base, share):
    """Same architecture, names and sizes, as after fine-tuning the same base."""
    weights = base / "model.safetensors"
    one = fingerprint(str(base))
    change(weights, int(share * weights.stat().st_size) - 1)
    assert fingerprint(str(base)) != one


def test_pickled_weights_are_hashed_as_well(base):
    one = fingerprint(str(base))
    (base / "pytorch_model.bin").write_bytes(b"a")
    two = fingerprint(str(base))
    (base / "pytorch_model.bin").write_bytes(b"b")
    assert len({one, two, fingerprint(str(base))}) == 3


def test_another_configuration_is_another_base_and_who_wrote_it_does_not_matter(base):
    file = base / "config.json"
    config, one = json.loads(file.read_text()), fingerprint(str(base))
    file.write_text(json.dumps(config | {"transformers_version": "4.0"}, indent=7))
    assert fingerprint(str(base)) == one
    file.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert fingerprint(str(base)) != one


def test_blocks_of_a_large_file_cover_its_first_to_its_last_byte():
    size = 10 * 2**30 + 12_345
    found = blocks(size, header=5 * MIB)
    assert found[0] == (0, 5 * MIB)
    starts = [start for start, _ in found[1:]]
    assert starts[0] == 0
    assert starts[-1] + MIB == size
    gaps = {after - before for before, after in pairwise(starts)}
    assert max(gaps) - min(gaps) <= 1
    assert sum(length for _, length in found) == 64 * MIB + 5 * MIB
    assert blocks(64 * MIB) == [(0, 64 * MIB)]


@pytest.mark.parametrize("position", [0, 20_000, 29_999, -1])
def test_header_first_and_last_block_of_a_large_file_are_hashed(tmp_path, monkeypatch, position):
    monkeypatch.setattr(module, "WHOLE_BYTES", 400)
    monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    header = (30_000).to_bytes(8, "little")
    file = tmp_path / "model.safetensors"
    file.write_bytes(header + bytes(100_000))
    fs = pafs.LocalFileSystem()
    one = content_digest(fs, fs.get_file_info(str(file)))
    change(file, position + 8 if position >= 0 else 100_007)
    assert content_digest(fs, fs.get_file_info(str(file))) != one


def test_a_hub_name_is_identified_by_the_commit_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache, commit = tmp_path / "models--org--base", "c" * 40
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "snapshots" / commit / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fingerprint("org/base") == commit
    assert fingerprint("org/other") == "org/other"
