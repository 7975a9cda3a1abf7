"""Options of jobs/evaluate.py: former names."""

import pytest

from ochat_ray.evaluate.config import replace_renamed_options


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
