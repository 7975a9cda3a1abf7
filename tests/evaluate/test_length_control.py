"""Length-controlled win rates, against alpaca_eval 0.6.6's own code with scikit-learn 1.9.1."""

import json

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.alpaca import read_annotations
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.length_control import length_controlled, read_difficulty
from ochat_ray.evaluate.report import report_html
from ochat_ray.evaluate.suites import suite_of
from tests.evaluate.test_report import one, results

COUNT = 60
LENGTHS = [((i * 37) % 101, (i * 53) % 97) for i in range(COUNT)]
COLUMNS = "index,model,preference,instruction_difficulty,std_delta_len,not_gamed_baseline"


def preferences():
    """Larger where the baseline's output is long; one is missing, one is a draw."""
    found = [
        1 + (7 * i) % 11 / 10 * (0.5 if baseline < 50 else 1)
        for i, (baseline, _) in enumerate(LENGTHS)
    ]
    found[7], found[9] = None, 0
    return found


@pytest.fixture
def gamed(tmp_path):
    rows = [COLUMNS]
    for model, scale, sign in ((0, 0.6, 1), (1, 1, -1)):
        for i in range(COUNT):
            difficulty = ((13 * i) % 17 - 8) / 4
            preference = (5 * i + 3 * model) % 9 / 8 * scale
            rows.append(f"{i},m{model},{preference},{difficulty},{sign * (7 * i % 10) / 5},False")
    path = tmp_path / "df_gamed.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_the_leaderboards_model_gives_alpaca_evals_rate(gamed):
    found = length_controlled(preferences(), LENGTHS, read_difficulty(str(gamed)), range(COUNT))
    assert found["lc_model"] == "length_controlled_v1"
    assert found["length_controlled_winrate"] == pytest.approx(35.305164, abs=1e-3)
    assert found["lc_standard_error"] == pytest.approx(0.0966125, abs=1e-5)
    assert found["lc_length_coefficient"] == pytest.approx(-0.279227, abs=1e-4)


def test_without_difficulties_the_length_alone_is_penalized():
    found = length_controlled(preferences(), LENGTHS)
    assert found["lc_model"] == "length_only"
    # By a nested search (bisection for the constant, ternary search for the length).
    assert found["length_controlled_winrate"] == pytest.approx(34.689975, abs=1e-5)


@pytest.mark.parametrize(("wins", "count"), [(20, 50), (10, 24), (390, 805), (10, 10)])
def test_equal_lengths_change_nothing(wins, count):
    found = length_controlled([2] * wins + [1] * (count - wins), [(9, 9)] * count)
    assert found["length_controlled_winrate"] == pytest.approx(100 * wins / count, abs=1e-6)


def test_wins_by_length_alone_are_no_wins():
    """The longer output is preferred with the same weight, whichever model wrote it."""
    lengths = [(100, 300), (300, 100)] * 3 + [(100, 300)] * 24
    preferred = [1.9 if model > baseline else 1.1 for baseline, model in lengths]
    found = length_controlled(preferred, lengths)
    assert sum(preferred) / 30 - 1 == pytest.approx(0.82)
    assert found["length_controlled_winrate"] == pytest.approx(50, abs=1)


def test_too_few_preferences_have_no_rate():
    found = length_controlled([2, None, 1, 1, 1], [(1, 2)] * 5)
    assert found["length_controlled_winrate"] is None


@pytest.mark.parametrize("text", ["", "index\n1\n", COLUMNS + "\n1,m,x,0,0,False\n", None])
def test_another_file_is_rejected_by_name(tmp_path, text):
    path = tmp_path / "other.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"--difficulty .*other.csv.*df_gamed.csv"):
        read_difficulty(str(path))


def test_more_questions_than_difficulties_are_rejected_before_any_call(tmp_path, gamed):
    path = tmp_path / "questions.json"
    config = EvaluateConfig(suite="alpaca_eval", difficulty=str(gamed), questions=str(path))
    path.write_text(json.dumps([{"instruction": f"do {n}"} for n in range(COUNT)]))
    assert len(suite_of(config).questions) == COUNT
    path.write_text(json.dumps([{"instruction": f"do {n}"} for n in range(COUNT + 1)]))
    with pytest.raises(UserError, match=f"no row for 1 of {COUNT + 1} questions"):
        suite_of(config)


def test_an_annotation_file_has_both_rates(tmp_path, gamed):
    path = tmp_path / "annotations.json"
    rows = [
        {"preference": p, "output_1": "x" * a, "output_2": "y" * b, "generator_2": "m"}
        for p, (a, b) in zip(preferences(), LENGTHS, strict=True)
    ]
    path.write_text(json.dumps(rows))
    found = read_annotations(str(path), difficulty=str(gamed))
    assert found["length_controlled_winrate"] == pytest.approx(35.305164, abs=1e-3)
    assert found["n_total"] == COUNT - 1


def test_the_report_shows_the_rate_and_its_model():
    rates = {
        "lc_model": "length_only",
        "length_controlled_winrate": 43.21,
        "win_rate": 50.0,
        "avg_length": 1234,
    }
    page = report_html(results(one("ours", **rates), suite="alpaca_eval"), [])
    assert "43.21" in page
    assert "1,234" in page
    assert "length_only" in page
