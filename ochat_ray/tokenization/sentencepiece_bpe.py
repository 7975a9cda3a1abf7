"""Convert a LLaMA-style SentencePiece BPE model to a tokenizer of the `tokenizers` library.

Both libraries merge the best pair first, and the leftmost of equal ones. SentencePiece ranks a pair
by the score of the resulting piece; `tokenizers` by its position in a list of merges. The list that
gives the same ids holds, for each piece in order of falling score, every split of it into two
pieces. Models whose merges cannot be expressed as such a list are rejected: approximately equal ids
would silently corrupt training data.

Source: sentencepiece `src/bpe_model.cc` (Model::SampleEncode) and `src/normalizer.cc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

BLANK = "\u2581"  # SentencePiece's symbol for a space

_PROTO: Any = sentencepiece_model_pb2  # its classes exist only at run time
_PIECE = _PROTO.ModelProto.SentencePiece


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """Converted tokenizer and the names of its special tokens, None where the model has none."""

    backend: Tokenizer
    bos: str | None
    eos: str | None
    unk: str | None
    pad: str | None


def convert(data: bytes) -> Converted:
    """Convert a serialized SentencePiece model.

    Control pieces (`<s>`, `</s>`) become special tokens: SentencePiece never makes one from text.

    Raises:
        ValueError: The model cannot be converted; the message completes a sentence that begins with
            the
            model's name.
    """
    model = _parse(data)
    if problem := _unsupported(model):
        raise ValueError(problem)
    backend = Tokenizer(
        models.BPE(
            vocab={piece.piece: id for id, piece in enumerate(model.pieces)},
            merges=merges(_scores(model)),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", BLANK)]
    back: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        # Not the Metaspace pre-tokenizer, which omits the prefix before a space.
        steps.insert(0, normalizers.Prepend(BLANK))
        back.append(decoders.Strip(content=" ", left=1))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(back)
    backend.add_special_tokens(
        [
            AddedToken(piece.piece, normalized=False)
            for piece in model.pieces
            if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)
        ]
    )
    trainer = model.trainer_spec
    named = {"bos": trainer.bos_id, "eos": trainer.eos_id}
    named |= {"unk": trainer.unk_id, "pad": trainer.pad_id}
    return Converted(
        backend=backend,
        **{name: model.pieces[id].piece if id >= 0 else None for name, id in named.items()},
    )


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every split of a piece into two, best piece first.

    Pieces made only of spaces share one score (-1e9 in LLaMA). SentencePiece then extends the
    leftmost run by one space at a time; ordering by the longest left half has the same effect.
    """
    splits = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return sorted(splits, key=lambda s: (-scores[s[0] + s[1]], -len(s[0]), -len(s[1])))


def _parse(data: bytes) -> Any:
    try:
        SentencePieceProcessor(model_proto=data)  # a stricter reader than protobuf
        model = _PROTO.ModelProto.FromString(data)
    except RuntimeError as error:
        raise ValueError("is not a SentencePiece model") from error
    if not model.pieces:
        raise ValueError("is empty")
    return model


def _scores(model: Any) -> dict[str, float]:
    """Return the scores of normal pieces only: no merge results in a control piece or a byte."""
    return {piece.piece: piece.score for piece in model.pieces if piece.type == _PIECE.NORMAL}


def _unsupported(model: Any) -> str | None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = {piece.type for piece in model.pieces}
    scores = _scores(model)
    rules: list[tuple[bool, str]] = [
        (trainer.model_type != _PROTO.TrainerSpec.BPE, "is not a BPE model"),
        (not trainer.byte_fallback, "has no byte fallback, so it would lose characters"),
        (bool(normalizer.precompiled_charsmap), "changes characters before it tokenises them"),
        (normalizer.remove_extra_whitespaces, "drops blanks"),
        (not normalizer.escape_whitespaces, "does not escape blanks"),
        (trainer.treat_whitespace_as_suffix, "writes blanks as suffixes"),
        (_PIECE.USER_DEFINED in types, "has user-defined pieces"),
        (_PIECE.UNUSED in types, "has unused pieces"),
        (_has_ties(scores), "has several pieces of the same score"),
        (not _characters(scores) <= scores.keys(), "has pieces whose characters are not pieces"),
    ]
    return next((message for holds, message in rules if holds), None)


def _has_ties(scores: Mapping[str, float]) -> bool:
    """Return whether tied scores make the merge order depend on positions in the text."""
    blanks = {score for piece, score in scores.items() if not piece.strip(BLANK)}
    words = [score for piece, score in scores.items() if len(piece) > 1 and piece.strip(BLANK)]
    return len({*words, *blanks}) < len(words) + len(blanks)


def _characters(scores: Mapping[str, float]) -> set[str]:
    return set().union(*scores)
