"""Request bodies of the API, and their translation to engine parameters.

Requests are strict: an unknown field is rejected by name or, on a lenient server, removed and
listed in a response header; it is never ignored silently.

Source: OpenAI's API reference for chat/completions and completions; `top_k`, `min_p`,
`repetition_penalty`, `ignore_eos` and /tokenize as in vLLM; `condition`, `conversation` and
`max_generated_tokens` from OpenChat's server of 2023 and its successors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ochat_ray.schema import Turn
from ochat_ray.serve.answers import TextRules
from ochat_ray.serve.engines.base import Sampling
from ochat_ray.serve.protocol.conversation import turns_of
from ochat_ray.serve.protocol.decoding import DecodingFields, check_ids
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.fields import Message, StreamOptions, Text, few_messages
from ochat_ray.serve.protocol.neutral import CHAT, COMPLETION
from ochat_ray.serve.protocol.structure import Constraint
from ochat_ray.serve.protocol.tool_fields import ToolFields
from ochat_ray.serve.protocol.tools import CallRules

MAX_CHOICES = 128
"""Maximum answers per request, over all of its prompts; OpenAI's limit for `n`."""

MAX_STOPS = 32
"""Maximum stop strings per request. OpenAI's limit is 4; evaluation harnesses send more."""

MAX_BIASES = 1024
"""Maximum entries of logit_bias."""

MAX_LOGPROBS = 200_000
"""Maximum log-probabilities per request, over all of its answers and prompts; each is an object."""


def _few(value: Any) -> Any:
    if isinstance(value, Mapping) and len(value) > MAX_BIASES:
        raise ValueError(f"has {len(value)} entries, of at most {MAX_BIASES}")
    return value


