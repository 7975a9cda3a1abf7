"""Train deletes and overwrites only files of trainings; other files do not change."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ochat_ray.errors import UserError
from ochat_ray.ownership import RECORD, work_name
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.output import check_output_dir, clear, output_of, record_model, record_start
from tests.train.test_checkpoint import made

ONE, TWO = "1" * 32, "2" * 32
STEP = checkpoints.directory_name(7, "a" * 8)
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


def tree(folder):
    """Return the bytes of all files in a folder, and its folders, except lock and record."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if p.relative_to(folder).parts[0] != ".run"
    }


def write(folder, name, text="mine"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def train(folder, token=ONE, steps=(7,)):
    """Write the files of a training, in its order."""
    output = output_of(str(folder))
    check_output_dir(output)
    work = record_start(output, token, trackers=False)
    write(folder, "metrics.jsonl", '{"step": 1}\n')
    write(folder, f"tensorboard/events.out.tfevents.1.host.1.0.{token}", "events")
    write(folder, "checkpoints/.validate_storage_marker", "")
    write(folder, "checkpoints/checkpoint_manager_snapshot.json", "{}")
    for step in steps:
        checkpoint = made(step, attempt="a" * 8)
        checkpoints.record(output.run, checkpoint.name, checkpoint.files)
        write(folder, f"{checkpoint.folder}/deepspeed/shard.pt", "12345")
        checkpoints.mark_complete(output.run, checkpoint)
    write(folder, f"{work_name(token)}/base-0/model.safetensors", "base")
    record_model(output, list(MODEL))
    for name in MODEL:
        write(folder, name, "model")
    write(folder, "loss.png", "png")
    write(folder, "report.html", "page")
    output.run.write_json("ochat.json", {"identity": {}})
    assert work.exists()
    return output


NAMES = st.sampled_from(
    [
        *MODEL,
        *f"""
        ochat.json metrics.jsonl loss.png report.html samples.png notes.json README.md
        model-00001-of-00002.safetensors .failed merges.txt x.bin photo.jpg
        .tmp-{"0" * 32}-notes.txt trackers/runs.json trackers/x tensorboard/x
        tensorboard/events.out.tfevents.1.host.1.0 tensorboard/events.{TWO} wandb/x
        checkpoints/x checkpoints/checkpoint_manager_snapshot.json
        checkpoints/.validate_storage_marker checkpoints/{STEP}/notes.txt
        checkpoints/{STEP}/deepspeed/mine.pt checkpoints/step-00000001-bbbbbbbb/state.json
        checkpoints/step-00000001-bbbbbbbb/deepspeed/shard.pt .work-{TWO}/x .work/x
        data/manifest.json runs/model/config.json
        """.split(),
    ]
)
FILES = st.dictionaries(NAMES, st.binary(max_size=8), max_size=6)


def place(folder, files):
    """Write a user's files without replacing others; return the written ones."""
    placed = {}
    for name, data in files.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            placed[name] = data
    return placed


@settings(max_examples=60)
@given(before=FILES, between=FILES, after=FILES, overwrite=st.booleans())
def test_no_other_file_is_deleted_or_changed(before, between, after, overwrite):
    folder = Path(tempfile.mkdtemp())
    try:
        mine = place(folder, before)
        (folder / "empty/folder").mkdir(parents=True)
        for files, token in ((between, ONE), (after, "3" * 32)):
            output = output_of(str(folder))
            try:
                check_output_dir(output)
                last = checkpoints.latest(output.run)
                clear(output, None if overwrite else last)
                train(folder, token, steps=(7, 8, 9))
            except UserError:
                pass
            mine |= place(folder, files)
            checkpoints.prune(output.run, 1)
            for name, data in mine.items():
                assert (folder / name).read_bytes() == data, name
        clear(output, None)
        checkpoints.remove_all(output.run)
        left = {name: data for name, data in tree(folder).items() if data is not None}
        assert left == mine
        assert (folder / "empty/folder").is_dir()
    finally:
        shutil.rmtree(folder)


def test_clearing_a_training_leaves_only_its_record(tmp_path):
    clear(train(tmp_path), None)
    folders = {"checkpoints": None, "tensorboard": None}
    assert tree(tmp_path) == folders
    assert json.loads((tmp_path / RECORD).read_text())["files"] == []


def test_a_resumed_training_keeps_metrics_and_checkpoints(tmp_path):
    output = train(tmp_path)
    last = checkpoints.latest(output.run)
    clear(output, last)
    assert checkpoints.list_complete(output.run) == [last]
    left = {name for name, data in tree(tmp_path).items() if data is not None}
    assert {name for name in left if "checkpoints" not in name} == {
        "metrics.jsonl",
        f"tensorboard/events.out.tfevents.1.host.1.0.{ONE}",
    }
    assert not any("snapshot" in name for name in left)


@pytest.mark.parametrize(
    "name",
    """
    config.json metrics.jsonl ochat.json model-00001-of-00002.safetensors pytorch_model.bin
    README.md merges.txt loss.png trackers/runs.json checkpoints/checkpoint_manager_snapshot.json
    """.split(),
)
def test_a_file_that_no_training_wrote_is_not_overwritten(tmp_path, name):
    write(tmp_path, name)
    with pytest.raises(UserError, match="was not written by a run of train") as refusal:
        check_output_dir(output_of(str(tmp_path)))
    assert str(tmp_path / name) in str(refusal.value)
    assert tree(tmp_path)[name] == b"mine"


def test_files_of_other_names_are_no_obstacle(tmp_path):
    for name in ("NOTES.md", "checkpoints/mine/x", "tensorboard/x", "photo.png"):
        write(tmp_path, name)
    train(tmp_path)


def test_a_file_in_place_of_a_folder_is_rejected(tmp_path):
    write(tmp_path, "tensorboard")
    with pytest.raises(UserError, match="tensorboard is a file, and train writes a folder"):
        check_output_dir(output_of(str(tmp_path)))


@pytest.mark.parametrize("complete", [True, False])
def test_a_training_of_an_earlier_version_is_reported_as_such(tmp_path, complete):
    if complete:
        write(tmp_path, "ochat.json", '{"identity": {}}')
    else:
        write(tmp_path, "metrics.jsonl")
        write(tmp_path, f"checkpoints/{STEP}/state.json", "{}")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="of an earlier version of ochat-ray"):
        check_output_dir(output_of(str(tmp_path)))
    assert tree(tmp_path) == before


