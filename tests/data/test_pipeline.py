"""The whole data job on a real local Ray, on small files made here."""

import copy
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ochat_ray.command_line import user_message
from ochat_ray.data import pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.parts import clean as parts
from ochat_ray.data.verify import verify_tables
from ochat_ray.errors import UserError
from ochat_ray.run_dir import open_tokens

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def item(id, question="hello", answer="fine"):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, "conversations": turns}


def items():
    """30 that are kept, 3 copies, 1 without an answer, 1 that is none, 1 too long a question."""
    return [
        *(item(f"k{i:02d}", question=f"question {i}") for i in range(30)),
        *(item(f"z{i}", question=f"question {i}") for i in range(3)),
        {"id": "q", "conversations": [{"from": "human", "value": "hello?"}]},
        {"nothing": 1},
        item("long", question="x" * 500),
    ]


def write(folder, records, files=3):
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"{number}.json").write_text(json.dumps(records[number::files]))
    return str(folder)


def config(tmp_path, tokenizer_directory, **changes):
    return PrepareConfig(
        **{
            "input": (str(tmp_path / "in"),),
            "output": str(tmp_path / "out"),
            "tokenizer": tokenizer_directory,
            "keep_model": "any",
            "eval_ratio": 0.3,
            "max_length": 100,
        }
        | changes
    )


def test_every_input_ends_as_kept_or_dropped(tmp_path, tokenizer_directory):
    write(tmp_path / "in", items())
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory))
    counts = manifest["counts"]
    assert counts["read"] == 36
    assert counts["kept"] == 30
    assert counts["dropped"] == {
        "duplicate": 3,
        "too_short": 1,
        "malformed": 1,
        "no_supervised_tokens": 1,
    }

    out = tmp_path / "out"
    dropped = pq.read_table(out / "dropped").to_pylist()
    assert len(dropped) == 6
    assert {d["id"] for d in dropped if d["reason"] == "duplicate"} == {"z0", "z1", "z2"}
    kept = pq.read_table(out / "conversations").to_pylist()
    assert sorted(c["id"] for c in kept) == [f"k{i:02d}" for i in range(30)]
    rows = [open_tokens(str(out), split)["id"].to_pylist() for split in ("train", "eval")]
    assert sorted(rows[0] + rows[1]) == sorted(c["id"] for c in kept)
    assert len(rows[1]) == manifest["tokens"]["eval"]["rows"] > 0
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert "From read to kept" in (out / "report.html").read_text()
    assert not list(out.glob(".work-*"))


def test_the_digest_depends_on_content_alone(tmp_path, tokenizer_directory, monkeypatch):
    records = items()
    write(tmp_path / "one" / "in", records)
    random.Random(0).shuffle(records)
    write(tmp_path / "two" / "in", records, files=1)
    one = pipeline.prepare(config(tmp_path / "one", tokenizer_directory))
    monkeypatch.setattr(parts, "PART_ROWS", 7)
    two = pipeline.prepare(config(tmp_path / "two", tokenizer_directory))
    assert one["digest"] == two["digest"]
    longer = pipeline.prepare(
        config(tmp_path / "two", tokenizer_directory, max_length=99, overwrite=True)
    )
    assert longer["digest"] == one["digest"]  # nothing is that long
    other = pipeline.prepare(
        config(tmp_path / "two", tokenizer_directory, eval_ratio=0.9, overwrite=True)
    )
    assert other["digest"] != one["digest"]


def test_a_complete_run_is_not_done_again_nor_lost(tmp_path, tokenizer_directory, capsys):
    write(tmp_path / "in", items())
    first = pipeline.prepare(config(tmp_path, tokenizer_directory))
    written = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert pipeline.prepare(config(tmp_path, tokenizer_directory)) == first
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="another configuration"):
        pipeline.prepare(config(tmp_path, tokenizer_directory, seed=1))
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == written


