"""Open a tokenizer so that it gives the reference ids, or reject it with a one-line error.

transformers 5 does not choose the tokenizer's class here. Its AutoTokenizer (seen in 5.19) rebuilds
a LLaMA tokenizer from the vocabulary: from `tokenizer.model` alone it orders merges by id instead
of by score, which gives other ids for every indented line of code; and regardless of
`tokenizer_config.json`, a text that begins with a space loses that space or its leading-space
piece. Here `tokenizer.json` is used unchanged, and a SentencePiece model is converted by
`sentencepiece_bpe`. `probe` then checks the result at the start of every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError, first_line
from ochat_ray.models.model_directory import on_this_host
from ochat_ray.tokenization.segment_marks import BORDER, remove_marks, specials_as_written

END_OF_TURN = "<|end_of_turn|>"

PROBE_TEXTS = (
    "",
    "Human: ",
    "Hello, world! It's 3.14159 and 2023-07-01.",
    "User:",
    " leading",
    "  two leading",
    "trailing ",
    "in   between",
    " ",
    *(" " * count for count in (2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33)),
    "\n",
    "\n\n\n",
    "def f(x):\n    if x:\n\t\treturn  x  # done\n\n\n",
    "a\tb\r\nc\r\n",
    "NUL \x00 and \x07 and \x7f",
    "no-break\u00a0blank, thin\u2009blank, zero\u200bwidth, \ufeffmark",
    "你好，世界。こんにちは 안녕하세요",
    "naïve café, Привет, مرحبا, שלום, हिन्दी",
    "🙂👍🏽👩\u200d👩\u200d👧\u200d👦🇪🇺",
    "\u16a0\ue000\ufffd\U00010348\U0010fffd",  # runes, private use, Gothic, the last plane
    "snake_case CamelCase <tag/> \\( x^2 \\)",
    "<0x0A> </s> [INST] ##x <|x|>",
    "=" * 80 + "-" * 41 + "aaaa ababababa",
    "lopado" * 500,
)
"""Texts that a conversation may contain and that a tokenizer may distort.

They are in NFC: a tokenizer that first composes characters (GPT-NeoX, Qwen) keeps such text as a
reader sees it.
"""


def load_tokenizer(path: str) -> Any:
    """Return a probed transformers tokenizer with the end-of-turn token, appended if absent.

    `path` is a Hugging Face directory, its URI, or the name of a Hub repository, with
    `tokenizer.json` or only a LLaMA-style SentencePiece `tokenizer.model`.

    Raises:
        UserError: There is no tokenizer at `path`, or it would distort the text.
    """
    tokenizer = open_tokenizer(path)
    tokenizer.chat_template = None  # the base's, which is not in use
    if END_OF_TURN not in tokenizer.get_added_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [END_OF_TURN]})
    probe(tokenizer, path)
    return tokenizer


def open_tokenizer(path: str) -> Any:
    """Return the tokenizer at `path` as it is on disk, without what an export of ours added.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    return _without_marks(_open(path))


def has_end_of_turn(path: str) -> bool:
    """Return whether the tokenizer at `path` has the end-of-turn token on disk."""
    return END_OF_TURN in _open(path).get_added_vocab()


def end_of_turn_id(tokenizer: Any) -> int:
    """Return the id of the end-of-turn token.

    Of a tokenizer from `load_chat_tokenizer` it is the EOS token, which its template writes.

    Raises:
        UserError: The tokenizer has no such token.
    """
    if hasattr(tokenizer, "chat_ends"):
        return int(tokenizer.eos_token_id)
    ids = tokenizer.get_added_vocab()
    if END_OF_TURN not in ids:
        raise UserError(
            f"the tokenizer has no {END_OF_TURN} token; open it with "
            "ochat_ray.tokenizer.load_tokenizer, which adds it"
        )
    return int(ids[END_OF_TURN])


