"""Checks of a request against the server: its engine and its limits."""

from __future__ import annotations

from collections.abc import Collection

from ochat_ray.serve.engines.base import UNSUPPORTED, Sampling
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.fields import Message
from ochat_ray.serve.protocol.requests import MAX_LOGPROBS, CompletionRequest, SamplingRequest


def check_supported(request: SamplingRequest, engine: str) -> None:
    """Reject fields that this engine does not support.

    Raises:
        ApiError: 400 that names the field and the engines that support it.
    """
    given = {*request.model_fields_set, request.constraint_field}
    for field in sorted(UNSUPPORTED[engine] & given):
        first = field.partition(".")[0]
        value = getattr(request, first, None)
        if value is not None and value is not False and value != []:
            able = [name for name, fields in UNSUPPORTED.items() if field not in fields]
            raise ApiError(
                400,
                f"the {engine} engine of this server cannot do {field!r}; {_and(able)} can",
                code="unsupported_parameter",
                param=field,
            )


def check_size(messages: Collection[Message], max_messages: int) -> None:
    """Reject a conversation with more messages than the server's limit.

    Raises:
        ApiError: 400 with the numbers.
    """
    if len(messages) > max_messages:
        raise ApiError(
            400,
            f"{len(messages)} messages are above this server's limit of {max_messages}",
            code="too_many_messages",
            param="messages",
        )


def check_logprobs(
    request: SamplingRequest, answers: Collection[Sampling], prompt_tokens: int = 0
) -> None:
    """Reject more log-probabilities than `MAX_LOGPROBS` over all answers and prompts.

    An echoed token counts as one, also without its log-probability. `prompt_tokens` is the number
    of tokens of all prompts, each counted once.

    Raises:
        ApiError: 400 with the numbers.
    """
    count, param = 0, "logprobs"
    if (top := request.wanted_logprobs) is not None:
        count += request.choices * sum(sampling.max_tokens for sampling in answers) * (1 + top)
    echo = isinstance(request, CompletionRequest) and request.echo
    if (top := request.wanted_prompt_logprobs) is not None or echo:
        count += request.choices * prompt_tokens * (1 + (top or 0))
        param = "echo" if echo else "prompt_logprobs"
    if count > MAX_LOGPROBS:
        raise ApiError(
            400,
            f"{param}: up to {count} values, of at most {MAX_LOGPROBS}; ask for fewer answers, "
            "prompts, tokens (max_tokens) or alternatives",
            code="too_many_logprobs",
            param=param,
        )


def _and(names: list[str]) -> str:
    return " and ".join(names) if names else "none"
