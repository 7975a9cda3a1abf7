"""Ids of the chat template in transformers' AutoTokenizer, compared with those of `encode`."""

import copy
import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ochat_ray.demo import assets
from ochat_ray.errors import UserError
from ochat_ray.tokenization.exported_tokenizer import EXACT_TEMPLATE, export_tokenizer
from ochat_ray.tokenization.segment_marks import add_marks, remove_marks
from ochat_ray.tokenization.template import encode
from ochat_ray.tokenization.tokenizer import (
    END_OF_TURN,
    encode_texts,
    load_tokenizer,
    probe,
    tokenizer_digest,
)

SENTENCES = ["Human: How do I sort a list in Python?", "Assistant: Use sorted(x)  # 2 4 8"] * 20


def sentencepiece_model() -> bytes:
    """A small model with LLaMA's settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def changed(tokenizer, change):
    """A copy, after a change to its backend."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    change(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def as_it_is(_backend):
    pass


def like_smollm2_and_qwen(backend):
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def like_gpt_neox(backend):
    """Runs of blanks are added tokens, found in the text before anything else."""
    backend.add_tokens([AddedToken(" " * n, special=False, normalized=True) for n in (2, 3, 4)])
    backend.add_tokens([AddedToken("<raw>", special=False, normalized=False, lstrip=True)])


def with_blank_in_front(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def with_names_that_overlap(backend):
    backend.add_special_tokens(["##", "#<", "aXa", "'\\n\"", "🙂你"])


def as_llama_was_first_converted(backend):
    """With special tokens that are looked for after the normalizer."""
    tokenizer = json.loads(backend.to_str())
    for token in tokenizer["added_tokens"]:
        token["normalized"] = token["special"]
    assert any(token["normalized"] for token in tokenizer["added_tokens"])
    rebuilt = Tokenizer.from_str(json.dumps(tokenizer))
    backend.__setstate__(rebuilt.__getstate__())


def with_metaspace(backend):
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)


def with_added_tokens(backend):
    backend.add_tokens([AddedToken("<raw>", special=False, normalized=False)])


CHANGES = {
    "byte-level": [
        *(like_smollm2_and_qwen, like_gpt_neox, with_blank_in_front, with_names_that_overlap),
    ],
    "sentencepiece": [as_llama_was_first_converted, with_metaspace, with_added_tokens],
}
KINDS = [(base, change) for base, changes in CHANGES.items() for change in (as_it_is, *changes)]
NAMES = [f"{base} {change.__name__}".replace("_", " ") for base, change in KINDS]


@pytest.fixture(scope="module")
def bases(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece")
    (path / "tokenizer.model").write_bytes(sentencepiece_model())
    return {"byte-level": tokenizer, "sentencepiece": load_tokenizer(str(path))}


@pytest.fixture(scope="module", params=KINDS, ids=NAMES)
def original(request, bases):
    base, change = request.param
    return changed(bases[base], change)


@pytest.fixture(scope="module", params=["openchat", "opencoder"])
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def directory(original, model_type, tmp_path_factory):
    """As train writes it: beside a config.json, for whose sake AutoTokenizer may choose a class."""
    path = tmp_path_factory.mktemp("exported")
    export_tokenizer(original, model_type).save_pretrained(path)
    config = {"openchat": "llama", "opencoder": "gpt_bigcode"}[model_type]
    (path / "config.json").write_text(json.dumps({"model_type": config}))
    return str(path)


@pytest.fixture(scope="module")
def opened(directory):
    return AutoTokenizer.from_pretrained(directory)


def exact_template(tokenizer):
    written = Path(tokenizer.name_or_path, EXACT_TEMPLATE)
    return getattr(tokenizer, "exact_chat_template", None) or written.read_text()


def applied(tokenizer, turns, **options):
    messages = [{"role": turn["role"], "content": turn["text"]} for turn in turns]
    return tokenizer.apply_chat_template(
        messages, chat_template=exact_template(tokenizer), return_dict=False, **options
    )


def turns_of(*texts, first="user"):
    roles = ["system", "user", "assistant", "user", "assistant"]
    roles = roles[roles.index(first) :]
    return [{"role": r, "text": t} for r, t in zip(roles, texts, strict=False)]


NASTY = [
    *(
        "",
        " ",
        "  two leading",
        " leading",
        "\n",
        "\n\n x",
        "\t",
        "trailing \n",
        "12 345",
        "🙂👍🏽",
    ),
    *("Human: ", "Human: hello", "Assistant: ", "GPT4 Human: x", "\u0301e\u0301", "한\u1161글"),
    *("<s>", "a<s>b", "</s><s>", "<|end_of_turn|>", "<<s>>", "<|end_of_turn<|end_of_turn|>|>"),
    *(
        "<raw>",
        "  <raw> x",
        "#",
        "###",
        "##<##",
        "aXaXaXa",
        "'\\n\"",
        "🙂你 🙂",
        "▁",
        "▁▁x",
        "\x00",
    ),
]
TEXTS = st.text() | st.lists(st.sampled_from(NASTY) | st.text(max_size=1), max_size=8).map("".join)
TEXTS = TEXTS.map(lambda text: text.replace("\ufdd0", "").replace("\ufdd1", ""))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(TEXTS, min_size=1, max_size=4),
    st.sampled_from(["system", "user"]),
    st.booleans(),
    st.sampled_from(["", "GPT4", " <s>x"]),
)
@example(["x"] * 4, "system", True, "")
def test_the_chat_template_gives_the_ids_of_encode(
    opened, original, model_type, texts, first, add_generation_prompt, condition
):
    turns = turns_of(*texts, first=first)
    options = {"add_generation_prompt": add_generation_prompt, "condition": condition}
    assert applied(opened, turns, **options) == encode(turns, model_type, original, **options)[0]


