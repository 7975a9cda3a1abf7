"""Loading of the base model, its new token and the extension of its context."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    Emu3Config,
    Gemma3Config,
    Gemma3nTextConfig,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PhimoeConfig,
)

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import (
    add_end_of_turn,
    check_weights,
    extend_context,
    load_config,
    load_model,
    prepare_base,
    without_dropout,
)
from ochat_ray.tokenization.tokenizer import END_OF_TURN, end_of_turn_id
from tests.tiny_models import SIZES


def base(tokenizer, *, tied, rows=None):
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": rows or end_of_turn_id(tokenizer)}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied))


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
        new = end_of_turn_id(tokenizer)
        assert torch.equal(module.weight[:new], before[name])
        expected = torch.from_numpy(old.mean(axis=0).astype("float32"))
        assert torch.equal(module.weight[new], expected)
        assert len(module.weight) % 64 == 0
        assert 0 <= len(module.weight) - new - 1 < 64
    assert model.config.vocab_size == len(model.lm_head.weight)
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


def test_embeddings_of_each_layer_get_the_mean_row_too(tokenizer):
    model = AutoModelForCausalLM.from_config(
        Gemma3nTextConfig(
            vocab_size=end_of_turn_id(tokenizer), vocab_size_per_layer_input=200, hidden_size=16,
            intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, hidden_size_per_layer_input=4, laurel_rank=4,
            num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
        )
    )  # fmt: skip
    before = model.model.embed_tokens_per_layer.weight.detach().clone()
    add_end_of_turn(model, tokenizer)
    after = model.model.embed_tokens_per_layer.weight[end_of_turn_id(tokenizer)]
    assert torch.equal(after, before.double().mean(0).float())


def test_a_tokenizer_of_another_model_is_rejected(tokenizer):
    model = base(tokenizer, tied=True, rows=10)
    with pytest.raises(UserError, match="10 embeddings"):
        add_end_of_turn(model, tokenizer)


def test_a_directory_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot open a model"):
        load_model(str(tmp_path), torch.float32)


def test_a_base_with_an_adapter_beside_its_weights_is_refused(tokenizer, tmp_path):
    """transformers adds it to the model."""
    path = str(tmp_path)
    base(tokenizer, tied=True).save_pretrained(path)
    check_weights(path, allow_pickle=False)
    adapted = get_peft_model(load_model(path, torch.float32), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(path)
    for opens in (
        lambda: check_weights(path, allow_pickle=False),
        lambda: load_model(path, "auto"),
    ):
        with pytest.raises(UserError, match=r"has an adapter \(adapter_config.json\)"):
            opens()


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
    made = prepare_base(str(tmp_path / "base"), tmp_path / "made")
    assert made == tmp_path / "made"
    again = load_model(str(made), torch.float32)
    assert again.config.vocab_size == len(again.lm_head.weight) > end_of_turn_id(tokenizer)
    assert prepare_base(str(made), tmp_path / "other") == made
    assert not (tmp_path / "other").exists()


def extended(context, **options):
    config = LlamaConfig(max_position_embeddings=2048)
    extend_context(config, context, **{"extrapolate": False, "rope_scaling": None} | options)
    return config.max_position_embeddings, config.rope_parameters


def test_a_context_that_fits_changes_nothing():
    assert extended(2048) == (2048, {"rope_theta": 10000.0, "rope_type": "default"})


def test_openchat_8192_extrapolates_as_in_2023():
    positions, rope = extended(8192, extrapolate=True)
    assert positions == 8192
    assert rope["rope_type"] == "default"


@pytest.mark.parametrize(
    ("kind", "positions", "rope"),
    [
        ("linear", 8192, {"factor": 4.0}),
        ("yarn", 8192, {"factor": 4.0, "original_max_position_embeddings": 2048}),
        ("dynamic", 2048, {"factor": 4.0}),
    ],
)
def test_scalings_are_those_of_transformers(kind, positions, rope):
    expected = {"rope_theta": 10000.0, "rope_type": kind, **rope}
    assert extended(8192, rope_scaling=kind) == (positions, expected)


def test_the_context_of_a_model_with_images_is_that_of_its_text_config():
    config = Gemma3Config(text_config={"max_position_embeddings": 2048})
    with pytest.raises(UserError, match=r"the model one of 2,048; .* --max-length 2048, or extend"):
        extend_context(config, 4096, extrapolate=False, rope_scaling=None)
    extend_context(config, 4096, extrapolate=True, rope_scaling=None)
    assert config.text_config.max_position_embeddings == 4096


def test_an_impossible_context_is_one_clear_line():
    with pytest.raises(UserError, match="context of 4,096 tokens, the model one of 2,048; prepare"):
        extended(4096)
    with pytest.raises(UserError, match="--rope-scaling linear has no effect"):
        extended(1024, rope_scaling="linear")
    with pytest.raises(UserError, match="1,024 learned positions"):
        extend_context(
            GPTBigCodeConfig(n_positions=1024), 8192, extrapolate=True, rope_scaling=None
        )


def test_gpt_big_code_trains_without_dropout():
    config = without_dropout(GPTBigCodeConfig(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
    model = GPTBigCodeForCausalLM(config).train()
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(rates) >= 3
    assert set(rates) == {0.0}
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_of_nested_configurations_is_removed():
    config = without_dropout(Emu3Config())
    assert config.text_config.attention_dropout == 0.0
    assert without_dropout(PhimoeConfig()).router_jitter_noise == 0.0


def test_layerdrop_is_removed():
    assert without_dropout(OPTConfig(layerdrop=0.5)).layerdrop == 0.0
    assert without_dropout(BartConfig(decoder_layerdrop=0.5)).decoder_layerdrop == 0.0


@pytest.mark.parametrize(
    "changes",
    [None, {"hidden_size": "64"}, {"num_attention_heads": 0}, {"dtype": "float7"},
     {"rope_parameters": {"rope_type": "yarn"}}, {"model_type": ["llama"]}],
)  # fmt: skip
def test_a_damaged_configuration_is_one_clear_line(changes, tmp_path):
    content = None if changes is None else {"model_type": "llama"} | changes
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot open a model"):
        load_config(str(tmp_path))


def test_the_saved_attention_implementation_is_ignored(tmp_path):
    content = {"model_type": "llama", "attn_implementation": "flash_attention_2"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_config(str(tmp_path))._attn_implementation is None


def pickled(tokenizer, directory, rows=None):
    model = base(tokenizer, tied=True, rows=rows)
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    return str(directory)


def test_pickled_weights_are_loaded_only_with_the_flag(tokenizer, tmp_path):
    path = pickled(tokenizer, tmp_path)
    with pytest.raises(UserError, match="trust it with --allow-pickle"):
        check_weights(path, allow_pickle=False)
    with pytest.raises(UserError, match="cannot open a model"):
        load_model(path, torch.float32)
    check_weights(path, allow_pickle=True)
    made = prepare_base(path, tmp_path / "made", allow_pickle=True)
    check_weights(str(made), allow_pickle=False)
    with pytest.raises(UserError, match="--allow-pickle has no effect"):
        check_weights(str(made), allow_pickle=True)


def test_an_end_of_turn_token_that_the_base_has_keeps_its_embedding(tokenizer, tmp_path):
    path = pickled(tokenizer, tmp_path, rows=end_of_turn_id(tokenizer) + 1)
    made = prepare_base(path, tmp_path / "made", allow_pickle=True)
    before, after = (
        load_model(str(at), "auto", allow_pickle=at == tmp_path).lm_head.weight
        for at in (tmp_path, made)
    )
    assert torch.equal(after, before)


def test_an_end_of_turn_token_that_only_the_tokenizer_has_gets_an_embedding(tokenizer, tmp_path):
    base(tokenizer, tied=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = prepare_base(str(tmp_path), tmp_path / "made")
    assert load_config(str(made)).vocab_size > end_of_turn_id(tokenizer)


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.json").write_text("{}")
    with pytest.raises(UserError, match="has no weights"):
        check_weights(str(tmp_path), allow_pickle=False)


def test_code_in_a_model_directory_is_not_run(tmp_path):
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "modeling.Config"}})
    )
    with pytest.raises(UserError, match="cannot open a model"):
        load_config(str(tmp_path))