class SamplingRequest(DecodingFields):
    """Fields shared by chat and text completions. null means that a field is not given."""

    model: Text
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 choose among all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_few)] | None
    ) = Field(
        None, max_length=MAX_BIASES, description="token ids, as strings, and what is added to each"
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    ignore_eos: bool | None = Field(None, description="answer on past the end of the turn")
    stop: Text | Annotated[list[Text], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    user: Text | None = None

    @model_validator(mode="after")
    def _shared_fields_agree(self) -> SamplingRequest:
        if (self.include_usage or self.usage_in_chunks) and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        if not all(1 <= len(stop) <= 256 for stop in self.stops) or len(self.stops) > MAX_STOPS:
            raise ValueError(f"stop: up to {MAX_STOPS} strings of 1 to 256 characters")
        if self.ignore_eos and self.constraint_field is not None:
            raise ValueError(f"ignore_eos: not with {self.constraint_field}, which has an end")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: not with stream=true")
        keys = self.logit_bias or ()
        if not all(key.isascii() and key.isdecimal() and len(key) <= 10 for key in keys):
            raise ValueError("logit_bias: keys are token ids, such as '42'")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """True if a stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_chunks(self) -> bool:
        """True if every chunk of a stream holds the usage so far, as in vLLM."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def choices(self) -> int:
        """Number of answers per prompt."""
        return self.n or 1

    @property
    def limit(self) -> int | None:
        """Maximum tokens per answer; None: the rest of the context."""
        return self.max_tokens

    @property
    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Number of most likely tokens to report per position; None reports nothing."""

    def sampling(
        self,
        *,
        prompt_tokens: int,
        context_length: int,
        vocabulary: int,
        stop_ids: tuple[int, ...],
        bad_words: Sequence[Sequence[int]] = (),
    ) -> Sampling:
        """Return the engine parameters for a prompt of this length.

        Without a limit the answer may fill the context. With a limit of 0 the engine generates one
        token, which is dropped. `bad_words` are the token ids of the field's words.

        Raises:
            ApiError: Prompt and answer do not fit the context, or an id is not in the vocabulary.
        """
        room = context_length - prompt_tokens
        if room < (self.limit or 1):
            raise ApiError(
                400,
                _context_exceeded(context_length, prompt_tokens, self.limit, self.prompt_field),
                code="context_length_exceeded",
                param=self.prompt_field if room < 1 else "max_tokens",
            )
        bias = tuple((int(key), value) for key, value in (self.logit_bias or {}).items())
        check_ids("logit_bias", [token_id for token_id, _ in bias], vocabulary)
        own_stops = tuple(dict.fromkeys(self.stop_token_ids or ()))
        check_ids("stop_token_ids", own_stops, vocabulary)
        max_tokens = room if self.limit is None else self.limit
        if (self.min_tokens or 0) > max_tokens:
            raise ApiError(
                400,
                f"min_tokens: is {self.min_tokens}, above the limit of {max_tokens} tokens",
                code="invalid_value",
                param="min_tokens",
            )
        top_k = max(self.top_k or 0, 0)
        return Sampling(
            max_tokens=max(max_tokens, 1),
            temperature=_given(self.temperature, 1.0),
            top_p=_given(self.top_p, 1.0),
            # The k most likely of all tokens are all tokens; engines fail on a larger k.
            top_k=0 if top_k >= vocabulary else top_k,
            min_p=_given(self.min_p, 0.0),
            repetition_penalty=_given(self.repetition_penalty, 1.0),
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            logit_bias=bias,
            top_logprobs=self.wanted_logprobs,
            prompt_logprobs=self.wanted_prompt_logprobs,
            seed=self.seed,
            stop_ids=own_stops if self.ignore_eos else (*stop_ids, *own_stops),
            min_tokens=self.min_tokens or 0,
            bad_words=tuple(map(tuple, bad_words)),
            **self.constraint,
        )

    @property
    @abstractmethod
    def prompt_field(self) -> str:
        """Name of the field that holds the prompt."""


class ChatRequest(SamplingRequest, ToolFields):
    """Body of POST /v1/chat/completions."""

    NEUTRAL = CHAT

    messages: Annotated[list[Message], BeforeValidator(few_messages)] = Field(
        min_length=1, fail_fast=True
    )
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    add_generation_prompt: bool | None = Field(None, description="false: no assistant's prefix")
    continue_final_message: bool | None = Field(None, description="continue the last message")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="variables of the model's own chat template"
    )
    condition: Text | None = Field(None, max_length=64, description="C-RLFT's class of answer")

    @model_validator(mode="before")
    @classmethod
    def _names_of_2023(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for old, new in _NAMES_OF_2023.items():
            if old not in data:
                continue
            value = data.pop(old)
            if value is None:
                continue
            if data.get(new) is not None:
                raise ValueError(f"{old}: is another name of {new}; give one of them")
            data[new] = value
        if data.get("tool_choice") == "none":  # tools that must not be called ask for nothing
            data.pop("tools", None)
        if data.get("function_call") == "none":
            data.pop("functions", None)
        return data

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        if self.tools and self.logprobs:
            raise ValueError("logprobs: not with tools")
        if self.tools and super().constraint.keys() - {"json_schema"}:
            other = super().constraint_field
            raise ValueError(f"{other}: not with tools, which constrain the answer, too")
        _ = self.turns, self.calls  # raise if results do not fit the calls, or the choice no tool
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise ValueError("continue_final_message: not with add_generation_prompt=true")
            if self.messages[-1].role != "assistant":
                raise ValueError("continue_final_message: the last message is not an assistant's")
        return self

    @cached_property
    def turns(self) -> list[Turn]:
        """Turns that the model reads."""
        return turns_of(self.messages, [tool.tool() for tool in self.tools or ()])

    @property
    def constraint_field(self) -> str | None:
        """Name of the field that constrains the answer; see `StructuredFields.constraint_field`."""
        return "tools" if self.tools else super().constraint_field

    @cached_property
    def calls(self) -> CallRules | None:
        """Calls that the answer may have; without one it is JSON, if a schema is given, too."""
        rules = super().calls
        return rules and replace(rules, answer=super().constraint.get("json_schema"))

    @property
    def constraint(self) -> Constraint:
        """Arguments of `Sampling` that constrain the answer; see `StructuredFields.constraint`."""
        return super().constraint if self.calls is None else {"calls": self.calls}

    @property
    def limit(self) -> int | None:
        """Maximum tokens per answer; see `SamplingRequest.limit`."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Number of most likely tokens to report; see `SamplingRequest.wanted_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompt_field(self) -> str:
        """Name of the prompt's field; see `SamplingRequest.prompt_field`."""
        return "messages"


_NAMES_OF_2023 = {"conversation": "messages", "max_generated_tokens": "max_tokens"}

_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingRequest):
    """Body of POST /v1/completions: text or token ids to continue, without a template."""

    NEUTRAL = COMPLETION

    prompt: (
        Text
        | _Ids
        | Annotated[list[Text | _Ids], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    )
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = Field(None, description="begin the text with the prompt")

    @model_validator(mode="after")
    def _not_too_many(self) -> CompletionRequest:
        if self.score_only and not (self.echo or self.prompt_logprobs is not None):
            raise ValueError("max_tokens: 0 only with echo or prompt_logprobs")
        if len(self.prompts) * self.choices > MAX_CHOICES:
            raise ValueError(f"n: above {MAX_CHOICES} answers over all prompts")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Prompts, each as text or as ids."""
        if isinstance(self.prompt, str) or all(isinstance(item, int) for item in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def limit(self) -> int | None:
        """Maximum tokens per answer; 16 by default, as in OpenAI's API."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def score_only(self) -> bool:
        """True if no token is generated: only the prompt is echoed or scored."""
        return self.max_tokens == 0

    def text_rules(self, sampling: Sampling, *, continues: bool) -> TextRules:
        """Return the rules by which an answer's tokens become its text."""
        rules = super().text_rules(sampling, continues=continues)
        return replace(rules, echo=bool(self.echo), score_only=self.score_only)

    @property
    def wanted_logprobs(self) -> int | None:
        """Number of most likely tokens to report; see `SamplingRequest.wanted_logprobs`."""
        return self.logprobs

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        """Number of most likely tokens to report; see `DecodingFields.wanted_prompt_logprobs`."""
        wanted = (self.logprobs if self.echo else None, self.prompt_logprobs)
        return max((count for count in wanted if count is not None), default=None)

    @property
    def prompt_field(self) -> str:
        """Name of the prompt's field; see `SamplingRequest.prompt_field`."""
        return "prompt"


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _context_exceeded(context_length: int, prompt: int, limit: int | None, field: str) -> str:
    """Return the message in OpenAI's words, by which clients such as LiteLLM recognise it.

    LangChain 1.7 looks for the code in the message.
    """
    asked = (
        f"you requested {prompt + limit} tokens ({prompt} in the {field}, {limit} in the "
        f"completion). Please reduce the length of the {field} or completion."
        if limit
        else f"your {field} resulted in {prompt} tokens. Please reduce the length of the {field}."
    )
    return (
        f"This model's maximum context length is {context_length} tokens. However, {asked} "
        "(context_length_exceeded)"
    )
