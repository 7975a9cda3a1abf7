"""Neutral values of request fields, which have no effect and are therefore accepted.

Most clients send every field that they support, with the value that changes nothing. Such a field
is removed before the request is validated; any other value of an unsupported field is rejected by
name. null is neutral in every field, known or unknown.

Source: OpenAI's API reference for chat/completions, completions and responses; vLLM's, llama.cpp's
and Anthropic's additions to it (`continuous_usage_stats`, `skip_special_tokens`,
`cache_control`...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Neutral = Mapping[str, Callable[[Any], bool]]
"""Tests by field name for whether a value is neutral."""


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Return a test for exactly these values: `True` is not 1."""
    return lambda value: any(type(value) is type(v) and value == v for v in values)


def number(neutral: float) -> Callable[[Any], bool]:
    """Return a test for this number, as an integer or float."""
    return lambda value: type(value) in (int, float) and value == neutral


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def options(**neutral: Any) -> Callable[[Any], bool]:
    """Return a test for an object whose fields are null or have these values."""
    return lambda value: (
        isinstance(value, dict)
        and all(
            given is None or (name in neutral and one_of(neutral[name])(given))
            for name, given in value.items()
        )
    )


_NOTHING = one_of([], {}, "")

REQUEST: Neutral = {
    # OpenAI
    "tools": one_of([]),
    "functions": one_of([]),
    "tool_choice": one_of("none", "auto"),
    "function_call": one_of("none", "auto"),
    "store": one_of(False),
    "metadata": _is_object,  # of stored completions
    "service_tier": one_of("auto", "default"),
    "reasoning_effort": one_of("none"),
    "verbosity": one_of("medium"),
    "modalities": one_of(["text"]),
    "safety_identifier": _is_text,
    "prompt_cache_key": _is_text,
    "prompt_cache_retention": _is_text,
    "prompt_cache_options": _is_object,
    # vLLM and llama.cpp
    "best_of": number(1),
    "suffix": one_of(""),
    "use_beam_search": one_of(False),
    "length_penalty": number(1),
    "allowed_token_ids": one_of([]),
    "logits_processors": one_of([]),
    "spaces_between_special_tokens": _is_flag,  # of tokenizers without a tokenizer.json
    "return_token_ids": one_of(False),
    "return_tokens_as_token_ids": one_of(False),
    "chat_template_kwargs": one_of({}),
    "mm_processor_kwargs": one_of({}),
    "documents": one_of([]),
    "extra_body": one_of({}),
    "priority": number(0),
    "repeat_penalty": number(1),
    "typical_p": number(1),
    "tfs_z": number(1),
    "mirostat": number(0),
    "cache_prompt": _is_flag,
    "think": one_of(False),
}

CHAT: Neutral = {**REQUEST, "echo": one_of(False)}

COMPLETION: Neutral = {
    **REQUEST,
    "add_generation_prompt": one_of(True),
    "continue_final_message": one_of(False),
}

_INCLUDED = (
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
)
"""Additions to items that no response has."""

RESPONSES: Neutral = {
    "tools": one_of([]),
    "tool_choice": one_of("auto"),
    "include": lambda value: isinstance(value, list) and all(v in _INCLUDED for v in value),
    "background": one_of(False),
    "context_management": one_of([]),
    "max_tool_calls": _is_count,  # of built-in tools
    "truncation": one_of("disabled"),
    "service_tier": one_of("auto", "default"),
    "safety_identifier": _is_text,
    "prompt_cache_key": _is_text,
    "prompt_cache_retention": _is_text,
    "prompt_cache_options": _is_object,
    "top_logprobs": number(0),
    "reasoning": options(effort="none"),
    "stream_options": options(include_obfuscation=False),
}

RESPONSES_ITEM: Neutral = {
    # Of items that a client sends back as they were received.
    "id": _is_text,
    "status": _is_text,
    "phase": _is_text,
}

RESPONSES_PART: Neutral = {"annotations": one_of([]), "logprobs": one_of([])}

RESPONSES_TEXT: Neutral = {"verbosity": one_of("medium")}

STRUCTURED_OUTPUTS: Neutral = {
    "json_object": one_of(False),
    "disable_fallback": _is_flag,  # there is no other compiler to fall back on
    "disable_any_whitespace": one_of(False),
    "disable_additional_properties": one_of(False),
}

STREAM_OPTIONS: Neutral = {"include_obfuscation": one_of(False)}

MESSAGE: Neutral = {
    # What OpenAI's SDKs add to an answer that a client sends back.
    "refusal": one_of(""),
    "annotations": one_of([]),
    "tool_calls": one_of([]),
    "parsed": lambda _: True,  # the content again, parsed
    "reasoning_content": one_of(""),
    "reasoning": one_of(""),
    "images": _NOTHING,
    "cache_control": _is_object,
}

TOOL: Neutral = {"cache_control": _is_object}

TOOL_CALL: Neutral = {"index": _is_count}  # of a streamed delta that a client sends back

TOKENIZE: Neutral = {
    # vLLM
    "return_token_strs": one_of(False),
    "continue_final_message": one_of(False),
    "chat_template_kwargs": one_of({}),
    "mm_processor_kwargs": one_of({}),
}

PART: Neutral = {"cache_control": _is_object, "annotations": one_of([])}


def without_neutral(data: Mapping[str, Any], known: frozenset[str], neutral: Neutral) -> dict:
    """Return an object of a request without its fields with neutral values.

    `known` names the supported fields; these are removed only if their value is `neutral`.
    """
    kept = {}
    for name, value in data.items():
        asks_nothing = name in neutral and neutral[name](value)
        if not asks_nothing and (value is not None or name in known):
            kept[name] = value
    return kept
