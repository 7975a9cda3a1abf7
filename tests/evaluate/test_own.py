"""Own questions: conversations whose last answer is the reference."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate import own_models
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.own import normalized, read_conversations
from ochat_ray.evaluate.steps import run
from tests.evaluate import test_steps
from tests.evaluate.endpoint import Endpoint

SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def written(path, *records):
    rows = [{"messages": r} if isinstance(r, list) else r for r in records]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def held_out(tmp_path):
    return written(
        tmp_path / "held.jsonl",
        {"messages": [SYSTEM, user("Capital of France?"), assistant("Paris.")], "category": "geo"},
        {
            "messages": [
                user("Capital of Italy?"),
                assistant("Rome."),
                user("And of Spain?"),
                assistant("<think>Easy.</think>Madrid", weight=1),
            ],
            "category": "geo",
        },
        {"messages": [user("1 + 1?"), assistant("2")], "id": "sum"},
        [user("no answer")],
        [user("a"), assistant(None, tool_calls=[CALL])],
        [user("a"), assistant("b"), assistant("c")],
        [user("a"), assistant("b", weight=0)],
        [user("a"), assistant(" ")],
        [user([{"type": "image_url", "image_url": {"url": "u"}}]), assistant("b")],
    )


def configured(tmp_path, held_out, url, **fields):
    own = {"suite": "own", "model": ("tuned",), "judge": "", "samples": 3, "attempts": 1}
    return test_steps.configured(tmp_path, held_out, url, **own | fields)


def said(body):
    """The tuned model knows two of three references; the base one, in other words the others."""
    answers = {
        "Capital of France?": ("**paris**", "It is Paris."),
        "And of Spain?": ("<think>?</think> Madrid.", "Barcelona"),
        "1 + 1?": ("3", "2"),
    }
    return answers[body["messages"][-1]["content"]][body["model"] == "base"]


def test_what_is_no_question_is_counted_with_its_reason(held_out):
    questions, references, unusable = read_conversations(held_out)
    assert [(q.id, q.category, q.turns) for q in questions] == [
        ("held.jsonl#0", "geo", ("Capital of France?",)),
        ("held.jsonl#1", "geo", ("And of Spain?",)),
        ("sum", "", ("1 + 1?",)),
    ]
    assert references.turns["held.jsonl#1"] == ("Madrid",)
    assert unusable == {
        "no answer at the end": ["held.jsonl#3"],
        "tools": ["held.jsonl#4"],
        "no question before the answer": ["held.jsonl#5"],
        "answer of weight 0 at the end": ["held.jsonl#6"],
        "empty answer at the end": ["held.jsonl#7"],
        "unsupported": ["held.jsonl#8"],
    }


def test_offered_tools_are_no_question(tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    path = written(tmp_path / "t.jsonl", {"messages": [user("a"), assistant("b")], "tools": tools})
    with pytest.raises(UserError, match=r"no conversation can be used \(tools 1\)"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [user("a"), assistant("b")], "category": 3}, r"line 2: `category` must be"),
        ({"messages": [user("a"), assistant("b")], "id": "x"}, r"line 2: the id 'x' occurs twice"),
        ([1], r"line 2: no JSON object"),
    ],
)
def test_a_wrong_record_is_named_by_its_line(tmp_path, record, message):
    path = tmp_path / "held.jsonl"
    first = {"messages": [user("a"), assistant("b")], "id": "x"}
    path.write_text(json.dumps(first) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=message):
        read_conversations(str(path))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Paris.", " “paris” ", True), ("**42**", "42", True), ("a  b\nc", "A b c!", True),
        ("ﬁne", "fine", True), ("<think>no</think>yes", "Yes.", True), ("STRASSE", "straße", True),
        ("-5", "5", False), ("5%", "5", False), ("the end", "end", False), ("3.14", "314", False),
        ("a.b", "a b", False),
    ],
)  # fmt: skip
def test_texts_match_but_for_case_space_quotes_and_a_full_stop(one, other, equal):
    assert (normalized(one) == normalized(other)) == equal


def test_system_prompts_and_earlier_turns_are_sent(tmp_path, held_out):
    endpoint = Endpoint(said)
    with endpoint.serving():
        run(configured(tmp_path, held_out, endpoint.url, step="answer", baseline=""))
    sent = {body["messages"][-1]["content"]: body["messages"] for body in endpoint.asked}
    assert sent["Capital of France?"] == [SYSTEM, user("Capital of France?")]
    assert sent["And of Spain?"] == [
        user("Capital of Italy?"),
        assistant("Rome."),
        user("And of Spain?"),
    ]
    assert len(endpoint.asked) == 3
    assert {body["temperature"] for body in endpoint.asked} == {0}


def test_reasoning_of_earlier_answers_is_sent_in_its_field(tmp_path):
    earlier = [user("1 + 1?"), assistant("2", reasoning_content="Count."), user("2 + 2?")]
    path = written(tmp_path / "held.jsonl", [*earlier, assistant("4")])
    [question], _, _ = read_conversations(path)
    assert [*question.earlier_messages(), user(*question.turns)] == earlier
    plain = written(
        tmp_path / "plain.jsonl", [user("1 + 1?"), assistant("2"), earlier[2], assistant("4")]
    )
    [question], _, _ = read_conversations(plain)
    assert "reasoning" not in question.fields()


def test_exact_match_scores_the_model_and_the_base(tmp_path, held_out, capsys):
    endpoint = Endpoint(said)
    with endpoint.serving():
        config = configured(tmp_path, held_out, endpoint.url)
        config.check()
        result = run(config)
        assert len(endpoint.asked) == 2 * 3
        assert run(config)["scores"] == result["scores"]
    assert len(endpoint.asked) == 2 * 3  # not one more
    tuned, base = result["scores"]
    assert (tuned["model"], base["model"], result["baseline"]) == ("tuned", "base", "base")
    assert tuned["score"] == pytest.approx(200 / 3)
    assert base["score"] == pytest.approx(100 / 3)
    assert tuned["matches"] == {"equal": 2, "different": 1}
    assert tuned["by_category"]["geo"]["score"] == 100
    assert base["by_category"]["geo"]["score"] == 0
    (difference,) = result["differences"]
    assert (difference["first"], difference["second"]) == ("tuned", "base")
    assert difference["score"] == pytest.approx(100 / 3)
    assert result["judge"] == "exact match"
    note = f"{held_out}: not used: tools 1 (first 'held.jsonl#4')."
    assert note in result["warnings"]
    assert note in capsys.readouterr().err
    page = (tmp_path / "out/report.html").read_text()
    for text in ("Be brief.", "Rome.", "reference answer", "2 equal, 1 different", "not used"):
        assert text in page, text


def test_labels_may_recur_among_the_answers(tmp_path):
    rows = [[user(f"{n} odd?"), assistant("yes" if n % 2 else "no")] for n in range(6)]
    endpoint = Endpoint(lambda body: "Yes")
    with endpoint.serving():
        path = written(tmp_path / "held.jsonl", *rows)
        result = run(configured(tmp_path, path, endpoint.url, baseline=""))
    assert result["scores"][0]["score"] == 50
    assert result["warnings"] == []


def test_a_judge_sees_the_reference_and_the_conversation(tmp_path, held_out):
    def answer(body):
        if body["model"] != "judge":
            return said(body)
        text = body["messages"][-1]["content"]
        return "Rating: [[9]]" if "Barcelona" not in text else "wrong [[1]]"

    endpoint = Endpoint(answer)
    with endpoint.serving():
        result = run(configured(tmp_path, held_out, endpoint.url, judge="judge"))
    tuned, base = result["scores"]
    assert tuned["score"] == 9
    assert base["score"] == pytest.approx(19 / 3)
    asked = [b["messages"][-1]["content"] for b in endpoint.asked if b["model"] == "judge"]
    assert len(asked) == 6
    (spain,) = [text for text in asked if "Barcelona" in text]
    shown = [spain.index(text) for text in ("Rome.", "And of Spain?", "Madrid", "Barcelona")]
    assert shown == sorted(shown)
    assert "<think>" not in spain


def test_another_reference_is_judged_again(tmp_path, held_out):
    endpoint = Endpoint(said)
    with endpoint.serving():
        before = run(configured(tmp_path, held_out, endpoint.url))
        rows = [json.loads(line) for line in Path(held_out).read_text().splitlines()]
        rows[2]["messages"][1]["content"] = "3"
        after = run(configured(tmp_path, written(tmp_path / "held.jsonl", *rows), endpoint.url))
    assert len(endpoint.asked) == 2 * 3
    assert [one["score"] for one in after["scores"]] == [100, 0]
    assert before["questions_digest"] != after["questions_digest"]


def test_the_base_may_have_an_endpoint_of_its_own(tmp_path, held_out):
    endpoint, other = Endpoint(said), Endpoint(said)
    with endpoint.serving(), other.serving():
        run(configured(tmp_path, held_out, endpoint.url, baseline_url=other.url))
    assert {body["model"] for body in endpoint.asked} == {"tuned"}
    assert {body["model"] for body in other.asked} == {"base"}


def test_a_base_that_is_served_later_costs_no_call_to_the_model(tmp_path, held_out):
    endpoint = Endpoint(said)
    endpoint.models = [{"id": "tuned", "training": {"digest": "d1"}}]
    with endpoint.serving():
        config = configured(tmp_path, held_out, endpoint.url)
        first = run(replace(config, baseline=""))
        endpoint.models = [{"id": "base"}]
        second = run(config)
    assert [body["model"] for body in endpoint.asked] == ["tuned"] * 3 + ["base"] * 3
    assert first["scores"][0]["score"] == second["scores"][0]["score"]


def test_a_judge_may_follow_without_asking_the_model_again(tmp_path, held_out):
    endpoint = Endpoint(lambda body: "[[5]]" if body["model"] == "judge" else said(body))
    with endpoint.serving():
        config = configured(tmp_path, held_out, endpoint.url, baseline="")
        run(config)
        (one,) = run(replace(config, judge="judge"))["scores"]
    assert one["score"] == 5
    assert [body["model"] for body in endpoint.asked] == ["tuned"] * 3 + ["judge"] * 3


def test_the_output_is_beside_the_model_by_default(held_out):
    config = EvaluateConfig(suite="own", questions=held_out, model=("org/tuned",))
    assert config.with_output().output == "runs/org%2Ftuned/evaluation"
    assert replace(config, suite="vicuna").with_output().output == ""


def test_options_without_effect_are_rejected(tmp_path, held_out):
    with pytest.raises(UserError, match="--prompts has no effect without --judge"):
        configured(tmp_path, held_out, "http://x", prompts="p.jsonl").check()
    with pytest.raises(UserError, match="--references"):
        configured(tmp_path, held_out, "http://x", references="r.jsonl").check()


def test_the_only_served_model_is_scored_where_none_is_named(tmp_path, held_out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    endpoint = Endpoint(said)
    endpoint.models = [{"id": "tuned"}]
    config = EvaluateConfig(suite="own", questions=held_out, url="http://x", attempts=1)
    with endpoint.serving():
        config = replace(config, url=endpoint.url)
        result = own_models.run(config, served=None)
        endpoint.models.append({"id": "other"})
        own_models.run(replace(config, baseline="other"), served=None)
        with pytest.raises(UserError, match=r"--model is needed: .* serves tuned, other"):
            own_models.run(config, served=None)
    assert result["scores"][0]["model"] == "tuned"
    assert (tmp_path / "runs/tuned/evaluation/report.html").exists()
    with pytest.raises(UserError, match="--model is needed, since no list of models"):
        own_models.run(replace(config, url="http://127.0.0.1:1/v1"), served=None)
    with pytest.raises(UserError, match="--model is needed"):
        own_models.run(replace(config, step="score"), served=None)


def test_a_baseline_that_is_a_directory_here_is_served_for_the_run(
    tmp_path, held_out, capsys, monkeypatch
):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    given, asked = [], []

    @contextmanager
    def served(models):
        given.append(models)
        with Endpoint(lambda _body: "2").serving() as local:
            yield dict.fromkeys(models, local.url)
        asked.append(len(local.asked))

    endpoint = Endpoint(said)
    endpoint.models = [{"id": "tuned"}]
    with endpoint.serving():
        config = configured(tmp_path, held_out, endpoint.url, baseline=str(base))
        result = own_models.run(config, served)
        assert own_models.run(config, served)["scores"] == result["scores"]
        endpoint.models.append({"id": str(base)})
        own_models.run(replace(config, output=str(tmp_path / "again")), served)
    assert given == [{str(base): str(base)}] * 2  # not where the endpoint has it
    assert asked == [3, 0]  # recorded answers are not requested again
    assert [one["score"] for one in result["scores"]] == pytest.approx([200 / 3, 100 / 3])
    hub = replace(config, baseline="org/base")
    known = {"org/base": "cached/config.json"}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, _file: known.get(name)
    )
    with endpoint.serving():
        own_models.run(replace(hub, url=endpoint.url, output=str(tmp_path / "hub")), served)
        own_models.run(
            replace(hub, url=endpoint.url, baseline="org/other", output=str(tmp_path)), served
        )
    assert given[2:] == [{"org/base": "org/base"}]
    assert f"{base} is served from {base} for this evaluation" in capsys.readouterr().err
