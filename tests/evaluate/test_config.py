"""Options of jobs/evaluate.py: former names, keys, and values that mean nothing."""

import json

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.asking import Prices
from ochat_ray.evaluate.config import EvaluateConfig, replace_renamed_options
from ochat_ray.evaluate.key_files import OPENAI_URL, key_for


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
        ("models", "http://gpu:8000/v1", "models"),
        ("models", OPENAI_URL + "/", "openai"),
        ("judge", OPENAI_URL, "openai"),
        ("judge", "https://api.deepseek.com/v1", ""),
        ("judge", "http://gpu:8000/other/v1", "models"),
        ("judge", "http://gpu:9000/v1", ""),
        ("judge", "https://gpu:8000/v1", ""),
        ("baseline", "http://base/v1", "baseline"),
    ],
)
def test_a_key_is_sent_only_to_its_endpoint(role, url, key, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setenv("OCHAT_RAY_API_KEY", "models")
    monkeypatch.setenv("OCHAT_RAY_BASELINE_API_KEY", "baseline")
    assert key_for(role, url, "http://gpu:8000/v1") == key
    assert ("OCHAT_RAY_JUDGE_API_KEY" in capsys.readouterr().err) == (key == "")
    monkeypatch.setenv("OCHAT_RAY_JUDGE_API_KEY", "judge")
    assert key_for("judge", url, "http://gpu:8000/v1") == "judge"


@pytest.mark.parametrize("content", ["sk-secret", "sk-secret\n", "\ufeffsk-secret\r\n"])
def test_a_key_is_read_from_the_file_that_a_variable_names(content, tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OCHAT_RAY_JUDGE_API_KEY_FILE", str(path))
    assert key_for("judge", OPENAI_URL, "http://gpu:8000/v1") == "sk-secret"
    assert key_for("models", OPENAI_URL, "http://gpu:8000/v1") == ""


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        ("sk-secret", 0o644, "chmod 600"),
        ("sk-secret two", 0o600, "one line"),
        ("", 0o600, "one line"),
        (None, 0o600, "FileNotFoundError"),
    ],
)
def test_a_key_file_that_is_not_valid_is_one_line_without_the_key(
    content, mode, text, tmp_path, monkeypatch
):
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    monkeypatch.setenv("OCHAT_RAY_API_KEY_FILE", str(path))
    with pytest.raises(UserError, match=text) as caught:
        key_for("models", "http://gpu:8000/v1", "http://gpu:8000/v1")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_key_and_a_file_of_it_contradict_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("OCHAT_RAY_API_KEY", "sk-secret")
    monkeypatch.setenv("OCHAT_RAY_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(UserError, match="both set"):
        key_for("models", "http://gpu:8000/v1", "http://gpu:8000/v1")


COMPLETE = {"questions": "q", "output": "o", "model": ("m",), "baseline": "b", "judge": "j"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1), ("timeout_s", float("nan")), ("timeout_s", 0), ("timeout_s", float("inf")),
        ("max_cost", float("nan")), ("judge_temperature", float("nan")), ("temperature", -1.0),
        ("judge_body", '{"x": NaN}'), ("body", "[" * 100_000),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_rejected_by_name(option, value):
    more = {"prices": "p.json"} if option == "max_cost" else {}
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')} "):
        EvaluateConfig(**COMPLETE, **more, **{option: value}).check()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:99999/v1", "no URL"),
        ("api.example.com/v1", "no URL"),
        ("http://[::1/v1", "no URL"),
        (" http://a/v1", "no URL"),
        ("http://a/v1\n", "no URL"),
        ("https://a/openai/deployments/x?api-version=2024", "base URL"),
        ("http://a/v1/chat/completions", "base URL"),
    ],
)
@pytest.mark.parametrize("option", ["url", "judge_url", "baseline_url"])
def test_an_address_that_is_no_base_url_is_rejected_before_any_call(option, url, reason):
    with pytest.raises(UserError, match=rf"--{option.replace('_', '-')} .*{reason}"):
        EvaluateConfig(**COMPLETE, **{option: url}).check()


@pytest.mark.parametrize("price", [-1, "1", True, float("nan"), None])
def test_a_price_is_a_number_of_at_least_zero(tmp_path, price):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"m": {"prompt": price, "completion": 1}}))
    with pytest.raises(UserError, match="is no price"):
        Prices.read(str(path))


@pytest.mark.parametrize(
    "url", ["http://user:SECRET@host/v1", "https://host/v1?key=SECRET", "http://u:SECRET@[::1/v1"]
)
def test_a_secret_in_an_address_is_rejected_and_not_shown(url):
    with pytest.raises(UserError, match=r"environment variable|no URL") as raised:
        EvaluateConfig(**COMPLETE, judge_url=url).check()
    assert "SECRET" not in str(raised.value)
