"""The report says what was measured, and lets no text become markup."""

from html.parser import HTMLParser

from ochat_ray.evaluate.pages import categories
from ochat_ray.evaluate.questions import Question
from ochat_ray.evaluate.report import Entry, Said, markdown_table, report_html

EVIL = "<script>alert(1)</script><img src=x onerror=y>&amp;\"'"


def one(model, score=70.0, **fields):
    return {
        "model": model, "score": score, "low": score - 5, "high": score + 5, "judgments": 6,
        "failed": 0, "not_judged": 0,
        "by_category": {EVIL: {"questions": 1, "score": score, "low": 65.0, "high": 75.0}},
        "biases": {"order_changes_verdict": 0.25, "first_minus_second": 1.5,
                   "longer_preferred": None},
    } | fields  # fmt: skip


def results(*scores, **fields):
    return {
        "suite": "vicuna", "unit": "% of the baseline's score", "even": 100.0,
        "baseline": f"base{EVIL}",
        "judge": "gpt-4", "scores": list(scores), "differences": [], "questions": 1,
        "questions_digest": "q1", "prompts_digest": "p1", "version": "0.1",
        "time": "2026-11-23T00:00:00+00:00", "config": {"samples": 3, "judge_url": EVIL},
    } | fields  # fmt: skip


def entry(category="math", reading="7 to 9", value=70.0):
    return Entry(
        question=Question(id=f"1{EVIL}", category=category, turns=(f"why {EVIL}",)),
        model=f"ours{EVIL}",
        value=value,
        answers={f"ours{EVIL}": (f"so {EVIL}",), "base": ("thus",)},
        judgments=[Said(label=f"ours first {EVIL}", reading=reading, text=f"said {EVIL}")],
    )


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


def test_no_text_becomes_markup_and_nothing_is_loaded():
    page = report_html(results(one(f"ours{EVIL}", failed=1)), [entry()])
    found = Tags(page)
    assert not found.tags & {"script", "img", "link", "iframe", "object"}
    assert not {name for name in found.attributes if name.startswith("on")}
    assert not found.attributes & {"src", "href"}
    text = "".join(found.text)
    for said in ("why ", "so ", "said ", "ours first "):
        assert said + EVIL in text
    assert "default-src 'none'" in page


def test_it_says_what_was_measured():
    page = report_html(results(one("ours"), one("theirs", 60.0)), [entry()])
    text = "".join(Tags(page).text)
    for said in ("70.00", "65.00 to 75.00", "60.00", "25%", "1.50", "7 to 9", "gpt-4", "p1", "q1"):
        assert said in text
    assert "The judge is one of the models" not in text


def test_a_judge_of_itself_is_told():
    text = "".join(Tags(report_html(results(one("gpt-4")), [])).text)
    assert "The judge is one of the models that it judges" in text


def test_failures_stand_with_both_rules():
    both = {
        "drop": {"score": 70.0, "low": 65.0, "high": 75.0},
        "zero": {"score": 68.0, "low": 60.0, "high": 76.0},
    }
    page = report_html(results(one("ours", failed=2, not_judged=1, by_failures=both)), [])
    text = "".join(Tags(page).text)
    assert "2 of 6 judgments could not be read (33.3%); questions without a score: 1." in text
    assert "left out: 70.00" in text
    assert "counted as 0 to 0: 68.00 (60.00 to 76.00)" in text


def test_differences_say_whether_they_may_be_chance():
    found = [
        {"first": "a", "second": "b", "score": 1.0, "low": -0.5, "high": 2.0},
        {"first": "a", "second": "c", "score": 9.0, "low": 8.0, "high": 10.0},
    ]
    text = "".join(Tags(report_html(results(one("a"), differences=found), [])).text)
    assert text.index("may be chance") < text.index("more than chance")


def test_filters_are_of_categories_of_what_is_behind_and_of_what_could_not_be_read():
    entries = [entry(value=101.0), entry("writing"), entry("writing", reading=None, value=None)]
    text = "".join(Tags(report_html(results(one("ours")), entries)).text)
    for label in (
        "all (3)",
        "math (1)",
        "writing (2)",
        "behind the baseline (1)",
        "not readable (1)",
        "not judged",
    ):
        assert label in text
    alone = report_html(results(one("ours"), baseline=None, even=None), entries)
    assert "behind the baseline (" not in alone


def test_an_answer_beside_itself_is_told():
    controlled = one("ours", control={"called_equal": 0.4, "first_minus_second": 0.25})
    text = "".join(Tags(report_html(results(controlled), [])).text)
    assert "an answer compared with itself is judged equal40%" in text
    assert "with itself" not in "".join(Tags(report_html(results(one("ours")), [])).text)


def test_it_says_where_models_come_from():
    training = {"recipe": "openchat", "data_digest": "d1", "step": None, "digest": EVIL}
    known = {
        "models": {"ours": {"id": "ours", "training": training}, "gpt-4": {"id": "gpt-4"}},
        "judges": {"gpt-4": {"id": "gpt-4", "training": "none of ours"}},
    }
    text = "".join(Tags(report_html(results(one("ours")) | known, [])).text)
    assert f"ours was trained byrecipe openchat, data_digest d1, digest {EVIL}" in text
    assert text.count("was trained by") == 1


def test_nothing_judged_is_a_page_too():
    none = one("ours", failed=6) | {"score": None, "low": None, "high": None, "by_category": {}}
    page = report_html(results(none, baseline=None, even=None, suite="mt_bench"), [])
    assert "–" in page


def test_the_table_is_one_row_a_model():
    table = markdown_table(results(one("a|b"), one("c")))
    assert table.splitlines()[2] == "| a\\|b | 70.00 | 65.00 to 75.00 | 6 | 0 |"
    assert len(table.splitlines()) == 4


def test_a_table_shows_hostile_names_as_text():
    assert "| \\<b\\>\\`x\\` |" in markdown_table(results(one("<b>`x`"))).splitlines()[2]


def test_a_category_has_the_number_of_its_questions_with_a_score():
    rows = {"math": {"questions": 3, "scored": 2}, "": {"questions": 4, "scored": 4}}
    assert [row["name"] for row in categories(rows)] == ["math (2 of 3)", "none (4)"]
