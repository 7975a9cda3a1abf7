"""Training of a hybrid model, whose state would leak between packed conversations."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, FalconH1Config

from ochat_ray.tokenization.tokenizer import end_of_turn_id
from ochat_ray.train.launch import train
from ochat_ray.train.schedule import rate
from ochat_ray.train.tokens import TokenTable
from tests.train.runs import metrics_of, steps_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,  # a separate training
    pytest.mark.usefixtures("local_ray"),
]
STEPS = 3


@pytest.fixture(scope="module")
def hybrid(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("hybrid")
    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, mamba_d_ssm=64, mamba_n_heads=4,
        mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8, initializer_range=0.2,
        bos_token_id=0, eos_token_id=end_of_turn_id(tokenizer), pad_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def loss_of(model, data, split):
    """Return the weighted mean nll, with a plain call per conversation."""
    table, nll, weight = TokenTable(data, split), 0.0, 0.0
    for index in range(len(table.lengths)):
        ids, weights = (torch.from_numpy(part.copy()) for part in table.row(index))
        logits = model(input_ids=ids[None].long(), use_cache=False).logits[0]
        each = cross_entropy(logits[:-1], ids[1:].long(), reduction="none")
        nll, weight = nll + (each * weights[1:]).sum(), weight + weights[1:].sum()
    return nll / weight


def test_a_hybrid_model_trains_as_in_plain_pytorch(configured, data, hybrid, tmp_path, capfd):
    config = configured(
        tmp_path / "m", model=hybrid, sequences_per_step=20, epochs=STEPS, learning_rate=1e-2
    )
    result = train(config)
    assert "see each other (layers: hybrid)" in capfd.readouterr().err
    assert result["attention"]["packed"] is False

    model = AutoModelForCausalLM.from_pretrained(hybrid, dtype=torch.float32)
    with torch.no_grad():
        before = loss_of(model, data, "eval")
    assert result["eval_before"]["loss"] == pytest.approx(before.item(), rel=1e-5)
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.betas, weight_decay=0.0)
    for number, line in enumerate(steps_of(metrics_of(config.output)), 1):
        loss = loss_of(model, data, "train")
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(
                number, total_steps=STEPS, warmup_ratio=config.warmup_ratio, from_zero=False
            )
        optimizer.step()
    assert number == STEPS
    with torch.no_grad():
        after = loss_of(model, data, "eval")
    assert result["eval_after"]["loss"] == pytest.approx(after.item(), rel=1e-3)
    assert after < before - 0.1
