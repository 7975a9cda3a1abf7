"""One page about many evaluations, against values worked out by hand."""

import json

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.bias import agreement
from ochat_ray.evaluate.comparison import compare
from ochat_ray.evaluate.config import EvaluateConfig
from tests.evaluate.test_report import EVIL, Tags

IDS = [f"q{n}" for n in range(20)]


def scored(model, shares, **fields):
    """A model's entry; `shares` are its outcomes by question."""
    mean = 100 * sum(shares) / len(shares)
    return {
        "model": model, "score": mean, "low": mean - 5, "high": mean + 5, "judgments": 40,
        "failed": 1, "not_judged": 0,
        "biases": {"order_changes_verdict": 0.25, "first_minus_second": 0, "longer_preferred": 0.6},
        "by_question": {id: [100 * s, 1] for id, s in zip(IDS, shares, strict=True)},
        "outcomes": dict(zip(IDS, shares, strict=True)),
        "usage": {"calls": 40, "prompt_tokens": 9, "completion_tokens": 300, "dollars": 1.5},
    } | fields  # fmt: skip


def write_run(folder, *scores, **fields):
    results = {
        "suite": "alpaca_eval", "unit": "% of wins against the baseline", "baseline": "base",
        "judge": "gpt-4", "scores": list(scores), "questions": 20, "questions_digest": "q",
        "prompts_digest": "p", "version": "0.1", "time": "2026-11-23T00:00:00+00:00",
        "config": {"temperature": None},
        "answers": {
            one["model"]: {"mean_characters": 1234.4, "empty": 0, "usage": {
                "calls": 20, "prompt_tokens": 9, "completion_tokens": 5000, "dollars": 0.25}}
            for one in scores
        },
        "models": {"ours": {"id": "ours", "training": {"recipe": "openchat", "digest": "d1"}}},
    } | fields  # fmt: skip
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def page_of(tmp_path, *runs):
    result = compare(runs, str(tmp_path / "out"), seed=1)
    page = (tmp_path / "out/comparison.html").read_text()
    return result, " ".join("".join(Tags(page).text).split())


def test_models_of_two_runs_are_compared_question_by_question(tmp_path):
    one = write_run(tmp_path / "a", scored("ours", [1] * 15 + [0] * 5))
    other = write_run(tmp_path / "b", scored("theirs", [1] * 10 + [0] * 10))
    result, text = page_of(tmp_path, one, other)
    (group,) = result["groups"]
    (setting,) = group["settings"]
    (difference,) = setting["differences"]
    assert (difference["first"], difference["second"]) == ("ours", "theirs")
    assert difference["score"] == 25
    # Five of 20 questions differ: 25 ± 1.96 * sqrt(0.25 * 0.75 / 20) * 100.
    assert difference["low"] == pytest.approx(6, abs=1.5)
    assert difference["high"] == pytest.approx(44, abs=1.5)
    assert "ours − theirs25.00" in text
    # 15 of 20 wins are odds of 3: 400 * log10(3) points.
    ratings = {r["model"]: r["score"] for r in setting["ratings"]["ratings"]}
    assert ratings == pytest.approx({"ours": 1190.85, "base": 1000, "theirs": 1000}, abs=0.1)


def test_the_page_has_cost_length_biases_and_origin_of_each_model(tmp_path):
    _, text = page_of(tmp_path, write_run(tmp_path / "a", scored("ours", [1] * 20)))
    assert "ours gpt-4 1,234 5,000 300 1.75 1 of 40 0 25% 60%".replace(" ", "") in text.replace(
        " ", ""
    )
    assert "recipe openchat" in text
    assert "digest d1" in text


