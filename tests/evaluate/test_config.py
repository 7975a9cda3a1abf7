"""Options of jobs/evaluate.py: former names."""

import pytest

from ochat_ray.evaluate.config import OPENAI_URL, key_for, replace_renamed_options


@pytest.mark.parametrize(
    ("given", "current"),
    [
        (["answer", "--at-once", "8"], ["answer", "--max-concurrency", "8"]),
        (["--at-once=8"], ["--max-concurrency=8"]),
        (["--at_once", "8"], ["--max-concurrency", "8"]),
    ],
)
def test_a_former_option_name_is_accepted_with_a_warning(given, current, capsys):
    assert replace_renamed_options(given) == current
    assert "--max-concurrency" in capsys.readouterr().err


def test_current_options_and_values_are_left_alone(capsys):
    arguments = ["--max-concurrency", "8", "--judge", "at-once", "--output=--at-once"]
    assert replace_renamed_options(arguments) == arguments
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("role", "url", "key"),
    [
        ("models", "http://gpu:8000/v1", "models"), ("models", OPENAI_URL + "/", "openai"),
        ("judge", OPENAI_URL, "openai"), ("judge", "https://api.deepseek.com/v1", ""),
        ("judge", "http://gpu:8000/other/v1", "models"), ("judge", "http://gpu:9000/v1", ""),
        ("judge", "https://gpu:8000/v1", ""), ("baseline", "http://base/v1", "baseline"),
    ],
)  # fmt: skip
def test_a_key_is_sent_only_to_its_endpoint(role, url, key, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setenv("OCHAT_RAY_API_KEY", "models")
    monkeypatch.setenv("OCHAT_RAY_BASELINE_API_KEY", "baseline")
    assert key_for(role, url, "http://gpu:8000/v1") == key
    assert ("OCHAT_RAY_JUDGE_API_KEY" in capsys.readouterr().err) == (key == "")
    monkeypatch.setenv("OCHAT_RAY_JUDGE_API_KEY", "judge")
    assert key_for("judge", url, "http://gpu:8000/v1") == "judge"
