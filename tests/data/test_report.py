"""The report: numbers that add up, and nothing from the inputs that could run."""

from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from ochat_ray.data.report import render_report
from ochat_ray.data.report_figures import bars_of, cut, percent
from ochat_ray.data.report_names import EXPLANATIONS, LANGUAGES
from ochat_ray.data.report_samples import join_broken, tokens_by_turn
from ochat_ray.data.statistics import Statistics
from ochat_ray.schema import Reason

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = "\"' onmouseover=alert(1) x='\"><svg onload=alert(1)>"
CLOSING = "</i></mark></pre></details></style></title>" + SCRIPT
EVIL = SCRIPT + BREAKOUT + CLOSING


class Page(HTMLParser):
    """A page's elements, attributes and visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._style = tag == "style"

    def handle_data(self, data):
        is_layout = data.isspace() and "\n" in data
        if not self._style and not is_layout:
            self.text += f"|{data}"

    def handle_endtag(self, tag):
        self._style = False


def drop(reason, id, stage="clean", detail=EVIL):
    return {"id": id, "source": EVIL, "stage": stage, "reason": reason, "detail": detail}


def cleaned(read, rows, models, drops):
    return {
        "read": read, "read_well": sum(models.values()), "rows": rows, "noise": {"pager": 1},
        "passed_over": {}, "unknown_keys": {EVIL: 1}, "left_out": {EVIL: 2},
        "answers": {"html": read, "markdown": 1},
        "models": models, "dropped": drops, "drop_counts": Counter(d["reason"] for d in drops),
    }  # fmt: skip


def sample(**changed):
    return {
        "digest": "0", "id": EVIL, "source": EVIL, "split": "train", "fidelity": 0.5,
        "text_fidelity": 1.0,
        "length": 6, "turn_count": 2,
        "turns": [["user", EVIL, EVIL], ["assistant", f"<p>{EVIL}</p>", EVIL]],
        "tokens": [
            ["User:", 0.0], [EVIL, 0.0], ["<|end_of_turn|>", 0.0],
            ["Assistant:", 0.0], ["yes", 1.0], ["<|end_of_turn|>", 1.0],
        ],
    } | changed  # fmt: skip


def yields(conversations, samples, tokens, supervised):
    names = ("conversations", "samples", "tokens", "supervised_tokens")
    return dict(zip(names, (conversations, samples, tokens, supervised), strict=True))


def statistics(order=(0, 1), kept=None):
    """Of 5 records one cannot be read, two have an empty turn and two are kept."""
    parts = [
        cleaned(4, 2, {"gpt-4": 2, EVIL: 1}, [drop("empty_turn", "b"), drop("torn", EVIL, "read")]),
        cleaned(1, 0, {"": 1}, [drop("empty_turn", "a")]),
    ]
    result = Statistics()
    for number in order:
        result.add_clean(parts[number])
    result.add_tokenize(
        {
            "kept": kept
            or [
                ["train", 2, 10, 0, 1, 10, 4, 1.0, 1.0, "en"],
                ["eval", 4, 25, 5, 1, 20, 8, 0.5, 1.0, EVIL],
            ],
            "offered": 35,
            "template_notes": {},
            "yields": {
                "cut": yields(2, 2, 30, 12),
                "split": yields(2, 3, 36, 14),
                "drop": yields(1, 1, 10, 4),
            },
            "worst": [{"id": EVIL, "source": EVIL, "fidelity": 0.5, "text_fidelity": 1.0}],
            "samples": [sample()],
            "dropped": [],
            "drop_counts": {},
        }
    )
    result.seconds.update({"clean": 0.04, "tokenize": 2.0, "total": 10.0})
    return result


def manifest(stats):
    return {
        "counts": stats.counts(),
        "tokens": stats.tokens(),
        "digest": "ab" * 32,
        "model_type": EVIL,
        "context_length": 20,
        "tokenizer_path": EVIL,
        "config": {"recipe": EVIL, "input": [EVIL], "near_duplicates": None, "long": "cut"},
        "versions": {"ray": EVIL},
        "seconds": {stage: round(s, 1) for stage, s in stats.seconds.items()},
    }


def report(stats=None):
    stats = stats or statistics()
    return render_report(manifest(stats), stats)


def text(stats=None):
    return Page(report(stats)).text


def test_counts_add_up():
    assert statistics().counts() == {
        "read": 5,
        "kept": 2,
        "dropped": {"empty_turn": 2, "torn": 1},
        "passed_over": {},
    }
    assert statistics().tokens()["eval"] == {"rows": 1, "tokens": 20, "supervised_tokens": 8}


def test_the_report_does_not_depend_on_which_part_came_first():
    assert report(statistics((0, 1))) == report(statistics((1, 0)))


def test_a_run_that_kept_nothing_explains_itself():
    assert Statistics().explain_drops() == "no records"
    assert "empty_turn 2, torn 1 (for example a: <script>" in statistics().explain_drops()


# What is hostile


def test_no_element_comes_from_the_inputs():
    plain = statistics()
    plain.samples = [
        sample(id="a", source="b", turns=[["user", "u", "u"], ["assistant", "<", "b"]])
    ]
    assert set(Page(report()).tags) <= set(Page(report(plain)).tags) | {"wbr"}
    assert not {"script", "svg", "img", "iframe", "link", "base", "form"} & set(Page(report()).tags)


def test_nor_from_what_should_be_a_code_of_ours():
    stats = statistics()
    stats.read += 1
    stats.drops[EVIL] = 1
    stats.examples[EVIL] = [drop(EVIL, "c")]
    stats.seconds[EVIL] = 1.0
    stats.samples = [sample(turns=[[EVIL, None, "x"], ["user", None, 40 * EVIL]])]
    written = manifest(stats) | {"digest": "<b>", "config": {"recipe": "r", EVIL: EVIL}}
    assert set(Page(render_report(written, stats)).tags) <= set(Page(report()).tags)


def test_no_attribute_breaks_out():
    names = {name for name, _ in Page(report()).attributes}
    known = "lang charset name content http-equiv class style title id role aria-label dir href"
    assert names <= set(known.split())


def test_elements_close_as_they_were_opened():
    opened = Counter(Page(report()).tags)
    for tag in ("details", "pre", "mark", "style", "title", "section"):
        assert report().count(f"</{tag}>") == opened[tag], tag


def test_only_the_report_itself_is_linked_to():
    values = dict(Page(report()).attributes)
    assert values["href"] == "#samples"
    assert "src" not in values
    style = report().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_forbids_scripts_and_resources():
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in Page(report()).attributes
    assert report().index(policy) < report().index("<style>")


def test_a_page_is_shown_as_its_source():
    assert f"|\n<p>{EVIL}</p>" in text()


# What must stand there


def test_the_funnel_goes_through_the_stages():
    rows = text()[text().index("|From read to kept") :]
    places = [rows.index(row) for row in ("|5|100%", "|1|20.0%", "|4|80.0%", "|2|40.0%")]
    assert places == sorted(places)


def test_a_reason_has_its_examples_and_its_meaning():
    found = text()
    assert "|empty_turn| 2|a turn that shows nothing|a| |<script>" in found
    assert EXPLANATIONS.keys() == set(Reason)


def test_what_was_taken_off_is_counted_by_rule():
    assert "|Removed text|pager|2|100%" in text()
    assert (
        "Removed text"
        not in Page(
            render_report(
                manifest(Statistics(seconds={"total": 0.0})), Statistics(seconds={"total": 0.0})
            )
        ).text
    )


def test_labels_are_those_before_the_filter():
    assert "|gpt-4|2|50.0%" in text()
    assert "|no label|1|25.0%" in text()
    assert "Of the 4 conversations that could be read" in text()


def test_languages_have_names():
    assert "|English|1|50.0%" in text()
    assert LANGUAGES["zh"] == "Chinese"
    assert "|unclear|2|100%" in text(
        statistics(kept=2 * [["train", 2, 9, 0, 1, 9, 4, 1.0, 1.0, ""]])
    )
    assert "|fuv|1|" in text(
        statistics(kept=[["train", 2, 9, 0, 1, 9, 4, 1.0, 1.0, f] for f in ("fuv", "")])
    )


def test_what_the_context_length_cuts_off_is_stated():
    # 5 of 10 + 20 + 5 tokens
    assert "1 of the 2 kept conversations (50.0%) are cut at 20 tokens" in text()
    assert "loses 5 tokens (14.3%)" in text()
    assert "|context 20" in text()


def test_each_choice_of_long_has_what_it_would_keep():
    assert "|cut, this run|2|2|30|12|split|2|3|36|14|drop|1|1|10|4|" in text()
    assert "further samples" not in text()
    assert "|14.3%|lost to the limit" in text()


def test_split_conversations_are_told_from_cut_ones():
    row = ["train", 4, 40, 0, 3, 46, 20, None, None, "en"]
    split = statistics(kept=[row, [*row[:4], 1, 40, *row[6:]]])
    assert split.tokens()["train"]["rows"] == 4
    assert split.kept.total() == split.lengths.total() == 2
    assert "the conversations have 2 further samples" in text(split)
    stats = statistics()
    stats.samples = [sample(samples=3)]
    assert "the first of 3 samples" in report(stats)


def test_fidelity_counts_what_is_intact_in_text_and_structure():
    found = text()
    assert "|Text: all of it|2|100%" in found
    assert "|Structure: all of it|1|50.0%" in found
    assert "|50% to 90%|1|50.0%|mean|75.000%" in found
    assert "1 of 2 converted conversations are intact in both" in found
    assert "|The worst:|<script>" in found
    assert "text 100%, structure 50%" in found


def test_the_worst_are_by_the_worse_of_both_measures():
    stats = Statistics()
    shares = {"a": (0.9, 0.4), "b": (0.5, 1.0), "c": (0.99, None)}
    worst = [
        {"id": name, "source": "", "fidelity": structure, "text_fidelity": visible}
        for name, (structure, visible) in shares.items()
    ]
    kept = [["train", 2, 9, 0, 1, 9, 4, *share, "en"] for share in shares.values()]
    stats.add_tokenize(
        {
            "kept": kept, "worst": worst, "offered": 27, "template_notes": {}, "yields": {},
            "samples": [], "dropped": [], "drop_counts": {},
        }
    )  # fmt: skip
    assert [found["id"] for found in stats.worst] == ["a", "b", "c"]
    assert stats.fidelity() == {
        "converted": 3,
        "intact": 0,
        "structure": {"intact": 0, "mean": 0.796667},
        "text": {"intact": 1, "mean": 0.7},
    }


def test_where_nothing_was_converted_nothing_is_said_of_fidelity():
    assert "fidelity" in report()
    plain = statistics(kept=2 * [["train", 2, 9, 0, 1, 9, 4, None, None, "en"]])
    plain.samples = []
    assert "idelity" not in report(plain)


def test_speed_is_in_conversations_a_second():
    found = text()
    assert "|clean|0.0|125" in found  # 5 in 0.04 s, which the manifest rounds to nothing
    assert "|tokenize|2.0|1" in found
    assert "|start and the rest|8.0|" in found


def test_settings_stand_in_the_report():
    assert "|near_duplicates|none" in text()


def test_an_empty_run_has_a_report():
    empty = Statistics(seconds={"total": 0.0})
    assert "|read|0" not in render_report(manifest(empty), empty)
    assert "|0|read" in Page(render_report(manifest(empty), empty)).text


def test_what_was_passed_over_is_shown_by_kind_and_taken_off_what_was_read():
    stats = statistics()
    stats.add_passed_over({".txt": 3, EVIL: 1})
    assert stats.counts()["read"] == 9
    shown = text(stats)
    assert "− passed over|4|" in shown
    assert "|.txt|3|75.0%" in shown
    assert SCRIPT not in report(stats)


# Samples


def test_supervised_tokens_are_marked():
    pre = report()[report().index("assistant</h3>") :]
    assert (
        "<span><i>Assistant:</i></span><mark><i>yes</i><i>&lt;|end_of_turn|&gt;</i></mark>" in pre
    )


def test_plain_text_has_one_column():
    stats = statistics()
    stats.samples = [sample(turns=[["user", "a < b", "a < b"], ["assistant", None, "c"]])]
    assert "Original HTML" not in report(stats)
    assert report(stats).count("<h4>Text</h4>") == 2
    assert "a &lt; b" in report(stats)


def test_what_is_not_html_is_not_called_so():
    stats = statistics()
    stats.samples = [sample(turns=[["user", "2 / 3<b>", "<b>"], ["assistant", "1 / 1c", "c"]])]
    assert "Original HTML" not in report(stats)
    assert report(stats).count("<h4>As it was read</h4>") == 2


def test_what_is_cut_says_so():
    long = sample(
        length=900, turn_count=9, turns=[["user", None, "x" * 4000]], tokens=[["Human", 0.0]]
    )
    stats = statistics()
    stats.samples = [long]
    assert "… cut here at 4,000 characters" in report(stats)
    assert "… more tokens, not shown" in report(stats)
    assert "… 8 more turns" in report(stats)
    stats.samples = [long | {"length": 1}]
    assert "… cut here at the context length" in report(stats)


def test_samples_open_one_at_a_time():
    assert report().count("<details name=sample>") == 1


def test_tokens_go_to_their_turns():
    end = ["<|end_of_turn|>", 0.0]
    typed = [["<|", 0.0], ["end_of_turn", 0.0], ["|>", 0.0]]
    found = tokens_by_turn([*typed, end, ["b", 1.0]])
    assert [len(turn) for turn in found] == [4, 1]


def test_parts_of_a_character_are_one_piece():
    tokens = [("a", 0.0), (" \ufffd", 0.0), ("\ufffd", 0.0), ("\ufffd", 1.0), ("b", 1.0)]
    assert join_broken(tokens) == [
        ("a", 0.0, 1),
        (" \ufffd", 0.0, 2),
        ("\ufffd", 1.0, 1),
        ("b", 1.0, 1),
    ]


# Pieces


def test_the_context_length_is_the_last_value_before_the_line():
    bars = bars_of(Counter({1: 1, 20: 2, 21: 4, 1000: 8}), span=20, bars_a_span=16, bars=20)
    assert [(bars[15].last, bars[15].count), (bars[16].first, bars[16].count)] == [(20, 2), (21, 4)]
    assert (bars[0].count, bars[19].count, bars[19].label) == (
        1,
        8,
        "25 or more",
    )  # 1.25 values per bar
    assert all(b.first == a.last + 1 for a, b in pairwise(bars))


@pytest.mark.parametrize(("span", "bars_a_span"), [(2048, 16), (1000, 16), (17, 16), (1, 1)])
def test_bars_hold_the_values_that_they_name(span, bars_a_span):
    for value in {1, 2, span - 1, span, span + 1} - {0}:
        bars = bars_of(Counter([value]), span=span, bars_a_span=bars_a_span, bars=40)
        (bar,) = [bar for bar in bars if bar.count]
        assert bar.first <= value <= (bar.last or value)


def test_the_highest_bar_fills_the_chart():
    stats = statistics()
    stats.turns = Counter({2: 6, 4: 3})
    drawn = report(stats).split('aria-label="histogram of turns"')[1].split("</figure>")[0]
    assert drawn.count("height:100%") == drawn.count("height:50%") == 1


@pytest.mark.parametrize(
    ("n", "total", "shown"),
    [
        (0, 10, "0%"),
        (10, 10, "100%"),
        (1, 3, "33.3%"),
        (0, 0, "–"),
        (1, 100_000, "<0.1%"),
        (99_999, 100_000, ">99.9%"),
    ],
)
def test_none_and_all_are_said_only_of_none_and_all(n, total, shown):
    assert percent(n, total) == shown


def test_a_long_text_is_one_short_line():
    assert cut("a\n b" + 300 * "<", 5) == "a b<<…"
    assert cut("whole", 5) == "whole"