@pytest.mark.parametrize("first", ["system", "user"])
def test_nasty_texts_in_every_place(opened, original, model_type, first):
    for text in NASTY:
        for turns in (turns_of(text, text, text, first=first), turns_of("", text, first=first)):
            assert applied(opened, turns) == encode(turns, model_type, original)[0], text


def test_a_conversation_s_segments_are_each_tokenised_alone(tmp_path):
    """Against the sentencepiece library."""
    model = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(model)
    exported = export_tokenizer(load_tokenizer(str(tmp_path)), "openchat")
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    end = reference.vocab_size()
    segments = ["Human: ", " sort 12", None, "Assistant: ", "Use <s>", None, "Assistant: "]
    expected = [id for s in segments for id in ([end] if s is None else reference.encode(s))]
    turns = turns_of(" sort 12", "Use <s>")
    ids = applied(exported, turns, add_generation_prompt=True)
    assert ids == [reference.bos_id(), *expected]


def test_the_demo_s_tokenizer():
    path = assets.cache_dir() / "smollm2-135m-instruct"
    if not path.exists():
        pytest.skip("the demo's base model was not fetched yet: python -m ochat_ray.demo.assets")
    tokenizer = load_tokenizer(str(path))
    exported = export_tokenizer(tokenizer, "openchat")
    for text in NASTY:
        turns = turns_of(text, text, text, text)
        assert applied(exported, turns) == encode(turns, "openchat", tokenizer)[0]


def test_what_is_exported_is_the_same_tokenizer_for_texts_and_for_our_jobs(
    opened, original, directory
):
    assert encode_texts(NASTY, opened) == encode_texts(NASTY, original)
    assert tokenizer_digest(opened) == tokenizer_digest(original)
    probe(opened, directory)
    loaded = load_tokenizer(directory)
    assert tokenizer_digest(loaded) == tokenizer_digest(original)
    marks = ["a\ufdd0b", "\ufdd1", "<\ufdd1s>"]
    assert encode_texts(marks, loaded) == encode_texts(marks, original)


def test_an_exported_tokenizer_exported_again_is_the_same(opened, model_type, directory, tmp_path):
    for number, again in enumerate((opened, load_tokenizer(directory))):
        path = tmp_path / str(number)
        export_tokenizer(again, model_type).save_pretrained(path)
        for name in ("tokenizer.json", "chat_template.jinja", EXACT_TEMPLATE):
            assert (path / name).read_text() == Path(directory, name).read_text()


def test_the_original_tokenizer_is_not_changed(tokenizer):
    before, template = tokenizer.backend_tokenizer.to_str(), copy.copy(tokenizer.chat_template)
    export_tokenizer(tokenizer, "openchat")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.chat_template == template


