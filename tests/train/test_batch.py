"""Tensors and loss of a pack, and the isolation of its conversations."""

import numpy as np
import pytest
import torch
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM, LlamaConfig, LlamaForCausalLM

from ochat_ray.train.batch import make_batch, trained_weight, weighted_nll
from ochat_ray.train.forward import PACKED_SDPA, logits, register_packed_sdpa
from tests.tiny_models import SIZES


def conversation(ids, weights):
    return np.array(ids, np.int32), np.array(weights, np.float32)


ONE = conversation([5, 6, 7, 8], [0, 0, 1, 1])
TWO = conversation([9, 10, 11], [0, 0.5, 1])


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.5))


def big_code():
    return GPTBigCodeForCausalLM(
        GPTBigCodeConfig(
            vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def test_labels_stay_within_a_conversation():
    batch = make_batch([ONE, TWO])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.max_seqlen == 4
    # ids 6, 7 predict 7, 8; ids 9, 10 predict 10, 11; nothing predicts 9 from 8.
    assert batch.label_positions.tolist() == [1, 2, 4, 5]
    assert batch.labels.tolist() == [7, 8, 10, 11]
    assert batch.weights.tolist() == [1, 1, 0.5, 1]


def test_the_trained_weight_equals_the_weight_of_the_batch():
    assert trained_weight(ONE[1]) + trained_weight(TWO[1]) == make_batch([ONE, TWO]).weights.sum()


def test_an_empty_pack_is_one_token_without_weight():
    batch = make_batch([])
    assert batch.input_ids.shape == (1, 1)
    assert weighted_nll(torch.randn(1, 32), batch) == 0


def test_a_pack_without_weight_has_one_label_of_weight_0():
    batch = make_batch([conversation([5, 6, 7], [0, 0, 0])])
    assert batch.weights.tolist() == [0]
    assert weighted_nll(torch.randn(1, 32), batch) == 0


def test_the_loss_is_the_weighted_sum_by_hand():
    batch = make_batch([TWO])
    scores = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    scores = torch.nn.functional.pad(scores, (0, 30), value=-1e9)
    batch.labels[:] = torch.tensor([1, 0])
    by_hand = 0.5 * np.log1p(np.exp(-1.0)) + 1.0 * np.log1p(np.exp(-2.0))
    assert weighted_nll(scores, batch).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED_SDPA])
@pytest.mark.parametrize("make", [llama, big_code])
def test_logits_and_gradients_in_a_pack_equal_those_of_single_conversations(make, attention):
    torch.manual_seed(0)
    model = make()
    register_packed_sdpa()
    model.set_attn_implementation(attention)
    packed = logits(model, make_batch([ONE, TWO]))
    alone = torch.cat([logits(model, make_batch([c])) for c in (ONE, TWO)])
    assert torch.allclose(packed, alone, atol=1e-4)

    weighted_nll(packed, make_batch([ONE, TWO])).backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for c in (ONE, TWO):
        weighted_nll(logits(model, make_batch([c])), make_batch([c])).backward()
    for one, parameter in zip(together, model.parameters(), strict=True):
        assert torch.allclose(one, parameter.grad, atol=1e-4)


def test_the_logits_equal_the_models_at_the_label_positions():
    torch.manual_seed(0)
    model, batch = llama(), make_batch([TWO])
    whole = model(input_ids=batch.input_ids).logits[0]
    assert torch.allclose(logits(model, batch), whole[:2], atol=1e-5)
    assert torch.allclose(logits(model, batch, vocabulary=20), whole[:2, :20], atol=1e-5)


def test_flash_attention_gets_cu_seqlens():
    given = {}

    class Model(torch.nn.Module):
        config = LlamaConfig(attn_implementation="eager")

        def forward(self, input_ids, position_ids, use_cache, logits_to_keep, **arguments):
            given.update(arguments)
            return type("Output", (), {"logits": torch.zeros(1, len(logits_to_keep), 32)})

    model = Model()
    logits(model, make_batch([ONE, TWO]))
    assert given == {}
    model.config._attn_implementation = "flash_attention_2"
    logits(model, make_batch([ONE, TWO]))
    assert given["cu_seq_lens_q"].tolist() == given["cu_seq_lens_k"].tolist() == [0, 4, 7]
    assert given["cu_seq_lens_q"].dtype == torch.int32
    assert given["max_length_q"] == given["max_length_k"] == 4


def test_dynamic_scaling_does_not_depend_on_earlier_conversations():
    """transformers 5.19 would keep the frequencies of the longest input so far."""
    torch.manual_seed(0)
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = LlamaConfig(
        **SIZES, max_position_embeddings=4, initializer_range=0.5, rope_parameters=dynamic
    )
    model = LlamaForCausalLM(config)
    six, twelve = (conversation(range(1, n + 1), [0] + [1] * (n - 1)) for n in (6, 12))
    before = logits(model, make_batch([six]))
    logits(model, make_batch([twelve]))
    assert torch.equal(logits(model, make_batch([six])), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [llama, big_code])
def test_flash_attention_isolates_conversations(make):
    pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    model = make().to("cuda", torch.bfloat16)
    model.set_attn_implementation("flash_attention_2")
    device = torch.device("cuda")
    packed = logits(model, make_batch([ONE, TWO]).to(device))
    alone = torch.cat([logits(model, make_batch([c]).to(device)) for c in (ONE, TWO)])
    assert torch.allclose(packed, alone, atol=5e-2)
