"""Parts of `make demo-chat` that need no training; what it runs is checked as options."""

import json

import pytest

from ochat_ray.command_line import parse
from ochat_ray.data.config import PrepareConfig
from ochat_ray.demo import chat, pipeline
from ochat_ray.schema import Turn
from ochat_ray.train.config import TrainConfig

PARSERS = {"prepare": PrepareConfig.for_recipe, "train": TrainConfig.for_recipe}


@pytest.mark.parametrize("stage", PARSERS)
def test_its_commands_parse(stage):
    program, name, *arguments = chat.commands("base")[stage]
    assert (program, name) == ("ochat-ray", stage)
    parse(PARSERS[stage], arguments, stage).check()


def test_the_server_has_the_base_and_the_folder_of_the_trained_adapter():
    from ochat_ray.serve import ServeArgs

    stages = chat.commands("base")
    served = ServeArgs.model_validate(dict(word.split("=") for word in stages["serve"][2:]))
    trained = stages["train"][stages["train"].index("--output") + 1]
    assert (served.model, f"{served.adapters}/{chat.ADAPTER}") == ("base", trained)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("user", "Why?"), ("assistant", "So.")], True),
        ([("user", "Why?"), ("assistant", " ")], False),
        ([("user", "Why?"), ("assistant", "x" * 241)], False),
        ([("user", "x" * 321), ("assistant", "So.")], False),
        ([("assistant", "So."), ("user", "Why?")], False),
        ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], False),
    ],
)
def test_brief_chats_are_one_question_with_a_short_answer(turns, expected):
    assert chat.brief([Turn(role=role, text=text) for role, text in turns]) == expected


def test_chats_are_written_in_openai_s_format_from_a_list_that_is_cut_off(tmp_path):
    def record(n):
        values = [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]
        return json.dumps({"id": str(n), "conversations": values})

    (tmp_path / "in.json").write_text(f"[{record(1)}, {record(2)},\n{record(3)}, {record(4)[:-9]}")
    assert chat.write_chats(tmp_path / "in.json", tmp_path / "out.jsonl", 10) == 3
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
    }
    assert chat.write_chats(tmp_path / "in.json", tmp_path / "out.jsonl", 2) == 2


def test_a_used_port_is_one_line(monkeypatch, capsys):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(chat.local_cluster, "SERVE_PORT", other.getsockname()[1])
        assert pipeline.main(["chat"]) == 2
    assert "is in use" in capsys.readouterr().err