def test_an_answer_ends_at_the_end_of_turn_token(opened, directory):
    """In the tokenizer too, since converters to GGUF read no other file."""
    config = json.loads(Path(directory, "tokenizer_config.json").read_bytes())
    assert opened.eos_token == config["eos_token"] == END_OF_TURN


def test_the_base_s_eos_stays_a_special_token(tokenizer, tmp_path):
    base = copy.deepcopy(tokenizer)
    base.add_special_tokens({"eos_token": "</s>"})
    export_tokenizer(base, "openchat").save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.all_special_tokens == ["<s>", END_OF_TURN, "</s>"]
    assert opened("a", add_special_tokens=True)["input_ids"] == base("a")["input_ids"]


def test_transformers_4_can_read_the_configuration(directory):
    """It knows no class TokenizersBackend, and `extra_special_tokens` as a mapping only."""
    config = json.loads(Path(directory, "tokenizer_config.json").read_bytes())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in config


def test_the_default_template_writes_plain_text(opened, model_type):
    """For programs that do not act on marks: llama.cpp made 12 tokens of them."""
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi <s>"},
        {"role": "assistant", "content": "yes"},
    ]
    rendered = opened.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, condition="GPT4"
    )
    assert rendered == {
        "openchat": "<s>S<|end_of_turn|>GPT4 Human: hi <s><|end_of_turn|>GPT4 Assistant: yes"
        "<|end_of_turn|>GPT4 Assistant: ",
        "opencoder": "S<|end_of_turn|>GPT4 User:hi <s><|end_of_turn|>GPT4 Assistant:yes"
        "<|end_of_turn|>GPT4 Assistant:",
    }[model_type].replace("<s>S", f"{opened.bos_token}S")


def test_typed_marks_are_removed(tokenizer):
    exported = export_tokenizer(tokenizer, "openchat")
    typed = turns_of("he\ufdd0llo <\ufdd1s>", "\ufdd1")
    clean = turns_of("hello <s>", "")
    assert applied(exported, typed) == encode(clean, "openchat", tokenizer)[0]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "robot", "content": "x"}, "unknown role robot; roles are system, user and as"),
        ({"role": "user", "content": None}, "a content that is a string"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "that is a string"),
    ],
)
def test_a_message_that_the_template_does_not_support_is_rejected(tokenizer, message, problem):
    exported = export_tokenizer(tokenizer, "openchat")
    for template in (exported.chat_template, exported.exact_chat_template):
        with pytest.raises(TemplateError, match=problem):
            exported.apply_chat_template([message], chat_template=template)


def with_a_name_too_short_for_a_mark(backend):
    backend.add_special_tokens(["🙂"])


def with_a_prefix_for_the_first_word_alone(backend):
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("byte-level", with_a_name_too_short_for_a_mark),
        ("sentencepiece", with_a_prefix_for_the_first_word_alone),
    ],
)
def test_a_tokenizer_whose_ids_no_chat_template_can_give_is_rejected(bases, base, change):
    with pytest.raises(UserError, match="no chat template can give this tokenizer's ids"):
        export_tokenizer(changed(bases[base], change), "openchat")


PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@pytest.mark.parametrize(
    "normalizer",
    [
        *(None, PREPEND, REPLACE),
        {"type": "Sequence", "normalizers": []},
        {"type": "Sequence", "normalizers": [PREPEND]},
        {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [PREPEND]}]},
    ],
)
@pytest.mark.parametrize(
    "pre_tokenizer", [None, {"type": "ByteLevel"}, {"type": "Sequence", "pretokenizers": []}]
)
def test_the_steps_for_marks_are_removed_completely(normalizer, pre_tokenizer):
    tokenizer = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "added_tokens": []}
    assert remove_marks(tokenizer) == tokenizer
    assert remove_marks(add_marks(tokenizer)) == tokenizer
    assert add_marks(add_marks(tokenizer)) == add_marks(tokenizer)


def test_the_end_of_turn_token_stays_special_for_others(opened):
    ids = opened(END_OF_TURN, add_special_tokens=False)["input_ids"]
    assert len(ids) == 1
    assert opened.decode(ids, skip_special_tokens=True) == ""
