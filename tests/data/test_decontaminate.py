"""Evaluation questions in conversations."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ochat_ray.data.decontaminate import load_questions
from ochat_ray.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
VICUNA = {"question_id": 7, "text": "Why is the sky blue during the day?", "category": "generic"}
MT_BENCH = {
    "question_id": 81,
    "category": "writing",
    "turns": ["Compose a travel blog post about a recent trip to Hawaii.", "Now shorter."],
}
ALPACA = [
    {"instruction": "Who said \\“Let them eat cake\\”, and to whom was it said?", "output": "-"},
    {"instruction": "Hello there", "output": "-", "dataset": "made", "generator": "none"},
]


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "vicuna.jsonl").write_text(json.dumps(VICUNA) + "\n\n")
    (tmp_path / "mt.jsonl").write_text(json.dumps(MT_BENCH))
    (tmp_path / "alpaca_eval.json").write_text("\ufeff" + json.dumps(ALPACA))
    paths = [str(tmp_path / name) for name in ("vicuna.jsonl", "mt.jsonl", "alpaca_eval.json")]
    return load_questions(paths)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Hi", VICUNA["text"]], "vicuna:7"),
        (["So: WHY is the_sky\nblue -- during the day?!! Say it in French."], "vicuna:7"),
        (["Ｗｈｙ is the sky blue during the day"], "vicuna:7"),
        (["Why is the sky blue during the daytime?"], None),
        (["Whywhy is the sky blue during the day?"], None),
        (["Why is the sky so blue during the day?"], None),
        (["Why is the sky blue", "during the day?"], None),
        ([MT_BENCH["turns"][0]], "mt:81"),
        (["now shorter"], "mt:81"),
        (["Now shorter. Thanks!"], None),
        (["who said 'let them eat cake' and to whom was it said"], "alpaca_eval:0"),
        (["Hello there!"], "alpaca_eval:1"),
        (["Hello there, who are you?"], None),
        ([ALPACA[0]["instruction"], VICUNA["text"]], "vicuna:7"),
        (["", "?!"], None),
        ([], None),
    ],
)
def test_the_first_question_that_a_text_contains(questions, texts, expected):
    assert questions.find(texts) == expected


def test_questions_travel_to_workers(questions):
    assert pickle.loads(pickle.dumps(questions)).find([VICUNA["text"]]) == "vicuna:7"


WORDS = st.sampled_from(["a", "b", "c", "ab"])


@given(
    st.lists(st.lists(WORDS, min_size=7, max_size=9), min_size=1, max_size=5),
    st.lists(WORDS, max_size=40),
)
def test_every_long_question_is_found_and_no_other(tmp_path_factory, questions, text):
    path = tmp_path_factory.getbasetemp() / "made.jsonl"
    lines = [{"question_id": i, "text": " ".join(q)} for i, q in enumerate(questions)]
    path.write_text("\n".join(map(json.dumps, lines)))
    expected = [i for i, q in enumerate(questions) if holds(text, q)]
    assert load_questions([str(path)]).find([" ".join(text)]) == (
        f"made:{expected[0]}" if expected else None
    )


def holds(text, question):
    if len(question) < 8:
        return text == question
    return any(text[i : i + len(question)] == question for i in range(len(text)))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / folder / "question.jsonl" for folder in ("vicuna", "mt_bench")]
    for path, question in zip(paths, (VICUNA, MT_BENCH), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps(question))
    questions = load_questions([str(path) for path in paths])
    assert questions.find([VICUNA["text"]]) == "vicuna/question:7"
    assert questions.find(MT_BENCH["turns"]) == "mt_bench/question:81"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "hello",
        "3",
        "\udc80",  # no UTF-8
        '["a"]',
        "[[1]]",
        '[{"text": "x"}]',
        '{"id": 1}',
        '{"question_id": 1, "text": null}',
        '{"question_id": 1, "turns": 3}',
        '{"question_id": 1, "turns": "one"}',
    ],
)
def test_another_format_is_refused_with_the_file_s_name(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"mine\.jsonl") as caught:
        load_questions([str(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", ""])
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(UserError, match="cannot read the questions file") as caught:
        load_questions([path])
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no FastChat question files at {SHARED}")
@pytest.mark.parametrize(("name", "count"), [("vicuna", 80), ("mt_bench", 160)])
def test_fastchat_s_own_files(name, count):
    path = SHARED / name / "question.jsonl"
    questions = load_questions([str(path)])
    assert len(questions.questions) == count
    for line in path.read_text().splitlines():
        record = json.loads(line)
        first, *others = record.get("turns") or [record["text"]]
        expected = f"question:{record['question_id']}"
        assert questions.find([f"Please answer: {first}\nThanks."]) == expected
        assert all(questions.find([turn]) == expected for turn in others)
    assert questions.find(["Thanks, why?", "Can you parallelize it for me?"]) is None
