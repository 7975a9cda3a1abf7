"""Request fields of vLLM about the end and the text of an answer, and its prompt.

Source: vLLM's documentation of SamplingParams and of its OpenAI-compatible server.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

from pydantic import Field, model_validator

from ochat_ray.serve.answers import TextRules
from ochat_ray.serve.engines.base import Sampling
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.fields import Text
from ochat_ray.serve.protocol.structure import StructuredFields

MOST_STOP_IDS = 128
MOST_BAD_WORDS = 64
LONGEST_BAD_WORD = 256
"""Limits on `stop_token_ids` and `bad_words`; the length is in characters."""

_TokenId = Annotated[int, Field(ge=0)]


class DecodingFields(StructuredFields):
    """Fields about the end and the text of an answer, and its prompt."""

    min_tokens: int | None = Field(None, ge=0, description="tokens before which nothing stops")
    stop_token_ids: (
        Annotated[list[_TokenId], Field(max_length=MOST_STOP_IDS, fail_fast=True)] | None
    ) = None
    include_stop_str_in_output: bool | None = None
    bad_words: (
        Annotated[
            list[Annotated[Text, Field(min_length=1, max_length=LONGEST_BAD_WORD)]],
            Field(max_length=MOST_BAD_WORDS, fail_fast=True),
        ]
        | None
    ) = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="last tokens of the prompt that are kept; -1: those that fit"
    )
    prompt_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _decoding_fields_agree(self) -> DecodingFields:
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens: would leave no prompt; give -1 or at least 1")
        if self.constraint_field is not None:
            for name in ("min_tokens", "bad_words"):
                if getattr(self, name):
                    raise ValueError(f"{name}: not with {self.constraint_field}")
        return self

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        """Number of most likely tokens to report per token of the prompt; None reports nothing."""
        return self.prompt_logprobs

    def truncated(self, ids: list[int], room: int) -> list[int]:
        """Return the prompt that is used; `room` is the number of tokens that the context holds."""
        count = self.truncate_prompt_tokens
        if count is None:
            return ids
        return ids[-(max(room, 1) if count == -1 else count) :]

    @property
    @abstractmethod
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""

    def text_rules(self, sampling: Sampling, *, continues: bool) -> TextRules:
        """Return the rules by which an answer's tokens become its text."""
        return TextRules(
            stops=self.stops,
            stop_ids=sampling.stop_ids,
            min_tokens=sampling.min_tokens,
            include_stop=bool(self.include_stop_str_in_output),
            special_tokens=self.skip_special_tokens is False,
            continues=continues,
        )


def check_ids(name: str, ids: list[int] | tuple[int, ...], vocabulary: int) -> None:
    """Reject token ids that the model does not have.

    Raises:
        ApiError: 400 that names the field.
    """
    if any(token_id >= vocabulary for token_id in ids):
        raise ApiError(
            400,
            f"{name}: this model's token ids are below {vocabulary}",
            code="invalid_value",
            param=name,
        )
