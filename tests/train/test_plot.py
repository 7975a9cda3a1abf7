"""Plot of a run: any number of steps, the right size, and no remaining state."""

import io
import math
import sys

import numpy as np
import pytest

from ochat_ray.train.plot import plot, smoothed


def lines(steps):
    yield {"step": 0, "eval_loss": 2.5, "eval_end_of_turn": 0.0}
    for step in range(1, steps + 1):
        yield {
            "step": step,
            "loss": 1.0 + 1.0 / step,
            "learning_rate": 2e-5,
            "grad_norm": 1.0 / step,
            "tokens": 1,
            "seconds": 1.0,
        }
    yield {"step": steps, "eval_loss": 1.0, "eval_end_of_turn": 0.9}


def picture(png):
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")


@pytest.mark.parametrize("steps", [1, 14, 10_000])
def test_any_number_of_steps(steps):
    image = picture(plot(list(lines(steps))))
    assert image.size == (2000, 1300)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    # Held-out points, learning rate.
    assert (0xEA, 0x58, 0x0C) in colours
    assert (0x0F, 0x76, 0x6E) in colours


def test_a_run_without_steps_or_that_was_interrupted():
    assert picture(plot([])).size == (2000, 1300)
    assert picture(plot([{"step": 0, "eval_loss": math.nan}])).size == (2000, 1300)
    broken = {"step": 1, "loss": math.nan, "learning_rate": 1e-3, "grad_norm": math.inf}
    assert picture(plot([broken])).size == (2000, 1300)


def test_pyplot_is_not_imported():
    before = "matplotlib.pyplot" in sys.modules
    plot(list(lines(2)))
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_smoothing_by_hand():
    assert smoothed(np.array([1.0, 2.0, 3.0, 10.0])).tolist() == [2.0, 4.0, 4.0, 5.0]
    assert smoothed(np.array([1.0, np.nan, 3.0])).tolist() == [2.0, 2.0, 2.0]
    assert smoothed(np.array([])).tolist() == []
    assert np.isnan(smoothed(np.array([np.nan]))).all()
    # A hundredth of all to either side.
    assert smoothed(np.arange(1000.0))[[0, 500]].tolist() == [5.0, 500.0]
