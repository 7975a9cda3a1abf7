"""Held-out figures of a model, without DeepSpeed."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from ochat_ray.train.batch import make_batch
from ochat_ray.train.engine import Engine
from ochat_ray.train.loss import NonFiniteLossError


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_weights_that_are_not_numbers_are_named_before_the_first_step():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_hidden_layers=1, **sizes))
    engine = SimpleNamespace(
        _engine=model, _in_chunks=lambda _: False, _vocabulary=None,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    pack = make_batch([([1, 2, 3], [0.0, 1.0, 1.0])])
    assert 2 < Engine.evaluate(engine, [pack], end_of_turn_id=3).loss < 4  # about log(20)
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(NonFiniteLossError, match="held-out loss is nan: weights of the model"):
        Engine.evaluate(engine, [pack], end_of_turn_id=3)
