"""A real browser opens a report whose every text is hostile."""

import pytest

from ochat_ray.data.report import render_report
from ochat_ray.data.statistics import Statistics
from tests.browser.chromium import HOSTILE, POLICY, dom_of, needs_browser, without_escapes

pytestmark = needs_browser


def hostile_report():
    drop = {"id": HOSTILE, "source": HOSTILE, "stage": "clean", "detail": HOSTILE}
    stats = Statistics(seconds={"clean": 1.0, "total": 2.0})
    stats.add_clean(
        {
            "read": 2, "read_well": 2, "rows": 1, "noise": {}, "models": {HOSTILE: 2},
            "passed_over": {}, "unknown_keys": {HOSTILE: 1}, "left_out": {HOSTILE: 1},
            "answers": {"html": 2, "markdown": 1},
            "dropped": [drop | {"reason": HOSTILE}], "drop_counts": {HOSTILE: 1},
        }
    )  # fmt: skip
    stats.add_tokenize(
        {
            "kept": [["train", 2, 4, 0, 1, 4, 2, 0.5, 1.0, HOSTILE]],
            "offered": 4, "template_notes": {},
            "yields": {},
            "worst": [{"id": HOSTILE, "source": HOSTILE, "fidelity": 0.5, "text_fidelity": 1.0}],
            "samples": [
                {
                    "digest": "0", "id": HOSTILE, "source": HOSTILE, "split": "train",
                    "fidelity": 0.5, "text_fidelity": 1.0, "length": 4, "turn_count": 2,
                    "turns": [["user", HOSTILE, HOSTILE + "."], ["assistant", HOSTILE, HOSTILE]],
                    "tokens": [[HOSTILE, 0.0], ["<|end_of_turn|>", 0.0], [HOSTILE, 1.0]],
                }
            ],
            "dropped": [], "drop_counts": {},
        }
    )  # fmt: skip
    manifest = {
        "counts": stats.counts(), "tokens": stats.tokens(), "seconds": stats.seconds,
        "digest": "ab" * 32, "model_type": HOSTILE, "context_length": 2048,
        "tokenizer_path": HOSTILE, "versions": {HOSTILE: HOSTILE},
        "config": {"recipe": HOSTILE, "input": [HOSTILE], HOSTILE: HOSTILE},
    }  # fmt: skip
    return render_report(manifest, stats)


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "escaping alone"])
def test_nothing_hostile_runs(policy, tmp_path):
    page = hostile_report()
    assert POLICY.search(page)
    if not policy:
        page = POLICY.sub("", page)
    dom = dom_of(page, tmp_path)
    assert dom.title == f"Data report: {HOSTILE}"
    assert not {"script", "img", "svg", "iframe"} & set(dom.tags)
    assert not {name for name in dom.attributes if name.startswith("on") or name == "autofocus"}
    assert dom.tags.count("details") == 2  # the sample, and the settings


def test_the_policy_alone_would_hold(tmp_path):
    dom = dom_of(without_escapes(hostile_report()), tmp_path)
    assert "script" in dom.tags
    assert "svg" in dom.tags
    assert dom.title.startswith("Data report: ")


def test_without_either_it_would_run(tmp_path):
    """So that the tests above cannot pass because the browser runs nothing at all."""
    page = POLICY.sub("", without_escapes(hostile_report()))
    assert dom_of(page, tmp_path).title == "pwned"
