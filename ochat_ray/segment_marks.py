"""Two marks in a rendered conversation, and the steps of a tokenizer.json that act on them.

Other programs render a chat template to one string and tokenise that. The marks keep the ids what
`template.encode` gives for the segments apart. Both are Unicode noncharacters: no text that is
meant to be read holds them, and a text without them is tokenised as before.

Each step wraps what it stands before, so that it can be taken off again without a trace.
"""

from __future__ import annotations

from typing import Any

BORDER = "\ufdd0"
"""Ends a role's prefix: the text after it is tokenised as if nothing stood before it."""

VOID = "\ufdd1"
"""Nothing, but no special token's name reaches over it: it is removed after those are found."""

Component = dict[str, Any]

_REMOVE_VOID: Component = {"type": "Replace", "pattern": {"String": VOID}, "content": ""}
_SPLIT: Component = {
    "type": "Split",
    "pattern": {"String": BORDER},
    "behavior": "Removed",
    "invert": False,
}


def add_marks(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A parsed tokenizer.json that acts on the marks; one that does already comes back as it is.

    Special tokens are found before the normalizer runs ("normalized": false), as `encode` has it.
    """
    plain = remove_marks(tokenizer)
    normalizer, pre_tokenizer = plain.get("normalizer"), plain.get("pre_tokenizer")
    return {
        **specials_as_written(plain),
        "normalizer": _normalizers(_REMOVE_VOID, _with_prefix_after_border(normalizer)),
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [_SPLIT, *([pre_tokenizer] if pre_tokenizer else [])],
        },
    }


def remove_marks(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The parsed tokenizer.json without what `add_marks` added."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = _steps(pre_tokenizer, "pretokenizers")
    if steps[:1] == [_SPLIT]:
        pre_tokenizer = steps[1] if len(steps) > 1 else None
    steps = _steps(normalizer, "normalizers")
    if steps[:1] == [_REMOVE_VOID]:
        normalizer = _without_prefix_after_border(steps[1]) if len(steps) > 1 else None
    return {**tokenizer, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}


def specials_as_written(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The parsed tokenizer.json with every special token "normalized": false.

    No text's ids depend on that flag: `encode_texts` finds no special tokens at all.
    """
    tokens = [
        {**token, "normalized": False} if token["special"] else token
        for token in tokenizer.get("added_tokens", [])
    ]
    return {**tokenizer, "added_tokens": tokens}


def _with_prefix_after_border(normalizer: Component | None) -> Component | None:
    """SentencePiece's dummy prefix, which stands before each text, after each border as well."""
    if normalizer is None:
        return None
    if normalizer["type"] == "Prepend":
        return _normalizers(normalizer, _prepend_after_border(normalizer["prepend"]))
    if normalizer["type"] == "Sequence":
        steps = [_with_prefix_after_border(step) for step in normalizer["normalizers"]]
        return {**normalizer, "normalizers": steps}
    return normalizer


def _without_prefix_after_border(normalizer: Component) -> Component:
    if normalizer["type"] != "Sequence":
        return normalizer
    steps = normalizer["normalizers"]
    prepend = steps[0] if len(steps) == 2 and steps[0]["type"] == "Prepend" else None
    if prepend and steps[1] == _prepend_after_border(prepend["prepend"]):
        return dict(prepend)
    return {**normalizer, "normalizers": [_without_prefix_after_border(step) for step in steps]}


def _prepend_after_border(prefix: str) -> Component:
    # Only before text: where an added token follows, `Prepend` has an empty text and adds nothing.
    pattern = {"Regex": rf"{BORDER}(?=[\s\S])"}
    return {"type": "Replace", "pattern": pattern, "content": BORDER + prefix}


def _normalizers(*steps: Component | None) -> Component:
    return {"type": "Sequence", "normalizers": [step for step in steps if step]}


def _steps(component: Component | None, key: str) -> list[Component]:
    return component[key] if component and component["type"] == "Sequence" else []
