"""One part of the conversations, from records to tables, without Ray."""

import pyarrow as pa
import pytest

from ochat_ray.data.clean import rules
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.parts.clean import clean_part
from ochat_ray.data.parts.files import read_parquet
from ochat_ray.data.parts.tokenize import tokenize_part
from ochat_ray.data.records import records_of
from ochat_ray.data.statistics import Statistics
from ochat_ray.run_dir import RunDir
from ochat_ray.tokenization.template import encode


def record(id, *texts, system=None):
    roles = ("human", "gpt")
    turns = [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]
    turns = [{"from": "system", "value": system}, *turns] if system is not None else turns
    return next(records_of({"id": id, "conversations": turns}, source="f.json", index=0))


RECORDS = [
    record("short", "hello", "fine"),
    record("long", "one", "first", "two", "second", "three", "third", system="Be brief."),
    record("question", "q" * 200, "unseen", "x", "seen"),
    record("hopeless", "q" * 300, "unseen"),
    record("error", "a", "b", "c", "network error"),
    record("only-error", "a", "network error"),
    record("glued", "why?Share Prompt", "because", system=" "),
    record("unanswered", "hm"),
]
LIMIT = 60


@pytest.fixture
def run(tmp_path):
    return RunDir.open(str(tmp_path))


def prepared(run, tokenizer, long):
    """Statistics of the part, and the token rows by split."""
    statistics = Statistics(seconds={})
    cleaned = clean_part(run, "p", RECORDS, rules(keep_model="any", blocked_words=()))
    statistics.add_clean(cleaned)
    config = PrepareConfig(max_length=LIMIT, eval_ratio=0.5, long=long)
    summary = tokenize_part(
        run, "p", config=config, classes={}, tokenizer=tokenizer, sample_share=1.0
    )
    statistics.add_tokenize(summary)
    rows = {}
    for split in ("train", "eval"):
        with pa.memory_map(run.path(f"tokens/{split}/p.arrow")) as file:
            rows[split] = pa.ipc.open_file(file).read_all().to_pylist()
    return statistics, rows


DROPPED = {"too_short": 1, "provider_error": 1}


@pytest.mark.parametrize(
    ("long", "kept", "dropped"),
    [
        ("cut", {"short", "long", "error", "glued"}, {"no_supervised_tokens": 2}),
        ("split", {"short", "long", "question", "error", "glued"}, {"no_supervised_tokens": 1}),
        ("drop", {"short", "error", "glued"}, {"too_long": 3}),
    ],
)
def test_every_record_is_kept_or_dropped_for_each_choice(run, tokenizer, long, kept, dropped):
    statistics, rows = prepared(run, tokenizer, long)
    assert statistics.counts() == {
        "read": 8,
        "kept": len(kept),
        "dropped": DROPPED | dropped,
        "passed_over": {},
    }
    conversations = read_parquet(run, "conversations/p.parquet")["id"].to_pylist()
    assert set(conversations) == kept
    ids = [row["id"] for split in rows.values() for row in split]
    assert {id.split("#")[0] for id in ids} == kept
    assert len(set(ids)) == len(ids) == statistics.rows.total()
    assert statistics.noise == {"network_error": 2, "share_prompt": 1}
    assert statistics.long()[long] == {
        "conversations": len(kept),
        "samples": len(ids),
        "tokens": statistics.token_count,
        "supervised_tokens": statistics.supervised_sums.total(),
    }
    assert statistics.offered == sum(
        len(encode(turns, "openchat", tokenizer)[0])
        for turns in read_parquet(run, "clean/p.parquet")["turns"].to_pylist()
    )


def test_all_samples_of_a_conversation_are_in_one_split(run, tokenizer):
    _, rows = prepared(run, tokenizer, "split")
    found = {
        name: [split for split, of in rows.items() for r in of if r["id"].split("#")[0] == name]
        for name in ("long", "question")
    }
    assert len(found["long"]) == 2
    assert len(set(found["long"])) == 1
    assert len(found["question"]) == 1
    assert all(0 < row["length"] <= LIMIT for of in rows.values() for row in of)


def test_the_digest_of_cut_and_split_differ_only_by_long_conversations(run, tokenizer):
    cut = {r["id"]: r for of in prepared(run, tokenizer, "cut")[1].values() for r in of}
    split = {r["id"]: r for of in prepared(run, tokenizer, "split")[1].values() for r in of}
    assert cut["short"] == split["short"]
    assert cut["long"]["input_ids"][: split["long"]["length"]] == split["long"]["input_ids"]


def test_a_shown_conversation_has_each_turn_beside_its_own(run, tokenizer):
    statistics, _ = prepared(run, tokenizer, "split")
    samples = {sample["id"]: sample for sample in statistics.samples}
    assert samples["glued"]["turns"] == [
        ["user", "why?Share Prompt", "why?"],
        ["assistant", "because", "because"],
    ]
    assert samples["error"]["turns"] == [["user", "a", "a"], ["assistant", "b", "b"]]
    assert [turn[2] for turn in samples["question"]["turns"]] == ["x", "seen"]
    assert samples["long"]["samples"] == 2
