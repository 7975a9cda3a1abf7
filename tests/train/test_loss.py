"""A loss that is not finite ends a run with one line."""

import pytest

from ochat_ray.errors import UserError
from ochat_ray.train.loss import check_finite, check_held_out

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, INF), (NAN, NAN)])
def test_a_step_that_is_not_finite_names_its_first_conversations(loss, norm):
    check_finite(3, 1.0, 2.0, ())
    with pytest.raises(UserError, match=r"step 3: loss .* conversations 0, 1; inspect them"):
        check_finite(3, loss, norm, map(str, range(2)))
    with pytest.raises(UserError, match=r"conversations 0, .*, 7, …; inspect"):
        check_finite(3, loss, norm, map(str, range(10**9)))


@pytest.mark.parametrize(
    ("step", "loss", "weight", "line"),
    [
        (7, NAN, 2.0, "held-out loss after step 7 is nan; lower --learning-rate"),
        (0, INF, 2.0, "held-out loss after step 0 is inf; weights of the base model"),
        (0, NAN, 0.0, "no token of the held-out conversations .* give more --eval-tokens"),
    ],
)
def test_a_held_out_loss_that_is_not_finite_is_one_line(step, loss, weight, line):
    check_held_out(7, 1.0, 2.0)
    with pytest.raises(UserError, match=line):
        check_held_out(step, loss, weight)
