"""The last lines of prepare name all that was not kept."""

from ochat_ray.data.config import PrepareConfig
from ochat_ray.jobs import prepare


def describe(**counts):
    manifest = {
        "counts": {"read": 1234, "kept": 1000, "dropped": {}, "passed_over": {}} | counts,
        "tokens": {"train": {"tokens": 5}, "eval": {"tokens": 6}},
        "unknown_keys": {"language": 1200, "turn.timestamp": 3} if counts else {},
        "samples": 1000,
    }
    return prepare.describe(PrepareConfig(output="out"), manifest).splitlines()


def test_what_was_dropped_and_passed_over_is_named_with_its_count():
    *_, dropped, keys = describe(dropped={"torn": 1}, passed_over={".txt": 1200, "hidden": 2})
    assert dropped == "dropped: torn 1 · passed over: .txt 1,200, hidden 2"
    assert keys == "unknown keys: language 1,200, turn.timestamp 3"


def test_nothing_is_named_as_none():
    assert describe()[-1] == "dropped: none · passed over: none"


def test_many_kinds_end_in_a_sum():
    kinds = {f".{n}": 10 for n in range(9)}
    line = describe(passed_over=kinds)[-2]
    assert line.endswith("passed over: .0 10, .1 10, .2 10, .3 10, .4 10, .5 10, others 30")
