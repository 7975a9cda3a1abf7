"""One page about several training runs."""

import io
import json
import re
from hashlib import sha256

import pytest
from PIL import Image

from ochat_ray.errors import UserError
from ochat_ray.train.compare import CompareConfig, compare, main, same_prompts
from ochat_ray.train.plot_runs import colour, plot_runs
from ochat_ray.train.run_record import read_run
from tests.train.test_report import EVIL, Tags, lines_of, manifest_of, sample, write_run


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """Leave out the plot, which takes most of the time; one test draws it."""
    monkeypatch.setattr("ochat_ray.train.compare.plot_runs", lambda _: b"png")


def page_of(tmp_path, *runs, evaluations=()):
    output = str(tmp_path / "pages/page.html")
    result = compare(CompareConfig(runs=runs, output=output, evaluations=evaluations))
    return result, Tags((tmp_path / "pages/page.html").read_text())


def two_runs(tmp_path):
    config = manifest_of()["config"]
    one = write_run(tmp_path / "one")
    other = write_run(
        tmp_path / "other",
        manifest=manifest_of(config={**config, "epochs": 9}, data_digest="e" * 64),
        samples=[sample(0, "the base's"), sample(6, "another"), sample(0, "x", prompt="Alone?")],
    )
    return one, other


def test_losses_options_and_answers_are_side_by_side(tmp_path):
    result, page = page_of(tmp_path, *two_runs(tmp_path))
    assert result["notes"] == []
    text = " ".join(page.text.split())
    assert "--epochs 7 9" in text
    assert "--freeze" not in text  # equal
    assert f"data digest {'d' * 64} {'e' * 64}" in text
    assert "base model the base's run 1, after step 4 the tuned one's run 2, after step 6" in text
    assert "another" in text
    assert "Alone?" not in text
    assert "Prompts of a single run are not shown: 1" in text
    assert page.tags.count("img") == 1


def test_answers_of_different_bases_are_both_shown(tmp_path):
    one, other = two_runs(tmp_path)
    third = write_run(tmp_path / "third", samples=[sample(0, "other base"), sample(1, "third")])
    (prompt,) = same_prompts([read_run(uri) for uri in (one, other, third)])
    assert [(runs, answer.answer) for runs, answer in prompt["bases"]] == [
        ([1, 2], "the base's"),
        ([3], "other base"),
    ]
    assert [(n, last.answer) for n, last in prompt["answers"]] == [
        (1, "the tuned one's"),
        (2, "another"),
        (3, "third"),
    ]
    assert [p["text"] for p in same_prompts([read_run(other)])] == ["Who?", "Alone?"]


def test_runs_that_cannot_be_read_are_one_line_each(tmp_path, capsys):
    one, _ = two_runs(tmp_path)
    damaged = write_run(tmp_path / "damaged")
    (tmp_path / "damaged/ochat.json").write_text('{"recipe"')
    unfinished = write_run(tmp_path / "half", manifest={}, lines=list(lines_of(3, total=9))[:-1])
    missing = str(tmp_path / "nowhere")
    result, page = page_of(tmp_path, missing, one, damaged, unfinished)
    assert result["runs"] == [one, unfinished]
    first, second, third = result["notes"]
    assert first == f"{missing} does not exist; give the output directory of a training"
    assert second.startswith(f"{damaged}/ochat.json is damaged")
    assert third == f"{unfinished} has not completed: it has 3 of 9 steps"
    assert capsys.readouterr().err.splitlines() == result["notes"]
    for note in result["notes"]:
        assert note in page.text