def test_what_an_interrupted_run_left_is_not_mixed_in(tmp_path, tokenizer_directory):
    write(tmp_path / "in", items())
    first = pipeline.prepare(config(tmp_path, tokenizer_directory))
    (tmp_path / "out/manifest.json").unlink()
    table = tmp_path / "out/tokens/train/00000.arrow"
    table.write_bytes(b"half a file of another run")
    stale = table.with_name(f".tmp-{'0' * 32}-00000.arrow")
    stale.write_bytes(b"half a file of another run")
    again = pipeline.prepare(config(tmp_path, tokenizer_directory))
    assert not stale.exists()
    assert again["digest"] == first["digest"]
    verify_tables(str(tmp_path / "out"), again)


def test_a_human_turn_is_kept_byte_for_byte(tmp_path, tokenizer_directory):
    typed = "  <b>né\u00a0\u200d🙂</b>\r\n\t``` <|end_of_turn|> \x00 \\n"
    write(tmp_path / "in", [item("a", question=typed)], files=1)
    pipeline.prepare(config(tmp_path, tokenizer_directory, eval_ratio=0.0, max_length=1000))
    (kept,) = pq.read_table(tmp_path / "out/conversations").to_pylist()
    assert kept["turns"][0]["text"] == typed


def test_two_models_have_their_weights_and_conditions_in_the_tables(
    tmp_path, tokenizer, tokenizer_directory
):
    labels = {"four": "Model: GPT-4", "three": "Default (GPT-3.5)", "other": "Claude"}
    records = [item(id, question=id) | {"model": label} for id, label in labels.items()]
    write(tmp_path / "in", records, files=1)
    plain = {"eval_ratio": 0.0, "max_length": 1000, "keep_model": "any"}
    both = plain | {"class_weights": "GPT-4=1.0, GPT-3.5=0.25", "conditions": "GPT-3.5=GPT3"}
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory, **both))
    assert manifest["counts"] == {
        "read": 3,
        "kept": 2,
        "dropped": {"other_model": 1},
        "passed_over": {},
    }
    assert manifest["config"]["keep_model"] is None
    assert manifest["config"]["class_weights"] == {"gpt-4": 1.0, "gpt-3.5": 0.25}
    assert manifest["config"]["conditions"] == {"gpt-3.5": "GPT3"}

    def segment(text):
        return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    rows = {row["id"]: row for row in open_tokens(str(tmp_path / "out"), "train").to_pylist()}
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    answer = [*segment("fine"), end]
    for id, before, weight in [("four", "", 1.0), ("three", "GPT3 ", 0.25)]:
        context = [tokenizer.bos_token_id, *segment(f"{before}Human: "), *segment(id), end]
        context += segment(f"{before}Assistant: ")
        assert rows[id]["input_ids"] == [*context, *answer]
        assert rows[id]["loss_weights"] == [0.0] * len(context) + [weight] * len(answer)
    assert manifest["tokens"]["train"]["supervised_tokens"] == 2 * len(answer)

    unconditioned = {"class_weights": "GPT-4=1.0,GPT-3.5=0.25", "overwrite": True}
    other = pipeline.prepare(config(tmp_path, tokenizer_directory, **plain | unconditioned))
    assert other["digest"] != manifest["digest"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"a": 1}', "no conversations in .*no list named"),
        ("hello", "no conversations in .*the file ends in the middle of a record"),
        ("[]", "no conversations in .*a file without a record in it"),
        (json.dumps([{"conversations": []}]), "nothing was kept: too_short 1"),
    ],
)
def test_an_input_without_conversations_is_one_clear_line(
    tmp_path, tokenizer_directory, content, line
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.json").write_text(content)
    with pytest.raises(UserError, match=line):
        pipeline.prepare(config(tmp_path, tokenizer_directory))
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("missing", ["in/1.json", "inputs/000000.json"])
def test_what_a_task_on_another_host_does_not_see_is_one_clear_line(
    tmp_path, tokenizer_directory, monkeypatch, missing
):
    write(tmp_path / "in", items())
    clean_pass, removed = pipeline._clean_pass, []

    def clean_without(config, work, *options):
        folder = Path(work.root) if missing.startswith("inputs") else tmp_path
        removed.append(folder / missing)  # listed or written before, as on the driver's host
        removed[0].unlink()
        return clean_pass(config, work, *options)

    monkeypatch.setattr(pipeline, "_clean_pass", clean_without)
    with pytest.raises(Exception, match="UserError") as failure:
        pipeline.prepare(config(tmp_path, tokenizer_directory))
    message = user_message(failure.value)
    assert message.startswith(f"{removed[0]} does not exist on ")
    assert "s3://" in message


def test_the_template_is_checked_before_anything_is_read(tmp_path, tokenizer):
    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    without.save_pretrained(tmp_path / "tokenizer")
    write(tmp_path / "in", items())
    with pytest.raises(UserError, match="needs a tokenizer with a BOS token"):
        pipeline.prepare(config(tmp_path, str(tmp_path / "tokenizer"), recipe="openchat"))
    assert not list((tmp_path / "out").glob(".work-*"))


def test_a_split_run_has_more_samples_than_conversations(tmp_path, tokenizer_directory):
    long = {"id": "l", "conversations": 9 * item("x")["conversations"]}
    write(tmp_path / "in", [*items(), long])
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory, long="split"))
    rows = sum(split["rows"] for split in manifest["tokens"].values())
    assert manifest["counts"]["kept"] == 31
    assert manifest["samples"] == rows == manifest["long"]["split"]["samples"] > 31
    kept = pq.read_table(tmp_path / "out/conversations")["id"].to_pylist()
    ids = [
        id
        for s in ("train", "eval")
        for id in open_tokens(str(tmp_path / "out"), s)["id"].to_pylist()
    ]
    assert len(set(ids)) == rows
    assert {id.split("#")[0] for id in ids} == set(kept)


