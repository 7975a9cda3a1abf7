"""Early stopping when the held-out loss no longer decreases."""

import pytest

from ochat_ray.train.early_stopping import held_out_losses, should_stop


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ([3.0], False),
        ([3.0, 2.0, 2.1], False),
        ([3.0, 2.0, 2.1, 2.05], True),  # two after the best
        ([3.0, 2.0, 2.1, 1.9], False),
        ([2.0, 2.0, 2.0], True),  # an equal loss is not lower
        ([3.0, 3.1, 3.2], True),  # worse than before the first step
        ([3.0, 3.1], False),
    ],
)
def test_two_evaluations_without_a_lower_loss_end_a_run(losses, over):
    assert should_stop(losses, 2) is over


def test_without_the_option_a_run_never_ends_early():
    assert not should_stop([1.0, 2.0, 3.0, 4.0], None)


def test_a_resumed_run_counts_the_evaluations_in_its_file():
    lines = [
        {"step": 0, "eval_loss": 3.0},
        {"step": 1, "loss": 1.0},
        {"step": 7, "eval_loss": 2.0},
        {"step": 7, "loss": 1.0},
        {"step": 14, "eval_loss": 2.5},
        {"step": 21, "eval_loss": 2.6},
    ]
    assert held_out_losses(lines, 0, 14) == [3.0, 2.0, 2.5]
    assert held_out_losses(lines, 7, 21) == [2.0, 2.5, 2.6]  # continued from step 7
