"""Files of questions, answers and prompts, as they are published and broken."""

import json

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.prompts import read_prompts
from ochat_ray.evaluate.questions import check_complete, read_answers, read_questions
from ochat_ray.evaluate.vicuna import PROMPT_NAMES


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_questions_of_all_three_kinds(tmp_path):
    vicuna = lines(tmp_path / "v", {"question_id": 1, "text": "a", "category": "generic"})
    (one,) = read_questions(vicuna)
    assert (one.id, one.category, one.turns) == ("1", "generic", ("a",))
    bench = lines(tmp_path / "m", {"question_id": 81, "category": "math", "turns": ["a", "b"]})
    assert read_questions(bench)[0].turns == ("a", "b")
    first = {"answer_id": "x", "model_id": "gpt-3.5", "question_id": "1", "text": "a"}
    assert read_answers(lines(tmp_path / "first", first)).turns == {"1": ("a",)}
    alpaca = tmp_path / "a.json"
    alpaca.write_text(json.dumps([{"instruction": "do", "output": "x", "dataset": "koala"}] * 1))
    (three,) = read_questions(alpaca)
    assert (three.id, three.category, three.turns) == ("do", "koala", ("do",))
    assert read_questions(lines(tmp_path / "two", {"question_id": 1, "text": "a"},
                                {"question_id": 2, "text": "b"}), limit=1)[0].id == "1"  # fmt: skip


def test_answers_of_all_kinds(tmp_path):
    fastchat = lines(
        tmp_path / "f",
        {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]},
    )
    found = read_answers(fastchat)
    assert (found.model, found.turns) == ("m", {"81": ("a", "b")})
    openchat = lines(tmp_path / "gpt35.jsonl", {"question_id": 1, "text": "q", "answer": "a"})
    assert (read_answers(openchat).model, read_answers(openchat).turns) == ("gpt35", {"1": ("a",)})
    alpaca = tmp_path / "a.json"
    alpaca.write_text(json.dumps([{"instruction": "do", "output": "x", "generator": "g"}]))
    assert (read_answers(alpaca).model, read_answers(alpaca).turns) == ("g", {"do": ("x",)})


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "no questions"),
        ("[]", "no questions"),
        ("x", "line 1: no JSON"),
        ("[1]", "record 1: no JSON object"),
        ('{"question_id": 1}', "line 1: no question"),
        ('\n{"text": "a"}', "line 2: no question"),
        ("[{", "no JSON"),
        ('{"question_id": 1, "turns": []}', "no question"),
        ('{"question_id": 1, "turns": "ab"}', "no question"),
        ('{"question_id": 1, "text": "a"}\n' * 2, "line 2: question '1' occurs twice"),
    ],
)
def test_what_is_no_question_is_one_line(tmp_path, content, line):
    path = tmp_path / "q"
    path.write_text(content)
    with pytest.raises(UserError, match=line) as error:
        read_questions(path)
    assert "\n" not in str(error.value)


def test_answers_of_another_model_are_refused(tmp_path):
    path = lines(tmp_path / "f", {"question_id": 1, "model_id": "m", "answer": "a"})
    with pytest.raises(UserError, match="is of m, not of 'other'"):
        read_answers(path, model="other")
    mixed = lines(
        tmp_path / "g",
        {"question_id": 1, "model_id": "m", "answer": "a"},
        {"question_id": 2, "model_id": "n", "answer": "a"},
    )
    with pytest.raises(UserError, match="is of m and n, not of one model"):
        read_answers(mixed)
    with pytest.raises(UserError, match="line 1: no answer"):
        read_answers(lines(tmp_path / "h", {"question_id": 1, "choices": []}))


def test_missing_answers_are_counted(tmp_path):
    questions = read_questions(
        lines(tmp_path / "q", *({"question_id": n, "turns": ["a", "b"]} for n in (1, 2, 3)))
    )
    answers = read_answers(
        lines(
            tmp_path / "a",
            {"question_id": 1, "choices": [{"turns": ["x", "y"]}]},
            {"question_id": 2, "choices": [{"turns": ["x"]}]},
        )
    )
    with pytest.raises(UserError, match="no complete answer to 2 of 3 questions, first '2'"):
        check_complete(answers, questions)


def test_prompts_of_openchats_format_are_filled_with_their_defaults(tmp_path):
    record = {
        "prompt_id": 1,
        "system_prompt": "S",
        "category": "general",
        "prompt_template": "{question}|{answer_1}|{answer_2}|{prompt}",
        "defaults": {"prompt": "Give {two} numbers"},
    }
    prompts = read_prompts(lines(tmp_path / "p", record), suite="vicuna", names=PROMPT_NAMES)
    (system, user) = prompts.for_category("any").messages(
        question="{q}", answer_1="a", answer_2="b"
    )
    assert system == {"role": "system", "content": "S"}
    assert user["content"] == "{q}|a|b|Give {two} numbers"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"prompt_template": "{nonsense}", "category": "general"},
            "nothing is known of {nonsense}",
        ),
        ({"prompt_template": "{", "category": "general"}, "no prompt"),
        ({"category": "general"}, "no prompt"),
        ({"prompt_template": "x", "category": "math"}, "no prompt of category 'general'"),
    ],
)
def test_what_is_no_prompt_is_one_line(tmp_path, record, line):
    with pytest.raises(UserError, match=line):
        read_prompts(lines(tmp_path / "p", record), suite="vicuna", names=PROMPT_NAMES)


def test_two_answers_to_one_question_are_rejected(tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [{"question_id": 1, "answer": text} for text in ("a", "a", "b")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"line 3: another answer to question '1'"):
        read_answers(path)


def test_a_question_without_text_is_rejected(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 1, "turns": ["a", " "]}\n')
    with pytest.raises(UserError, match=r"line 1: question '1' has an empty turn"):
        read_questions(path)


def test_json_that_is_nested_too_deeply_is_one_line(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(UserError, match="line 1: no JSON"):
        read_questions(path)
