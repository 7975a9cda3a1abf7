"""Comparison of a GGUF file's tokenizer with the directory's."""

import json

import pytest

from ochat_ray.export.gguf_tokenizer import Prompt, Vocabulary, differences, read_vocabulary

VOCABULARY = Vocabulary(
    tokens={0: "a", 1: "b", 2: "ab", 3: "<|end|>", 4: "<tool>"},
    added={3: True, 4: False},
    merges=(("a", "b"),),
)
PROMPT = Prompt(template="{{ x }}", bos=None, starts_with_bos=False, writes_bos=False, end=3)
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>", "<tool>", "[PAD5]"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 4, 5],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{{ x }}",
}


def test_an_equal_tokenizer_has_no_difference():
    assert differences(METADATA, VOCABULARY, PROMPT) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"tokenizer.ggml.tokens": ["b", "a", "ab", "<|end|>", "<tool>", "[PAD5]"]},
         ["2 tokens differ, first 0 ('a')"]),
        ({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]},
         ["4 tokens differ, first 1 ('b')"]),
        ({"tokenizer.ggml.token_type": [1, 1, 1, 1, 4, 5]},
         ["1 tokens have another type, first 3 ('<|end|>')"]),
        ({"tokenizer.ggml.token_type": [3, 1, 1, 3, 4, 5]},
         ["1 tokens have another type, first 0 ('a')"]),
        ({"tokenizer.ggml.token_type": [1, 1, 1, 3, 4, 1]},
         ["1 tokens are not in tokenizer.json, first 5 ('not in tokenizer.json')"]),
        ({"tokenizer.ggml.token_type": [1]}, ["it has 6 tokens and 1 types of them"]),
        ({"tokenizer.ggml.merges": ["b a"]}, ["its merges differ"]),
        ({"tokenizer.ggml.merges": None}, ["it has no merges"]),
        ({"tokenizer.chat_template": "{{ x }}\n"}, ["its chat template is another one"]),
        ({"tokenizer.ggml.eos_token_id": 2},
         ["none of its end tokens (eos 2, eot None) is the end of turn, 3"]),
        ({"tokenizer.ggml.add_bos_token": True},
         ["add_bos_token is True, but a prompt of the directory has no BOS"]),
    ],
)  # fmt: skip
def test_each_difference_is_named(changed, expected):
    assert differences(METADATA | changed, VOCABULARY, PROMPT) == expected


def test_the_end_of_turn_may_be_eot():
    metadata = METADATA | {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 3}
    assert differences(metadata, VOCABULARY, PROMPT) == []


@pytest.mark.parametrize(
    ("model", "flag", "writes", "starts", "differs"),
    [
        ("gpt2", None, False, False, False),
        ("gpt2", None, True, True, False),  # the template writes it
        ("gpt2", True, True, True, False),  # llama.cpp does not add a second one
        ("gpt2", None, False, True, True),
        ("llama", None, False, True, False),  # SentencePiece: added by default
        ("llama", None, False, False, True),
        ("llama", False, False, False, False),
    ],
)
def test_bos_begins_a_prompt_in_llama_cpp_as_in_the_directory(model, flag, writes, starts, differs):
    metadata = METADATA | {"tokenizer.ggml.model": model, "tokenizer.ggml.bos_token_id": 0}
    if flag is not None:
        metadata["tokenizer.ggml.add_bos_token"] = flag
    prompt = Prompt(template="{{ x }}", bos=0, starts_with_bos=starts, writes_bos=writes, end=3)
    assert bool(differences(metadata, VOCABULARY, prompt)) == differs


def test_another_bos_is_named():
    metadata = METADATA | {"tokenizer.ggml.bos_token_id": 1}
    prompt = Prompt(template="{{ x }}", bos=0, starts_with_bos=False, writes_bos=False, end=3)
    assert differences(metadata, VOCABULARY, prompt) == ["its BOS is 1, not 0"]


@pytest.mark.parametrize("merge", ["a b", ["a", "b"]])
def test_tokenizer_json_is_read_in_both_forms_of_merges(tmp_path, merge):
    added = [{"id": 3, "content": "<|end|>", "special": True}]
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [merge]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    found = read_vocabulary(tmp_path / "tokenizer.json")
    assert found.tokens == {0: "a", 1: "b", 2: "ab", 3: "<|end|>"}
    assert (found.added, found.merges) == ({3: True}, (("a", "b"),))


def test_tokenizer_json_of_a_unigram_model_has_no_merges(tmp_path):
    model = {"vocab": [["a", -1.5], ["b", -2.0]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    found = read_vocabulary(tmp_path / "tokenizer.json")
    assert (found.tokens, found.merges) == ({0: "a", 1: "b"}, None)
