"""Formats of answers, unknown keys and parts left out: counted per part, shown in the report."""

from ochat_ray.data.clean import rules
from ochat_ray.data.parts.clean import clean_part
from ochat_ray.data.records import records_of
from ochat_ray.data.report_inputs import inputs_tables
from ochat_ray.data.statistics import Statistics, most_first
from ochat_ray.run_dir import RunDir

BOX = '<div class="markdown prose"><p>Yes</p></div>'
TURNS = [
    {"from": "human", "value": "q", "time": 1},
    {"from": "gpt", "value": BOX},
    {"from": "human", "value": "r"},
    {"from": "gpt", "value": "plain"},
    {"from": "gpt", "value": "and more"},
]
TREE = {
    "mapping": {
        "a": {"message": {"author": {"role": "user"}, "content": {"parts": ["q"]}}},
        "b": {
            "parent": "a",
            "message": {"author": {"role": "assistant"}, "content": {"parts": ["a\ue203"]}},
        },
    }
}


def test_answers_keys_and_what_is_left_out(tmp_path):
    items = [{"conversations": TURNS, "lang": "en"}, {"conversations": TURNS, "lang": "de"}, TREE]
    records = [r for n, item in enumerate(items) for r in records_of(item, source="x", index=n)]
    merging = rules(keep_model="any", blocked_words=(), merge_turns=True)
    summary = clean_part(RunDir.open(str(tmp_path)), "000000-0000", records, merging)
    assert summary["rows"] == 3
    assert summary["answers"] == {"html": 2, "markdown": 5}
    assert summary["unknown_keys"] == {"lang": 2, "turn.time": 2}
    assert summary["left_out"] == {"citation mark": 1}

    statistics = Statistics()
    statistics.add_clean(summary)
    assert most_first(statistics.unknown_keys) == {"lang": 2, "turn.time": 2}
    answers, unknown, left_out = inputs_tables(statistics)
    assert dict(answers.rows) == {"html": 2, "markdown": 5}
    assert unknown.rows == [("lang", 2), ("turn.time", 2)]
    assert "of the 3 conversations" in unknown.note
    assert left_out.rows == [("citation mark", 1)]


def test_many_names_end_in_a_line_of_others():
    statistics = Statistics()
    statistics.unknown_keys.update({f"key{n:02}": 1 for n in range(30)})
    _, unknown = inputs_tables(statistics)
    assert len(unknown.rows) == 20
    assert unknown.others == (10, 10)
