"""Report of a training run: figures worked out by hand, and text that stays text."""

import json
from html.parser import HTMLParser

import pytest

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train.report import duration, report_html, write_report
from ochat_ray.train.run_record import read_run

EVIL = "<script>alert(1)</script><img src=x onerror=y>&amp;\"'</pre>{{ 7 * 7 }}"


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """Leave out the plot, which has its own tests and takes most of the time."""
    monkeypatch.setattr("ochat_ray.train.report.plot", lambda _: b"png")


class Tags(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.sources, self.text = [], set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += " "
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def lines_of(steps=4, total=4):
    """Losses 2.0, 1.0, 0.667, ...; 100 tokens in 2 seconds per step."""
    yield {"step": 0, "eval_loss": 2.5, "eval_end_of_turn": 0.0, "total_steps": total}
    for step in range(1, steps + 1):
        yield {
            "step": step, "loss": 2.0 / step, "learning_rate": 1e-4 / step, "grad_norm": 1.0,
            "tokens": 100, "seconds": 2.0, "total_steps": total,
        }  # fmt: skip
    yield {"step": steps, "eval_loss": 1.25, "eval_end_of_turn": 0.9, "total_steps": total}


def sample(step, answer, prompt="Who?", ended=True):
    return {"step": step, "prompt": prompt, "answer": answer, "ended": ended}


SAMPLES = [sample(0, "the base's"), sample(2, "half-way"), sample(4, "the tuned one's")]


def manifest_of(**changes):
    return {
        "recipe": "chat", "model_type": "chat", "data_digest": "d" * 64, "step": 4,
        "template": {"digest": "t" * 64}, "world_size": 2, "zero_stage": 3, "dtype": "float32",
        "eval_before": {"loss": 2.5, "end_of_turn": 0.0, "weight": 9.0},
        "eval_after": {"loss": 1.25, "end_of_turn": 0.9, "weight": 9.0},
        "config": {
            "recipe": "chat", "model": "bases/tiny", "data": "runs/data", "epochs": 7,
            "learning_rate": 2e-5, "freeze": ["embed", "norm"], "gradient_checkpointing": False,
        },
    } | changes  # fmt: skip


def write_run(folder, *, manifest=None, lines=None, samples=SAMPLES):
    """Write the files of a run that a report reads; a manifest of None is that of a usual run."""
    folder.mkdir(parents=True)
    written = manifest_of() if manifest is None else manifest
    if written:
        (folder / "ochat.json").write_text(json.dumps(written))
    for name, rows in (
        ("metrics.jsonl", list(lines_of()) if lines is None else lines),
        ("samples.jsonl", samples),
    ):
        if rows:
            (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(folder)


def test_figures_of_a_run_by_hand(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert run.held_out("loss", after=False) == 2.5
    assert run.held_out("loss", after=True) == 1.25
    assert (run.step, run.total_steps, run.seconds) == (4, 4, 8.0)
    assert run.tokens_per_second == 50.0  # 400 tokens in 8 seconds
    assert max(run.learning_rates) == 1e-4
    page = Tags(report_html(run)).text
    for shown in (
        "2.500 → 1.250", "0% → 90%", "0.0001", "8.0 s", "d" * 64, "t" * 64, "bases/tiny",
        "0.0001 at its peak, 2.5e-05 in the last step",
    ):  # fmt: skip
        assert shown in page, shown


def test_options_that_differ_from_the_recipe(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert run.differences() == [
        ("--epochs", "7", "3"),
        ("--freeze", "embed norm", "none"),
        ("--gradient-checkpointing", "false", "true"),
    ]


def test_the_bases_answer_is_beside_the_last_one(tmp_path):
    run = read_run(write_run(tmp_path / "run", samples=[*SAMPLES, *SAMPLES]))
    first, second = run.prompts  # equal prompts of a step are two
    assert first == second
    assert (first.base.answer, first.last.answer) == ("the base's", "the tuned one's")
    assert [answer.step for answer in first.between] == [2]
    page = report_html(run)
    assert "base model" in page
    base, last = page.index("the base&#39;s"), page.index("the tuned one&#39;s")
    assert base < last < page.index("half-way")


def test_no_text_becomes_markup_and_nothing_is_loaded(tmp_path):
    hostile = manifest_of(
        data_digest=EVIL,
        dtype=EVIL,
        world_size=EVIL,
        template={"digest": EVIL},
        versions={EVIL: EVIL},
        best={"step": EVIL, "eval_loss": EVIL},
        config={"recipe": "chat", "model": EVIL, "freeze": [EVIL], EVIL: EVIL, "epochs": {EVIL: 1}},
    )
    samples = [sample(0, EVIL, prompt=EVIL, ended=False), sample(4, EVIL, prompt=EVIL)]
    folder = tmp_path / "a<script>b"
    found = Tags(report_html(read_run(write_run(folder, manifest=hostile, samples=samples))))
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert found.tags.count("img") == 1
    assert [source.partition(",")[0] for source in found.sources] == ["data:image/png;base64"]
    assert not {name for name in found.attributes if name.startswith("on")}
    assert found.text.count(EVIL) >= 10
    assert "49" not in found.text.split("{{ 7 * 7 }}")


def test_values_of_other_types_are_shown_as_missing(tmp_path):
    odd = {
        "recipe": ["chat"], "step": "4", "eval_before": "2.5", "eval_after": {"loss": "nan"},
        "config": 7, "template": 1, "best": [], "versions": None,
    }  # fmt: skip
    lines = [
        {"step": 0, "eval_loss": "x", "eval_end_of_turn": None},
        {"step": 1, "loss": None, "tokens": "many", "seconds": True, "total_steps": "all"},
    ]
    samples = [{"step": 0, "prompt": 1}, {"step": 0, "prompt": "p", "answer": "kept"}]
    run = read_run(write_run(tmp_path / "run", manifest=odd, lines=lines, samples=samples))
    assert run.differences() == []
    assert "kept" in report_html(run)


def test_a_run_that_has_not_completed_is_reported_as_such(tmp_path):
    lines = [*lines_of(3, total=9)][:-1]
    run = read_run(write_run(tmp_path / "run", manifest={}, lines=lines, samples=[]))
    assert (run.held_out("loss", after=False), run.step, run.digest) == (2.5, 3, None)
    page = Tags(report_html(run)).text
    assert "This run has not completed." in page
    assert "3 of 9" in page
    assert "This run wrote no samples" in page


def test_a_report_is_a_file_of_the_run(tmp_path):
    folder = write_run(tmp_path / "run", samples=[sample(0, "half a pair \ud800")])
    write_report(folder)
    page = (tmp_path / "run/report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "half a pair ?" in page
    assert RunDir.open(folder).files("", ".html") == ["report.html"]


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (None, "does not exist; give the output directory of a training"),
        ({}, "has neither ochat.json nor metrics.jsonl"),
        ({"ochat.json": "{"}, r"ochat.json is damaged .*train again with --overwrite"),
        ({"ochat.json": "[1]"}, "ochat.json is damaged: it is not a JSON object"),
    ],
)
def test_what_is_no_run_is_one_clear_line(tmp_path, files, line):
    folder = tmp_path / "run"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(UserError, match=line) as error:
        read_run(str(folder))
    assert "\n" not in str(error.value)


def test_durations():
    found = [duration(seconds) for seconds in (None, 1.25, 59.99, 90, 3599, 3700)]
    assert found == ["–", "1.2 s", "60.0 s", "2 min", "1 h 00 min", "1 h 02 min"]