def test_other_questions_baselines_and_judges_are_kept_apart(tmp_path):
    runs = [
        write_run(tmp_path / "a", scored("ours", [1, 1, 0, 0] * 5)),
        write_run(tmp_path / "b", scored("ours", [1, 0, 0, 0] * 5), judge="llama"),
        write_run(tmp_path / "c", scored("ours", [1] * 20), questions_digest="other"),
    ]
    result, text = page_of(tmp_path, *runs)
    assert [len(group["settings"]) for group in result["groups"]] == [2, 1]
    assert all(not s["differences"] for g in result["groups"] for s in g["settings"])
    # The judges agree on 15 of 20; by chance on 0.5 * 0.25 + 0.5 * 0.75 = 0.5.
    (found,) = result["groups"][0]["agreement"]
    assert (found["questions"], found["accuracy"], found["kappa"]) == (20, 0.75, 0.5)
    assert "Scores of different judges or judge prompts are not comparable." in text


def test_runs_of_one_model_are_named_by_their_directory(tmp_path):
    runs = [write_run(tmp_path / name, scored("ours", [1, 0] * 10)) for name in "ab"]
    result, _ = page_of(tmp_path, *runs)
    assert [row["name"] for row in result["groups"][0]["rows"]] == [f"ours ({r})" for r in runs]


def test_no_text_becomes_markup(tmp_path):
    run = write_run(
        tmp_path / "a",
        scored(EVIL, [1, 0] * 10),
        baseline=EVIL,
        judge=f"j{EVIL}",
        models={EVIL: {"training": {EVIL: EVIL}}},
        unit=EVIL,
    )
    compare([run], str(tmp_path / "out"), seed=1)
    found = Tags((tmp_path / "out/comparison.html").read_text())
    assert not found.tags & {"script", "img", "link", "iframe", "object"}
    assert not {name for name in found.attributes if name.startswith("on")}
    assert EVIL in "".join(found.text)


def test_a_run_without_scores_by_question_is_named(tmp_path):
    old = scored("ours", [1] * 20)
    del old["by_question"], old["outcomes"], old["usage"]
    run = write_run(tmp_path / "a", old, answers={})
    _, text = page_of(tmp_path, run)
    assert f"{run} has no scores by question" in text


def test_nothing_judged_is_a_page_too(tmp_path):
    none = {"score": None, "low": None, "high": None, "by_question": {}, "outcomes": {}}
    _, text = page_of(tmp_path, write_run(tmp_path / "a", scored("ours", [1] * 20) | none))
    assert "ours" in text


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "FileNotFoundError"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"suite": "vicuna"}', "KeyError 'unit'"),
    ],
)
def test_what_is_no_evaluation_is_one_line(tmp_path, content, line):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run/results.json").write_text(content)
    with pytest.raises(UserError, match=line):
        compare([str(tmp_path / "run")], str(tmp_path / "out"), seed=1)


def test_a_run_that_is_given_twice_is_rejected(tmp_path):
    run = write_run(tmp_path / "a", scored("ours", [1] * 20))
    with pytest.raises(UserError, match="given twice"):
        compare([run, run], str(tmp_path / "out"), seed=1)


def test_options_without_effect_are_rejected():
    with pytest.raises(UserError, match="--judge has no effect on the step compare"):
        EvaluateConfig(step="compare", runs=("a",), output="o", judge="j").check()
    with pytest.raises(UserError, match="compare needs --runs"):
        EvaluateConfig(step="compare", output="o").check()
    with pytest.raises(UserError, match="--runs is for the step compare"):
        EvaluateConfig(runs=("a",)).check()


def test_agreement_by_chance_alone_has_no_kappa():
    assert agreement([(1, 1), (1, 1)]) == {"questions": 2, "accuracy": 1, "kappa": None}
    # Landis and Koch's kind of table: 20 + 15 of 50 agree, by chance 0.5: (0.7 - 0.5) / 0.5.
    table = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert agreement(table)["kappa"] == pytest.approx(0.4)


def test_an_output_that_is_a_file_or_holds_another_s_page_is_one_line(tmp_path):
    run = write_run(tmp_path / "run", scored("ours", [1] * 20))
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"--output .* cannot be created"):
        compare([run], str(tmp_path / "out"), seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/comparison.html").write_text("mine")
    with pytest.raises(UserError, match=r"comparison.html was not written by a run of evaluate"):
        compare([run], str(tmp_path / "other"), seed=1)
    assert (tmp_path / "other/comparison.html").read_text() == "mine"
