"""Methods of the engine, in one process and with a stand-in for DeepSpeed's engine."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ochat_ray.train import engine
from ochat_ray.train.batch import make_batch

END = 3


@pytest.fixture
def plain(monkeypatch):
    """An engine with a model without parameters."""

    class Plain(engine.Engine):
        def __init__(self):
            self.device = torch.device("cpu")
            self._engine = torch.nn.Module()
            self._engine.save_checkpoint = lambda *_args, **_options: None
            self._engine.load_checkpoint = lambda path, **_options: (path, None)
            self._optimizer = SimpleNamespace(param_groups=[], state={})
            self._chunk = self._vocabulary = None
            self._adapters_only, self._decays = False, []

    monkeypatch.setattr(engine.distributed, "all_reduce", lambda _tensor: None)
    monkeypatch.setattr(engine.distributed, "get_rank", lambda: 0)
    return Plain()


def test_the_share_of_end_of_turn_tokens_that_greedy_decoding_would_choose(plain, monkeypatch):
    """Only labels that are the token and have a weight count, whatever else is chosen."""
    packs = [
        make_batch([(np.array([0, END, 1, END]), np.array([0.0, 1.0, 1.0, 0.5], np.float32))]),
        make_batch([(np.array([0, END]), np.zeros(2, np.float32))]),  # without weight
        make_batch([(np.array([0, 2, 1]), np.array([0.0, 1.0, 1.0], np.float32))]),
    ]
    choices = iter([[END, END, 1], [END], [END, 1]])

    def given(*_args, **_options):
        scores = torch.nn.functional.one_hot(torch.tensor(next(choices)), 5)
        return 10.0 * scores.float()

    monkeypatch.setattr(engine, "logits", given)
    found = plain.evaluate(packs, END)
    assert found.end_of_turn == 0.5
    assert found.weight == pytest.approx(4.5)


def test_a_checkpoint_restores_the_state_of_the_random_numbers(plain, tmp_path):
    plain.save(tmp_path)
    expected = torch.rand(3)
    plain.load(tmp_path)
    assert torch.equal(torch.rand(3), expected)
