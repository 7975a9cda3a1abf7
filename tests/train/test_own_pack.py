"""Conversations whose length would affect others of their pack."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from ochat_ray.train.batch import make_batch
from ochat_ray.train.derived import min_length_for_own_pack
from ochat_ray.train.forward import PACKED_SDPA, logits, register_packed_sdpa
from tests.tiny_models import SIZES

LONGROPE = Phi3Config(
    **SIZES,
    initializer_range=0.5,
    max_position_embeddings=128,
    original_max_position_embeddings=16,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    },
)
DYNAMIC = LlamaConfig(
    **SIZES,
    initializer_range=0.5,
    max_position_embeddings=16,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
)


@pytest.mark.parametrize("config", [LONGROPE, DYNAMIC])
def test_a_longer_conversation_changes_others_of_its_pack(config):
    torch.manual_seed(0)
    register_packed_sdpa()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_SDPA)
    limit = min_length_for_own_pack(config)
    assert limit == 17

    def first_beside(length):
        rows = [(np.arange(n) % 30 + 1, np.ones(n, np.float32)) for n in (10, length)]
        with torch.no_grad():
            return logits(model, make_batch(rows))[:9]

    short, fits, changes = (first_beside(n) for n in (2, limit - 1, limit))
    assert torch.allclose(short, fits, atol=1e-4)
    assert not torch.allclose(short, changes, atol=1e-2)


def test_other_rotary_embeddings_let_all_share_a_pack():
    assert min_length_for_own_pack(LlamaConfig()) is None