def test_a_models_own_template_is_in_tables_manifest_and_report(tmp_path, tokenizer):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}<|end_of_turn|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    own.save_pretrained(tmp_path / "base")
    call = {"id": "1", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "sum <|end_of_turn|>"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
        {"role": "assistant", "content": "five", "reasoning_content": "lost"},
    ]
    write(tmp_path / "in", [{"messages": messages}, {"messages": messages[:1]}], files=1)
    changes = {"recipe": "chat", "tokenizer": str(tmp_path / "base"), "eval_ratio": 0.0}
    manifest = pipeline.prepare(config(tmp_path, "", max_length=200, **changes))
    ((ids, weights),) = [
        (row["input_ids"], row["loss_weights"])
        for row in open_tokens(str(tmp_path / "out"), "train").to_pylist()
    ]
    text = "".join(tokenizer.decode([id]) for id in ids)
    assert text == (
        "[user]sum <|end_of_turn|><|end_of_turn|>"
        '[assistant]{"name": "add", "arguments": {}}<|end_of_turn|>'
        "[tool]5<|end_of_turn|>[assistant]five<|end_of_turn|>"
    )
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert ids.count(end) == 4  # the typed one is text
    assert [w for id, w in zip(ids, weights, strict=True) if id == end] == [0.0, 1.0, 0.0, 1.0]
    assert manifest["template"] == {"source": template, "arguments": {}, "today": None}
    assert manifest["template_notes"] == {"reasoning_left_out": 1}
    assert manifest["counts"]["dropped"] == {"too_short": 1}
    report = Path(tmp_path, "out", "report.html").read_text()
    assert "reasoning_left_out" in report
    again = pipeline.prepare(config(tmp_path, "", max_length=200, **changes))
    assert again == manifest


def test_an_error_of_the_user_in_a_task_is_one_line():
    work = pipeline._each(lambda item: (_ for _ in ()).throw(UserError(f"no {item['name']}")))
    work.__name__ = "fails"
    with pytest.raises(UserError, match=r"^no tokenizer$"):
        list(pipeline._map_summaries([{"name": "tokenizer"}], work))
