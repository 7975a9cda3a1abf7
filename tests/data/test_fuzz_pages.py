"""Mutated share pages: no crash, every page ends as kept or dropped, user turns stay as typed."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ochat_ray.data.clean import clean, rules
from ochat_ray.data.pager import without_pager
from ochat_ray.data.parts.clean import clean_part
from ochat_ray.data.sources import read_files
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import Conversation, Drop
from tests.pages import share_page

RULES = rules(keep_model="any", blocked_words=("openai",), min_fidelity=0.5)

HTML = st.sampled_from(
    [
        "<p>", "</p>", "<ul>", "<ol start='3'>", "<li>", "</li>", "</ul>", "</ol>", "<strong>",
        "</strong>", "<em>", "</em>", "<a href='http://x.y'>", "</a>", "<br>", "<hr>", "<table>",
        "<thead><tr><th align='right'>", "</th></tr></thead>", "<tr>", "<td>", "</td>", "</tr>",
        "</table>", "<blockquote>", "</blockquote>", "<h2>", "</h2>", "<code>", "</code>",
        "<pre><div><span>python</span><button>Copy code</button></div><code class='hljs'>",
        "</code></pre>", "<img src='x' alt='y'>", "<span class='katex'><annotation "
        "encoding='application/x-tex'>", "</annotation></span>", "&lt;", "&amp;", "&#65;",
        "2 / 3", "Copy12 chars / 34 words", "*", "_", "`", "```", "\n", "1. ", "- ", "|", "<!--",
        "-->", "<script>", "</script>", "<div class='markdown'>", "</div>", "\\", "$", "\x00",
    ]
)  # fmt: skip
ANSWERS = st.lists(st.one_of(HTML, st.text(max_size=8)), max_size=30).map("".join)
TURNS = st.one_of(
    st.fixed_dictionaries({"from": st.just("human"), "value": st.text(max_size=40)}),
    st.fixed_dictionaries({"from": st.sampled_from(["gpt", "chatgpt"]), "value": ANSWERS}),
    st.fixed_dictionaries({"from": st.text(max_size=5), "value": st.none() | st.integers()}),
)
ALTERNATING = st.lists(st.tuples(st.text(min_size=1, max_size=40), ANSWERS), max_size=4).map(
    lambda pairs: [
        {"from": role, "value": value}
        for pair in pairs
        for role, value in zip(("human", "gpt"), pair, strict=True)
    ]
)
PAGES = st.builds(share_page, st.one_of(ALTERNATING, st.lists(TURNS, max_size=6)), id=st.text())
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "drop", "flip", "repeat"]),
        st.floats(0, 1),
        st.binary(max_size=6),
    ),
    max_size=3,
)


def mutate(page, mutations):
    for kind, place, data in mutations:
        at = int(place * len(page))
        if kind == "cut":
            page = page[:at]
        elif kind == "insert":
            page = page[:at] + data + page[at:]
        elif kind == "drop":
            page = page[:at] + page[at + len(data) :]
        elif kind == "repeat":
            page = page[:at] + page[max(0, at - 50) : at] + page[at:]
        elif at < len(page):
            page = page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]
    return page


def typed(page):
    """What people typed, by a reading of the page that is not ours; None if it has no JSON."""
    match = re.search(rb"__NEXT_DATA__[^>]*>(.*?)</script", page, re.DOTALL)
    try:
        items = json.loads(match[1])["props"]["pageProps"]["content"]["items"]
        return [item["value"] for item in items if item["from"] == "human"]
    except (TypeError, ValueError, KeyError):
        return None


def check(page, folder):
    path = folder / "page.html"
    path.write_bytes(page)
    (record,) = read_files([str(path)])
    result = record if isinstance(record, Drop) else clean(record, RULES)
    if isinstance(result, Conversation):
        expected = typed(page)
        kept = [turn.text for turn in result.turns if turn.role == "user"]
        if expected is not None:
            # Only trailing user turns are trimmed.
            assert len(expected) >= len(kept) > 0
            for before, after in zip(expected, kept, strict=False):
                pagers = {without_pager(before), without_pager(before, possible=True)}
                assert after in {before, *pagers}
    summary = clean_part(RunDir.open(str(folder)), "p", [record], RULES)
    assert summary["read"] == 1 == summary["rows"] + sum(summary["drop_counts"].values())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(PAGES, MUTATIONS)
def test_a_few_hundred_mutated_pages(tmp_path, page, mutations):
    check(mutate(page, mutations), tmp_path)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(PAGES, MUTATIONS)
def test_ten_thousand_mutated_pages(tmp_path, page, mutations):
    check(mutate(page, mutations), tmp_path)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([{"from": "human", "value": "q"},
          {"from": "gpt", "value": "<p>" + "<em>" * 3000 + "x" + "</em>" * 3000 + "</p>"}],
         "conversion_failed"),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "<p>" + "x " * 12_000_000}],
         "too_large"),
        ([{"from": "human", "value": "q" * 25_000_000}, {"from": "gpt", "value": "<p>r</p>"}],
         "too_large"),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "<p>r</p>"}] * 600_000,
         "too_large"),
    ],
)  # fmt: skip
def test_pages_made_to_break_a_worker_are_dropped(tmp_path, items, reason):
    path = tmp_path / "page.html"
    path.write_bytes(share_page(items))
    (record,) = read_files([str(path)])
    result = record if isinstance(record, Drop) else clean(record, RULES)
    assert str(result.reason) == reason


def test_a_page_of_200_mb_is_dropped_unread(tmp_path):
    path = tmp_path / "page.html"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    (record,) = read_files([str(path)])
    assert str(record.reason) == "too_large"