@pytest.mark.parametrize(
    ("runs", "output", "line"),
    [
        ([], "page.html", "give at least one RUN"),
        (["a", "a/"], "page.html", "a is given twice"),
        (["one"], "page.txt", "must end with .html"),
        (["nowhere"], "page.html", "nowhere does not exist"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path, monkeypatch, runs, output, line):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one")
    with pytest.raises(UserError, match=line):
        compare(CompareConfig(runs=tuple(runs), output=output))
    assert not (tmp_path / output).exists()


def test_scores_belong_to_the_run_whose_digest_the_server_reported(tmp_path):
    one, other = two_runs(tmp_path)
    results = {
        "suite": "vicuna",
        "unit": "% of the baseline",
        "judge": "gpt-4",
        "baseline": None,
        "models": {
            "ours": {"training": {"digest": read_run(other).digest}},
            "theirs": {"training": None},
        },
        "scores": [
            {"model": "theirs", "score": 50.0, "low": 45.0, "high": 55.0},
            {"model": "ours", "score": 61.239, "low": 58.0, "high": 64.5},
        ],
    }
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored/results.json").write_text(json.dumps(results))
    (tmp_path / "empty").mkdir()
    evaluations = (str(tmp_path / "scored"), str(tmp_path / "empty"))
    result, page = page_of(tmp_path, one, other, evaluations=evaluations)
    text = " ".join(page.text.split())
    assert "run 2 ours vicuna % of the baseline gpt-4 – 61.24 58.00 to 64.50" in text
    assert "– theirs vicuna" in text
    (note,) = result["notes"]
    assert note.startswith(f"--evaluations {tmp_path}/empty: ")
    assert "\n" not in note


def test_the_digest_is_of_the_content_without_blanks_and_in_the_order_of_names(tmp_path):
    run = read_run(write_run(tmp_path / "run", manifest={"step": 4, "recipe": "chat"}))
    assert run.digest == sha256(b'{"recipe":"chat","step":4}').hexdigest()


def test_no_text_becomes_markup_and_nothing_is_loaded(tmp_path):
    config = manifest_of()["config"]
    hostile = write_run(
        tmp_path / "a<script>b$",
        manifest=manifest_of(dtype=EVIL, config={**config, "freeze": [EVIL], EVIL: 1}),
        samples=[sample(0, EVIL, prompt=EVIL), sample(4, EVIL, prompt=EVIL)],
    )
    other = write_run(tmp_path / "b", samples=[sample(0, "a", prompt=EVIL)])
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored/results.json").write_text(
        json.dumps({"suite": EVIL, "models": {}, "scores": [{"model": EVIL}]})
    )
    _, page = page_of(
        tmp_path, hostile, other, f"{EVIL}/none", evaluations=(str(tmp_path / "scored"),)
    )
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert [source.partition(",")[0] for source in page.sources] == ["data:image/png;base64"]
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.text.count(EVIL) >= 8


def test_the_command_line(tmp_path, monkeypatch, capsys):
    one, other = two_runs(tmp_path)
    output = str(tmp_path / "page.html")
    monkeypatch.setattr("sys.argv", ["compare", one, other, "--output", output, "--json"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"2 runs: {output}"
    assert json.loads(lines[1]) == {"page": output, "runs": [one, other], "notes": []}
    monkeypatch.setattr("sys.argv", ["compare", "nowhere", "--output", output])
    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_colours_of_many_runs_are_different():
    colours = [colour(n) for n in range(60)]
    assert len(set(colours)) == 60
    assert all(re.fullmatch("#[0-9a-f]{6}", one) for one in colours)


def test_the_plot_has_the_lines_of_all_runs_in_their_colours():
    runs = [list(lines_of()), list(lines_of(9)), [], [{"step": 1, "loss": "x"}], list(lines_of(1))]
    image = Image.open(io.BytesIO(plot_runs(runs))).convert("RGB")
    assert image.size == (2000, 1040)
    drawn = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.getcolors(1 << 20)}
    assert [colour(n) in drawn for n in range(5)] == [True, True, False, False, True]


def test_runs_and_page_may_be_at_uris(tmp_path):
    one, other = two_runs(tmp_path)
    output = f"file://{tmp_path}/new/page.html"
    result = compare(CompareConfig(runs=(f"file://{one}", other), output=output))
    assert result == {"page": output, "runs": [f"file://{one}", other], "notes": []}
    assert "the tuned one&#39;s" in (tmp_path / "new/page.html").read_text()
