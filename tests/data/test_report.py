"""The report: numbers that add up, and nothing from the inputs that could run."""

from html.parser import HTMLParser

from ochat_ray.data.report import render_report
from ochat_ray.data.statistics import Statistics

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.seen = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


def drop(reason, id):
    return {"id": id, "source": "f", "stage": "clean", "reason": reason, "detail": EVIL}


def statistics(order=(0, 1)):
    parts = [
        {
            "read": 3, "read_well": 3, "rows": 2, "models": {"GPT-4": 2, EVIL: 1},
            "dropped": [drop("empty_turn", "b")], "drop_counts": {"empty_turn": 1},
        },
        {
            "read": 1, "read_well": 1, "rows": 0, "models": {"": 1},
            "dropped": [drop("empty_turn", "a")], "drop_counts": {"empty_turn": 1},
        },
    ]  # fmt: skip
    result = Statistics()
    for number in order:
        result.add_clean(parts[number])
    result.add_tokenize(
        {
            "kept": [["train", 2, 10, 4, 0], ["eval", 4, 20, 8, 5]],
            "samples": [
                {
                    "digest": "0", "id": EVIL, "split": "train", "length": 2,
                    "tokens": [[EVIL, 0.0], ["yes", 1.0]],
                }
            ],
            "dropped": [], "drop_counts": {},
        }
    )  # fmt: skip
    result.seconds["total"] = 1.0
    return result


def manifest(stats):
    return {
        "counts": stats.counts(), "tokens": stats.tokens(), "seconds": stats.seconds,
        "digest": "ab" * 32, "model_type": "openchat", "context_length": 32,
        "config": {"recipe": EVIL},
    }  # fmt: skip


def test_counts_add_up():
    assert statistics().counts() == {"read": 4, "kept": 2, "dropped": {"empty_turn": 2}}
    assert statistics().tokens()["eval"] == {"rows": 1, "tokens": 20, "supervised_tokens": 8}


def test_the_report_does_not_depend_on_which_part_came_first():
    one, other = statistics((0, 1)), statistics((1, 0))
    assert one.examples == other.examples
    assert [e["id"] for e in one.examples["empty_turn"]] == ["a", "b"]


def test_nothing_from_the_inputs_can_run():
    html = render_report(manifest(statistics()), statistics())
    assert EVIL not in html
    assert "script" not in Tags(html).seen
    assert "default-src 'none'" in html


def test_supervised_tokens_are_marked():
    html = render_report(manifest(statistics()), statistics())
    assert "<mark>yes</mark>" in html
    assert html.count("<mark>") == 1


def test_a_run_that_kept_nothing_explains_itself():
    empty = Statistics()
    assert empty.explain_drops() == "no records"
    assert "empty_turn 2 (for example a: <script>" in statistics().explain_drops()