def test_a_checkpoint_that_no_training_recorded_is_not_resumed_from(tmp_path):
    output = output_of(str(tmp_path))
    checkpoint = made(7, attempt="a" * 8)
    write(tmp_path, f"{checkpoint.folder}/deepspeed/shard.pt", "12345")
    checkpoints.mark_complete(output.run, checkpoint)
    assert checkpoints.latest(output.run) is None
    checkpoints.record(output.run, checkpoint.name, checkpoint.files)
    assert checkpoints.latest(output.run) == checkpoint


def test_a_users_file_in_a_checkpoint_is_kept_and_does_no_harm(tmp_path):
    output = train(tmp_path, steps=(7, 8))
    write(tmp_path, f"checkpoints/{STEP}/notes.txt")
    assert [c.step for c in checkpoints.list_complete(output.run)] == [7, 8]
    checkpoints.prune(output.run, 1)
    assert [c.step for c in checkpoints.list_complete(output.run)] == [8]
    kept = (tmp_path / f"checkpoints/{STEP}").rglob("*")
    assert [p.name for p in kept] == ["notes.txt"]


def test_an_output_on_s3(s3):
    output = output_of("s3://bucket/out")
    record_start(output, ONE, trackers=False)
    checkpoint = made(7, attempt="a" * 8)
    checkpoints.record(output.run, checkpoint.name, checkpoint.files)
    output.run.write_text(f"{checkpoint.folder}/deepspeed/shard.pt", "12345")
    checkpoints.mark_complete(output.run, checkpoint)
    output.run.write_text("metrics.jsonl", "")
    for name in ("checkpoints/mine", f"{checkpoint.folder}/mine", "tensorboard/mine"):
        s3.put_object(Bucket="bucket", Key=f"out/{name}", Body=b"mine")
    check_output_dir(output)
    clear(output, None)
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert [key for key in keys if not key.endswith("/")] == [
        "out/.run/written.json",
        "out/checkpoints/mine",
        f"out/{checkpoint.folder}/mine",
        "out/tensorboard/mine",
    ]
