"""A real browser opens the report of an evaluation, and uses its filters."""

import pytest

from ochat_ray.evaluate.report import report_html
from tests.browser.chromium import HOSTILE, POLICY, dom_of, needs_browser
from tests.evaluate.test_report import entry, one, results

pytestmark = needs_browser


def hostile_report():
    said = {"recipe": HOSTILE, HOSTILE: HOSTILE}
    known = {"models": {HOSTILE: {"training": said}}, "judges": {}, "baseline": HOSTILE}
    hostile = entry(HOSTILE, HOSTILE)
    return report_html(results(one(HOSTILE), one("b")) | known, [hostile, entry("math")])


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "escaping alone"])
def test_nothing_hostile_runs(policy, tmp_path):
    page = hostile_report()
    assert POLICY.search(page)
    dom = dom_of(page if policy else POLICY.sub("", page), tmp_path)
    assert dom.title == f"vicuna: {HOSTILE}, b"
    assert not {"script", "img", "svg", "iframe"} & set(dom.tags)
    assert not {name for name in dom.attributes if name.startswith("on") or name == "autofocus"}
    assert dom.tags.count("details") == 2


@pytest.mark.parametrize(("label", "shown"), [(0, 4), (1, 1), (2, 3), (3, 2), (4, 1)])
def test_a_filter_leaves_what_is_of_it(label, shown, tmp_path):
    entries = [
        entry(),
        entry("writing", value=120.0),
        entry("writing"),
        entry("writing", reading=None, value=None),
    ]
    page = POLICY.sub("", report_html(results(one("ours")), entries))
    count = "[...document.querySelectorAll('.entry')].filter(e => e.offsetHeight).length"
    use = f"document.getElementById('show{label}').click(); document.title = {count}"
    dom = dom_of(page.replace("</body>", f"<script>{use}</script></body>"), tmp_path)
    assert dom.title == str(shown)
