"""Where little is kept, prepare names the option that would keep it."""

import re
from dataclasses import fields

import pytest

from ochat_ray.command_line import parse
from ochat_ray.data import advice as module
from ochat_ray.data.advice import advice, last_lines
from ochat_ray.data.config import PrepareConfig

CHAT = PrepareConfig.for_recipe("chat")
OPENCHAT = PrepareConfig.for_recipe("openchat")


@pytest.mark.parametrize(
    ("config", "dropped", "option"),
    [
        (OPENCHAT, {"other_model": 9, "torn": 30}, "--keep-model any"),
        (OPENCHAT, {"blocked_word": 9, "other_model": 8}, "--blocked-words"),
        (OPENCHAT, {"unsupported": 9}, "--recipe chat keeps tools"),
        (CHAT, {"unsupported": 9}, "pictures and files are not supported"),
        (CHAT, {"wrong_role_order": 9}, "--merge-turns"),
        (CHAT, {"no_supervised_tokens": 9}, "--max-length"),
        (CHAT, {"template_refused": 9}, "--template"),
        (CHAT, {"malformed": 9}, "--columns"),
    ],
)
def test_the_most_frequent_reason_with_an_option_is_named(config, dropped, option):
    line = advice(config, dropped, kept=1)
    assert option in line
    assert line.startswith(f"{next(iter(dropped.values()))} of ")


@pytest.mark.parametrize(("dropped", "kept"), [({"other_model": 9}, 9), ({"torn": 9}, 0), ({}, 0)])
def test_nothing_is_advised_where_much_is_kept_or_nothing_helps(dropped, kept):
    assert advice(OPENCHAT, dropped, kept=kept) == ""


def test_every_named_option_exists():
    known = {f"--{field.name.replace('_', '-')}" for field in fields(PrepareConfig)}
    texts = [*module._OPTIONS.values(), module._UNSUPPORTED]
    named = {option for text in texts for option in re.findall(r"--[a-z-]+", text)}
    assert named <= known


def test_blocked_words_can_be_none():
    config = parse(PrepareConfig.for_recipe, ["--recipe", "openchat", "--blocked-words"], "x")
    assert config.blocked_words == ()


def test_an_empty_split_names_its_option():
    manifest = {"counts": {"kept": 3, "dropped": {}}, "tokens": {"eval": {"rows": 0}}}
    (line,) = last_lines(CHAT, manifest)
    assert "--eval-ratio than 0.05, such as 0.5" in line
