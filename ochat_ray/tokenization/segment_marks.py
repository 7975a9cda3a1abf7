"""Marks in a rendered conversation, and the tokenizer.json components that act on them.

Other programs render a chat template to one string and tokenize that. The marks make the ids equal
to those of `template.encode`, which tokenizes each segment separately. Both marks are Unicode
noncharacters: text for readers does not contain them, and text without them is tokenized as before.

Each added component wraps an existing one, so that it can be removed again exactly.
"""

from __future__ import annotations

from typing import Any

BORDER = "\ufdd0"
"""End of a role prefix: the text after it is tokenized as if nothing preceded it."""

VOID = "\ufdd1"
"""Empty separator that breaks up special-token names; removed once special tokens are matched."""

Component = dict[str, Any]

_REMOVE_VOID: Component = {"type": "Replace", "pattern": {"String": VOID}, "content": ""}
_SPLIT: Component = {
    "type": "Split",
    "pattern": {"String": BORDER},
    "behavior": "Removed",
    "invert": False,
}


def add_marks(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a parsed tokenizer.json that acts on the marks; unchanged if it already does.

    Special tokens are matched before the normalizer runs ("normalized": false), as in `encode`.
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
    """Return the parsed tokenizer.json without the components that `add_marks` added."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = _steps(pre_tokenizer, "pretokenizers")
    if steps[:1] == [_SPLIT]:
        pre_tokenizer = steps[1] if len(steps) > 1 else None
    steps = _steps(normalizer, "normalizers")
    if steps[:1] == [_REMOVE_VOID]:
        normalizer = _without_prefix_after_border(steps[1]) if len(steps) > 1 else None
    return {**tokenizer, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}


def specials_as_written(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return the parsed tokenizer.json with "normalized": false for every special token.

    No ids depend on that flag, since `encode_texts` never matches special tokens.
    """
    tokens = [
        {**token, "normalized": False} if token["special"] else token
        for token in tokenizer.get("added_tokens", [])
    ]
    return {**tokenizer, "added_tokens": tokens}


def _with_prefix_after_border(normalizer: Component | None) -> Component | None:
    """Add SentencePiece's dummy prefix, which precedes every text, after every border as well."""
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
    # Only before text: if an added token follows, `Prepend` sees an empty text and adds nothing.
    pattern = {"Regex": rf"{BORDER}(?=[\s\S])"}
    return {"type": "Replace", "pattern": pattern, "content": BORDER + prefix}


def _normalizers(*steps: Component | None) -> Component:
    return {"type": "Sequence", "normalizers": [step for step in steps if step]}


def _steps(component: Component | None, key: str) -> list[Component]:
    return component[key] if component and component["type"] == "Sequence" else []
