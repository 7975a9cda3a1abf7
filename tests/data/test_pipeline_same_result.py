"""The same pages give the same digest, whatever carries, orders or computes them, or dies."""

import io
import json
import os
import random
import signal
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from ochat_ray.data import clean, pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.dedup import tasks
from ochat_ray.data.parts import clean as parts
from ochat_ray.data.plan import Identity
from ochat_ray.data.statistics import Statistics
from ochat_ray.run_dir import RunDir, open_tokens
from tests.pages import share_page

pytestmark = pytest.mark.ray


def prose(seed):
    rng = random.Random(seed)
    return " ".join(f"word{rng.randrange(1000)}" for _ in range(200))


def pages():
    """60 of their own, 5 exact and 5 near duplicates, 2 malformed; some of another model."""
    found = {}
    for n in range(60):
        answer = f"<p>Answer <strong>{n}</strong>: {prose(n)}</p><ul><li>a</li></ul>"
        if n >= 55:
            answer = f"<p>{prose(999)} {n}</p>"
        items = [{"from": "human", "value": f"Question {n}?"}, {"from": "gpt", "value": answer}]
        model = "Model: GPT-4" if n % 5 else "Model: Default (GPT-3.5)"
        found[f"{n % 4}/p{n:02d}.html"] = share_page(items, id=f"p{n:02d}", model=model)
        if n in range(1, 6):
            found[f"copy/z{n}.html"] = share_page(items, id=f"z{n}", model="GPT-4")
    return found | {"bad/1.html": b"", "bad/2.html": b"<html>404</html>"}


def write(folder):
    for name, page in pages().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(page)
    return str(folder)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 9 pages, so that there are several of everything."""
    monkeypatch.setattr("ochat_ray.data.inputs.GROUP_FILES", 9)


def config(tmp_path, tokenizer_directory, **changes):
    return PrepareConfig(
        **{
            "recipe": "openchat",
            "input": (str(tmp_path / "in"),),
            "output": str(tmp_path / "out"),
            "tokenizer": tokenizer_directory,
            "eval_ratio": 0.2,
            "near_duplicates": 0.8,
            "max_length": 4000,
        }
        | changes
    )


@pytest.fixture(scope="module")
def undisturbed(shared_ray, tmp_path_factory, tokenizer_directory):
    """The manifest of a run on three CPUs, in one part."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder / "in")
    shared_ray()
    return pipeline.prepare(config(folder, tokenizer_directory))


def test_the_undisturbed_run_is_what_was_put_in(undisturbed):
    counts = undisturbed["counts"]
    # Of 60: 12 of another model. Copies of 1 to 5, whose own 5 has the other label: it is kept.
    assert counts["read"] == 67
    assert counts["dropped"] == {
        "other_model": 12,
        "duplicate": 4,
        "near_duplicate": 3,
        "unreadable": 1,
        "no_data": 1,
    }
    assert counts["kept"] == 46
    assert undisturbed["fidelity"] == {
        "converted": 46,
        "intact": 46,
        "structure": {"intact": 46, "mean": 1.0},
        "text": {"intact": 46, "mean": 1.0},
    }


@pytest.mark.usefixtures("small_parts", "local_ray")
def test_pages_and_the_same_pages_in_a_tar(tmp_path, tokenizer_directory, undisturbed):
    names = list(pages().items())
    random.Random(3).shuffle(names)
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as archive:
        for name, page in names:
            info = tarfile.TarInfo(name)
            info.size = len(page)
            archive.addfile(info, io.BytesIO(page))
    packed = config(tmp_path, tokenizer_directory, input=(str(tmp_path / "in.tar.gz"),))
    assert pipeline.prepare(packed)["digest"] == undisturbed["digest"]


@pytest.mark.usefixtures("small_parts", "local_ray")
def test_files_in_another_order_and_mixed_formats(tmp_path, tokenizer_directory, undisturbed):
    folder = Path(write(tmp_path / "in"))
    files = sorted(folder.rglob("*.html"))
    random.Random(0).shuffle(files)
    with tarfile.open(tmp_path / "half.tar", "w") as archive:
        for file in files[:20]:
            archive.add(file, arcname=file.name)
            file.unlink()
    # The rest under other names, so that they come in another order.
    for number, file in enumerate(files[20:]):
        file.rename(folder / f"{number:03d}.html")
    inputs = (str(tmp_path / "half.tar"), str(folder / "*.html"))
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory, input=inputs))
    assert manifest["digest"] == undisturbed["digest"]


@pytest.mark.usefixtures("small_parts", "no_ray")
def test_one_cpu(tmp_path, tokenizer_directory, undisturbed):
    write(tmp_path / "in")
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory))
    assert manifest["digest"] == undisturbed["digest"]


def dying_once(function, marker):
    """The function, in a worker that is killed the first time it has done its work."""

    def work_and_die(*args, **options):
        result = function(*args, **options)
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return work_and_die


def replace_work(monkeypatch, stage, wrap):
    """Wrap what tasks of a stage do; of cleaning a rule, since rules travel to the workers."""
    if stage == "clean":
        before = clean.rules
        monkeypatch.setattr(clean, "rules", lambda **kw: [wrap(lambda c: c), *before(**kw)])
    else:
        monkeypatch.setattr(pipeline, stage, wrap(getattr(pipeline, stage)))


