"""Chunked loss compared with the plain loss, and detection of plain heads."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ochat_ray.train import chunked_loss
from ochat_ray.train.batch import make_batch, weighted_nll
from ochat_ray.train.chunked_loss import chunked_evaluation, chunked_nll, has_plain_head
from ochat_ray.train.forward import logits
from tests.tiny_models import SIZES


def model(family, dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | {"max_position_embeddings": 64} | options)
    made = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    for weight in made.parameters():  # logits that differ by several units
        torch.nn.init.normal_(weight, std=0.3)
    made.config.use_cache = False
    return made.eval()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    weights = rng.choice([0.0, 0.5, 1.0], 40).astype(np.float32)
    return make_batch([(rng.integers(1, 80, 40).astype(np.int32), weights)])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", [1, 7, 13])
@pytest.mark.parametrize(
    ("family", "options", "vocabulary"),
    [
        ("llama", {}, None),
        ("llama", {"tie_word_embeddings": True}, 85),
        ("phi", {}, 85),  # its head has a bias
    ],
)
def test_loss_and_gradients_equal_those_of_the_plain_loss(
    monkeypatch, batch, family, options, vocabulary, rows
):
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", rows * (vocabulary or 90))
    chosen = model(family, **options)
    assert has_plain_head(chosen)
    plain = weighted_nll(logits(chosen, batch, vocabulary=vocabulary), batch)
    expected = gradients(chosen, plain)
    ours = chunked_nll(chosen, batch, vocabulary=vocabulary)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    computed = gradients(chosen, ours)
    assert computed.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (computed[name] - gradient).norm() <= 1e-6 * norm, name


def test_the_evaluation_equals_that_of_plain_logits(monkeypatch, batch):
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 500)
    chosen = model("llama")
    scores = logits(chosen, batch, vocabulary=85)
    best = scores.argmax(-1)
    id = int(best.mode().values)
    nll, hits = chunked_evaluation(chosen, batch, id, vocabulary=85)
    assert nll.item() == pytest.approx(weighted_nll(scores, batch).item(), rel=1e-6)
    assert torch.equal(hits, best == id)


def test_in_bfloat16_the_weights_gradient_is_summed_in_float32(monkeypatch, batch):
    """Ten chunks summed in bfloat16 would differ more from the plain bfloat16 gradient."""
    chosen = model("llama", torch.bfloat16)
    expected = gradients(chosen, weighted_nll(logits(chosen, batch), batch))["lm_head.weight"]
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 3 * 90)
    computed = gradients(chosen, chunked_nll(chosen, batch))["lm_head.weight"]
    assert (computed - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_heads_that_cap_or_scale_their_logits_are_not_plain(family, options):
    assert not has_plain_head(model(family, **options))


@pytest.mark.parametrize(
    ("family", "options"),
    [("gemma", {"head_dim": 8}), ("cohere", {"logit_scale": 1.0}), ("gpt_bigcode", {})],
)
def test_heads_of_other_families_are_plain(family, options):
    assert has_plain_head(model(family, **options))


def test_memory_holds_the_logits_of_one_chunk(monkeypatch, batch):
    """No tensor of the forward and backward pass has as many elements as the pack's logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor) and out.shape[1:] == (2000,) and len(out) != 32:
                largest.append(out.numel())
            return out

    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 4 * 2000)
    chosen = model("llama", vocab_size=2000)
    with Largest():
        chunked_nll(chosen, batch).backward()
    assert max(largest) == 4 * 2000
    assert len(batch.labels) > 20
