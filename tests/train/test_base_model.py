"""The base model's new token."""

import copy
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ochat_ray.errors import UserError
from ochat_ray.tokenizer import END_OF_TURN, end_of_turn_id
from ochat_ray.train.base_model import add_end_of_turn, load_model, prepare_base


def base(tokenizer, *, tied, rows=None):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows or end_of_turn_id(tokenizer), hidden_size=32, intermediate_size=64,
            num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=tied,
        )
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_the_new_row_is_the_exact_mean_of_all_others(tokenizer, tied):
    model = base(tokenizer, tied=tied)
    before = copy.deepcopy(model.state_dict())
    add_end_of_turn(model, tokenizer)
    for module, name in (
        (model.get_input_embeddings(), "model.embed_tokens.weight"),
        (model.get_output_embeddings(), "lm_head.weight"),
    ):
        old = before[name].numpy().astype("float64")
        assert torch.equal(module.weight[:-1], before[name])
        expected = torch.from_numpy(old.mean(axis=0).astype("float32"))
        assert torch.equal(module.weight[-1], expected)
    assert model.config.vocab_size == end_of_turn_id(tokenizer) + 1
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_padded_vocabulary_keeps_its_size_and_its_padding_does_not_count(tokenizer):
    model = base(tokenizer, tied=False, rows=len(tokenizer) + 20)
    before = model.model.embed_tokens.weight.detach().clone()
    add_end_of_turn(model, tokenizer)
    after = model.model.embed_tokens.weight
    new = end_of_turn_id(tokenizer)
    assert after.shape == before.shape
    expected = torch.from_numpy(before[:new].numpy().astype("float64").mean(0).astype("float32"))
    assert torch.equal(after[new], expected)
    assert torch.equal(after[new + 1 :], before[new + 1 :])


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    model = base(tokenizer, tied=True, rows=10)
    with pytest.raises(UserError, match="10 embeddings"):
        add_end_of_turn(model, tokenizer)


def test_a_directory_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot open a model"):
        load_model(str(tmp_path), torch.float32)


def test_the_base_is_copied_only_when_it_lacks_the_token(tokenizer, tmp_path):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != END_OF_TURN]
    backend = Tokenizer.from_str(json.dumps(state))
    base(tokenizer, tied=True).save_pretrained(tmp_path / "base")
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(
        tmp_path / "base"
    )
    made = prepare_base(str(tmp_path / "base"), tmp_path / "made", "openchat")
    assert made == tmp_path / "made"
    again = load_model(str(made), torch.float32)
    assert again.generation_config.eos_token_id == end_of_turn_id(tokenizer)
    assert prepare_base(str(made), tmp_path / "other", "openchat") == made
    assert not (tmp_path / "other").exists()