@pytest.mark.usefixtures("small_parts", "local_ray")
@pytest.mark.parametrize(
    "stage", ["clean", "find_exact", "write_minhash", "find_pairs", "tokenize_part", "assemble"]
)
def test_kill_9_of_a_worker_in_each_stage(
    tmp_path, tokenizer_directory, undisturbed, monkeypatch, stage
):
    write(tmp_path / "in")
    marker = str(tmp_path / "died")
    replace_work(monkeypatch, stage, lambda work: dying_once(work, marker))
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory))
    assert os.path.exists(marker)
    assert manifest["digest"] == undisturbed["digest"]
    assert manifest["counts"] == undisturbed["counts"]
    assert len(pq.read_table(tmp_path / "out/dropped")) == 21
    assert len(pq.read_table(tmp_path / "out/conversations")) == 46
    rows = sum(len(open_tokens(str(tmp_path / "out"), split)) for split in ("train", "eval"))
    assert rows == 46


def failing_from(function, marker, calls):
    """The function, which fails once it has been called so often; nothing tidies up."""

    def work_or_fail(*args, **options):
        with open(marker, "a") as file:
            file.write("x")
        if os.path.getsize(marker) > calls:
            raise RuntimeError("pulled the plug")
        return function(*args, **options)

    return work_or_fail


@pytest.mark.usefixtures("small_parts", "local_ray")
@pytest.mark.parametrize(("stage", "calls"), [("clean", 20), ("find_pairs", 2), ("assemble", 2)])
def test_a_resumed_run_does_only_what_is_missing(
    tmp_path, tokenizer_directory, undisturbed, monkeypatch, stage, calls
):
    write(tmp_path / "in")
    with monkeypatch.context() as patch:
        marker = str(tmp_path / "calls")
        replace_work(patch, stage, lambda work: failing_from(work, marker, calls))
        with pytest.raises(Exception, match="pulled the plug"):
            pipeline.prepare(config(tmp_path, tokenizer_directory))
    assert not (tmp_path / "out/manifest.json").exists()
    files = list((tmp_path / "out").glob(".work-*/done/clean/*.json"))
    assert len(files) == 8 or (stage == "clean" and 0 < len(files) < 8)
    done = sum(json.loads(file.read_text())["read_well"] for file in files)

    cleaned_again = str(tmp_path / "again")
    replace_work(monkeypatch, "clean", lambda work: failing_from(work, cleaned_again, 999))
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory, resume=True))
    assert manifest["digest"] == undisturbed["digest"]
    assert manifest["counts"] == undisturbed["counts"]
    again = os.path.getsize(cleaned_again) if os.path.exists(cleaned_again) else 0
    assert again == sum(manifest["answers"].values()) - done


@pytest.mark.usefixtures("local_ray")
def test_resume_of_another_configuration_is_refused(tmp_path, tokenizer_directory, monkeypatch):
    write(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_write_pass", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.prepare(config(tmp_path, tokenizer_directory))
    with pytest.raises(ValueError, match="unfinished run of another configuration"):
        pipeline.prepare(config(tmp_path, tokenizer_directory, seed=1, resume=True))
    # Nor does a mistyped input cost what was done.
    with pytest.raises(ValueError, match="does not exist"):
        pipeline.prepare(config(tmp_path, tokenizer_directory, input=(str(tmp_path / "inn"),)))
    assert len(list((tmp_path / "out").glob(".work-*/plan.json"))) == 1


@pytest.mark.usefixtures("local_ray")
def test_tables_are_cut_by_rows_and_named_in_order(tmp_path, tokenizer_directory, monkeypatch):
    write(tmp_path / "in")
    monkeypatch.setattr(pipeline, "FILE_ROWS", 10)
    pipeline.prepare(config(tmp_path, tokenizer_directory))
    files = sorted((tmp_path / "out/conversations").iterdir())
    assert [file.name for file in files] == [f"{n:05d}.parquet" for n in range(5)]
    assert [len(pq.read_table(file)) for file in files] == [10, 10, 10, 10, 6]


def test_parts_are_written_in_their_order_whichever_task_ends_first(
    tmp_path, tokenizer_directory, monkeypatch
):
    nothing = {
        "read": 0, "kept": [], "digest": "0", "drop_counts": {}, "dropped": [], "offered": 0,
        "template_notes": {}, "yields": {}, "worst": [], "samples": [],
    }  # fmt: skip
    monkeypatch.setattr(
        pipeline, "_map_summaries", lambda items, _work: [nothing | one for one in reversed(items)]
    )
    run, parts_found = RunDir.open(str(tmp_path)), ["000000-0000", "000000-0001", "000001-0000"]
    settings, identity = config(tmp_path, tokenizer_directory), Identity(values={}, template=None)
    found = pipeline._tokenize_pass(
        settings, run, settings.check(), identity, parts_found, Statistics()
    )
    assert [summary["part"] for summary in found] == parts_found


def test_shards_are_of_bounded_rows():
    assert [tasks.shards_of(n) for n in (0, 1, 5_000_000, 5_000_001)] == [1, 1, 1, 2]
    assert parts.PART_ROWS == 1000
