"""Convert the prompts of requests to token ids, and ids to text. Long ones run on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ochat_ray.schema import Turn
from ochat_ray.serve.decoding import check_ids
from ochat_ray.serve.detokenize import Detokenizer, text_offsets, vocabulary_of
from ochat_ray.template import encode, template_for
from ochat_ray.tokenizer import encode_texts

T = TypeVar("T")

LONG_TEXT = 4096
"""Characters, or ids, from which work runs on a thread, to keep other streams responsive."""


class Prompts:
    """Tokenizer and template of the served model."""

    def __init__(self, tokenizer: Any, model_type: str, vocabulary: int) -> None:
        self.vocabulary = vocabulary_of(tokenizer)
        self._tokenizer = tokenizer
        self._model_type = model_type
        self._ids = vocabulary
        self._bos = [tokenizer.bos_token_id] if template_for(model_type).bos else []

    async def conversation(
        self,
        turns: Sequence[Turn],
        condition: str | None,
        *,
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> list[int]:
        """Return the ids of a conversation; a continued one ends within its last turn."""

        def work() -> list[int]:
            ids = encode(
                turns,
                self._model_type,
                self._tokenizer,
                condition=condition or "",
                add_generation_prompt=add_generation_prompt,
            )[0]
            return ids[:-1] if continue_final else ids  # without the end-of-turn token

        return await _run(work, sum(len(turn.text) for turn in turns))

    async def text(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the ids of a text, after the template's BOS token if `bos`."""
        first = self._bos if bos else []
        return await _run(lambda: first + encode_texts([text], self._tokenizer)[0], len(text))

    def checked(self, ids: list[int], name: str = "prompt") -> list[int]:
        """Return ids that were sent in the field `name`, if the model has them all."""
        check_ids(name, ids, self._ids)
        return ids

    async def words(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ids of words, each at the beginning of a text and after a space."""
        texts = [prefix + word.lstrip(" ") for word in words for prefix in ("", " ")]
        found = await _run(lambda: encode_texts(texts, self._tokenizer), sum(map(len, texts)))
        return [ids for ids in found if ids]

    async def offsets(self, ids: Sequence[int], *, special_tokens: bool) -> tuple[int, ...]:
        """Return the offset of each id's text in their text."""
        return await _run(
            lambda: text_offsets(self.vocabulary, ids, special_tokens=special_tokens), len(ids)
        )

    async def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with the names of special tokens."""
        return await _run(
            lambda: Detokenizer(self.vocabulary, special_tokens=True).push(ids), len(ids)
        )


async def _run(work: Callable[[], T], size: int) -> T:
    return work() if size < LONG_TEXT else await asyncio.to_thread(work)