def ends_of_turn(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: one, or several of a model with its own chat template."""
    if hasattr(tokenizer, "chat_ends"):
        return tuple(tokenizer.chat_ends)
    return (end_of_turn_id(tokenizer),)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 (hex) of the parts of tokenizer.json that determine ids.

    Truncation and padding are excluded. An exported tokenizer has the digest of its original.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    written = backend.to_str()
    added = backend.get_added_tokens_decoder().values()
    if BORDER in written or any(token.special and token.normalized for token in added):
        canonical = specials_as_written(remove_marks(json.loads(written)))
        written = type(backend).from_str(json.dumps(canonical)).to_str()
    return hashlib.sha256(written.encode()).hexdigest()


def encode_texts(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Encode texts as text only: special-token names are spelled out, nothing is added or cut.

    This calls the `tokenizers` library without transformers in between, which would also compute
    offsets and keep a second copy of every list.
    """
    backend = tokenizer.backend_tokenizer
    # transformers leaves the settings of its last caller on the backend, and sets all three again
    # on its next call, so changing them here affects no other caller.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def probe(tokenizer: Any, path: str) -> None:
    """Check within milliseconds that a tokenizer preserves text and keeps special tokens separate.

    For every text of `PROBE_TEXTS` and each special token typed as text, the ids must lie in the
    vocabulary, contain no special token, be the same on repetition and in a batch, and decode to
    the text (except for one leading space, SentencePiece's dummy prefix, if the decoder does not
    strip it). If `path` has a SentencePiece `tokenizer.model`, the ids must also equal those of the
    `sentencepiece` library, if that can be imported.

    Raises:
        UserError: A check failed; the line names the text and what to do.
    """
    special = {
        id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    typed = [f"{before}{token}{after}" for token in special.values() for before, after in _AROUND]
    texts = [*PROBE_TEXTS, *typed]
    reference = _sentencepiece_ids(path, PROBE_TEXTS)
    encoded = encode_texts(texts, tokenizer)
    again = [encode_texts([text], tokenizer)[0] for text in texts]
    for text, ids, alone, expected in zip(
        texts, encoded, again, [*reference, *([None] * len(typed))], strict=True
    ):
        problem = _problem(text, ids, alone, expected, special, tokenizer.backend_tokenizer)
        if problem:
            raise UserError(
                f"the tokenizer at {path} cannot be used: the text {_shown(text)} {problem}"
            )
    if END_OF_TURN in tokenizer.get_added_vocab() and END_OF_TURN not in special.values():
        raise UserError(
            f"the tokenizer at {path} has {END_OF_TURN} as an ordinary token, which anybody could "
            'type; set "special": true for it in tokenizer.json'
        )


_AROUND = (("", ""), ("a ", "b"))


def _problem(
    text: str,
    ids: list[int],
    alone: list[int],
    expected: list[int] | None,
    special: dict[int, str],
    backend: Any,
) -> str | None:
    """Describe the fault in one text's ids and its remedy; None if there is none."""
    if ids != alone:
        return "gives other ids a second time; disable dropout in tokenizer.json"
    if any(backend.id_to_token(id) is None for id in set(ids)):
        return "gives an id outside the vocabulary; tokenizer.json is damaged, fetch it again"
    for id in ids:
        if id in special:
            return (
                f"gives the special token {special[id]}; use a tokenizer.json whose vocabulary "
                "can spell every text"
            )
    if expected is not None and ids != expected:
        return (
            "gives other ids from tokenizer.json than from tokenizer.model; "
            "remove the one that the model was not trained with"
        )
    decoded = backend.decode(ids, skip_special_tokens=False)
    if decoded not in (text, " " + text):
        return (
            f"is decoded to {_shown(decoded)}; use the model's original tokenizer.model or a "
            "tokenizer.json that keeps text as it is"
        )
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _open(path: str) -> Any:
    """Open the tokenizer as it is on disk, without probing it.

    Raises:
        UserError: There is no tokenizer, or it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import; not every caller needs it

    if find_file(path, "tokenizer.json"):
        try:
            return PreTrainedTokenizerFast.from_pretrained(on_this_host(path, weights=False))
        except Exception as error:  # `tokenizers` has no exception class for damaged files
            raise UserError(
                f"the tokenizer at {path} cannot be read ({first_line(error, 200)}); fetch it again"
            ) from error
    model = find_file(path, "tokenizer.model")
    if model is None:
        raise UserError(
            f"no tokenizer at {path}: expected a Hugging Face directory with tokenizer.json, or "
            "with a SentencePiece tokenizer.model"
        )
    return _convert(model, path)


def _without_marks(tokenizer: Any) -> Any:
    """Undo the changes of `exported_tokenizer`, so that typed noncharacters are ordinary text.

    The chat template is removed as well: it needs a tokenizer that acts on its marks.
    """
    backend = tokenizer.backend_tokenizer
    written = backend.to_str()
    if BORDER not in written:
        return tokenizer
    marked = json.loads(written)
    plain = remove_marks(marked)
    if plain != marked:
        tokenizer._tokenizer = type(backend).from_str(json.dumps(plain))
        tokenizer.chat_template = None
    return tokenizer


def _convert(model: Path, path: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        from ochat_ray.tokenization import sentencepiece_bpe
    except ImportError as error:
        raise UserError(
            f"{path} has only a SentencePiece tokenizer.model; to convert it: "
            "pip install sentencepiece protobuf"
        ) from error
    try:
        converted = sentencepiece_bpe.convert(model.read_bytes())
    except ValueError as error:
        raise UserError(
            f"tokenizer.model at {path} {error}; put the model's tokenizer.json next to it"
        ) from error
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converted.backend,
        bos_token=converted.bos,
        eos_token=converted.eos,
        unk_token=converted.unk,
        pad_token=converted.pad,
        # For other programs that open what train exports; `template.encode` adds its own.
        add_bos_token=converted.bos is not None,
    )
    for id, token in sorted(_added_on_disk(path).items()):
        if id >= len(tokenizer):
            tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        if tokenizer.convert_tokens_to_ids(token) != id:
            raise UserError(
                f"the tokenizer at {path} gives {token} the id {id}, where tokenizer.model has "
                "another; put the model's tokenizer.json next to it"
            )
    return tokenizer


def _added_on_disk(path: str) -> dict[int, str]:
    """Return the tokens, by id, that slow tokenizers stored next to `tokenizer.model`."""
    added: dict[int, str] = {}
    try:
        if old := find_file(path, "added_tokens.json"):
            added |= {int(id): token for token, id in json.loads(old.read_bytes()).items()}
        if config := find_file(path, "tokenizer_config.json"):
            tokens = json.loads(config.read_bytes()).get("added_tokens_decoder", {})
            added |= {int(id): token["content"] for id, token in tokens.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"the tokenizer's JSON files at {path} cannot be read ({first_line(error, 200)}); "
            "fetch them again"
        ) from error
    return added


def _sentencepiece_ids(path: str, texts: Iterable[str]) -> list[list[int] | None]:
    """Return the ids of the `sentencepiece` library; Nones if there is nothing to compare with."""
    nothing: list[list[int] | None] = [None for _ in texts]
    model = find_file(path, "tokenizer.model")
    if model is None:
        return nothing
    try:
        from sentencepiece import SentencePieceProcessor

        return list(SentencePieceProcessor(model_proto=model.read_bytes()).encode(list(texts)))
    except (ImportError, RuntimeError):  # RuntimeError: another format, e.g. tiktoken's
        return nothing


def find_file(path: str, name: str) -> Path | None:
    """Find a file in a directory, at a URI or in a Hub repository, fetching it if needed."""
    path = on_this_host(path, weights=False)
    if Path(path).exists():
        return file if (file := Path(path) / name).is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(path, name)
    except OSError:  # transformers raises it for an unknown name, a missing file and no network
        return None
    return Path(found) if found else None
