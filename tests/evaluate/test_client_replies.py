"""Replies and refusals of today's endpoints, from a transport in the network's place."""

import asyncio
import json

import httpx
import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.client import CallFailedError, Client, RefusedError

BODY = {"model": "j", "temperature": 0, "max_tokens": 9, "messages": []}


def completion(content="[8, 7]", finish_reason="stop", **message):
    message = {"role": "assistant", "content": content, **message}
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


def failed(status, message, **fields):
    return httpx.Response(status, json={"error": {"message": message, **fields}})


def asked(handler, bodies=(BODY,), **options):
    """The replies or errors, and the bodies that were sent."""
    sent = []

    def handle(request):
        sent.append(json.loads(request.content))
        found = handler(sent[-1])
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

    async def work():
        client = Client("http://j/v1", "key", attempts=3, first_pause_s=0.001, **options)
        client._http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        async with client:
            return [
                (await asyncio.gather(client.chat(body), return_exceptions=True))[0]
                for body in bodies
            ]

    return asyncio.run(work()), sent


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("hi", "hi", ""), (None, "", ""), (5, "5", ""), ([], "", ""), ({"text": "hi"}, "hi", ""),
        ([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "hi", ""),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
          {"type": "text", "text": "hi"}], "hi", "hm"),
        (["h", None, 1, {"type": "image_url"}], "h1", ""), ("half \ud83d", "half \ufffd", ""),
    ],
)  # fmt: skip
def test_content_of_any_kind_is_a_text(content, text, reasoning):
    body = httpx.Response(200, content=json.dumps(completion(content)).encode())
    (reply,), _ = asked(lambda _: body)
    assert (reply.text, reply.reasoning) == (text, reasoning)


def test_separate_reasoning_and_a_refusal_are_kept():
    (reply,), _ = asked(lambda _: completion(None, "length", reasoning_content="hm"))
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("", "hm", "length")
    (reply,), _ = asked(lambda _: completion(None, refusal="No."))
    assert reply.text == "No."


@pytest.mark.parametrize("usage", [None, 5, {"prompt_tokens": "x"}, {"prompt_tokens": -1}, "inf"])
def test_strange_counts_and_probabilities_harm_nothing(usage):
    whole = completion() | {"usage": {"prompt_tokens": 1e999} if usage == "inf" else usage}
    whole["choices"][0]["logprobs"] = {"content": [5, {"token": 1, "top_logprobs": [{}, 3]}]}
    del whole["choices"][0]["finish_reason"]
    body = httpx.Response(200, content=json.dumps(whole).encode())
    (reply,), _ = asked(lambda _: body)
    assert (reply.text, reply.finish_reason, reply.prompt_tokens) == ("[8, 7]", "", 0)
    assert [entry["top_logprobs"] for entry in reply.logprobs] == [[], []]


def test_refused_fields_are_learned_once_and_named_in_the_reply(capsys):
    def reasoner(body):
        if "max_tokens" in body:
            return failed(400, "Unsupported parameter: 'max_tokens'", param="max_tokens")
        if "temperature" in body:
            return failed(400, "`temperature` is not supported by this model")
        return completion()

    replies, sent = asked(reasoner, [BODY, BODY])
    assert [reply.text for reply in replies] == ["[8, 7]"] * 2
    assert len(sent) == 4
    assert sent[-1] == {"model": "j", "max_completion_tokens": 9, "messages": []}
    changed = {"max_tokens": "max_completion_tokens", "temperature": None}
    assert replies[1].changed == changed
    assert "does not support temperature" in capsys.readouterr().err


def test_a_value_that_is_wrong_is_not_left_out():
    (error,), sent = asked(lambda _: failed(400, "'max_tokens' is too large", param="max_tokens"))
    assert (type(error), len(sent)) == (CallFailedError, 1)


@pytest.mark.parametrize(
    "response",
    [
        failed(429, "You exceeded your quota", code="insufficient_quota"),
        failed(402, "pay"),
        failed(429, "x", type="insufficient_quota"),
        failed(400, "Your credit balance is too low"),
        failed(403, "Insufficient Balance"),
        httpx.Response(307, headers={"location": "/x"}),
        httpx.Response(200, html="<p>Sign in</p>"),
        failed(404, "no such model"),
    ],
)
def test_what_no_later_call_will_pass_ends_the_run_at_once(response):
    (error,), sent = asked(lambda _: response)
    assert (type(error), len(sent)) == (UserError, 1)


@pytest.mark.parametrize(
    "response",
    [
        failed(400, "The response was filtered", code="content_filter"),
        failed(400, "maximum context length is 2048", code="context_length_exceeded"),
        failed(403, "Your input was flagged", metadata={}),
        failed(403, "moderation"),
        failed(413, "too big"),
        httpx.Response(400, json={"detail": "prompt is too long"}),
    ],
)
def test_a_refused_question_is_no_other_error(response):
    errors, sent = asked(lambda _: response, [BODY] * 20)
    assert {type(error) for error in errors} == {RefusedError}
    assert len(sent) == 20


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"message": "why"}}, "why"),
        ({"error": "why"}, "why"),
        ({"detail": "why"}, "why"),
        ({"detail": [{"loc": ["body", "n"], "msg": "why"}]}, "body.n: why"),
        (["why"], "why"),
        ({"object": "error", "message": "why", "code": 400}, "why"),
        ({}, "Bad Request"),
        ({"message": {"detail": "why"}}, "why"),
        ("why", "why"),
    ],
)
def test_the_reason_of_a_rejected_request_is_told(body, reason):
    (error,), _ = asked(lambda _: httpx.Response(400, json=body))
    assert str(error) == f"400 {reason}"


def test_an_endpoint_that_is_down_ends_the_run_with_the_reason(capsys):
    errors, sent = asked(lambda _: httpx.Response(503, text="busy"), [BODY] * 3)
    assert [type(error) for error in errors] == [CallFailedError, CallFailedError, UserError]
    assert "3 calls in a row failed, the last: failed after 3 attempts: 503 busy" in str(errors[2])
    assert len(sent) == 9
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "http://j/v1: 503 busy; trying again"
    errors, _ = asked(lambda _: httpx.Response(400, text="bad field"), [BODY] * 10)
    assert [type(error) for error in errors[8:]] == [CallFailedError, UserError]


def test_calls_that_fail_now_and_then_end_no_run():
    count = iter(range(100))
    errors, _ = asked(
        lambda _: completion() if next(count) % 7 == 6 else httpx.Response(500), [BODY] * 12
    )
    assert UserError not in {type(error) for error in errors}


def test_half_an_emoji_in_a_request_is_replaced():
    _, sent = asked(lambda _: completion(), [BODY | {"messages": ["half \ud83d", "\ud83d\ude00"]}])
    assert sent[0]["messages"] == ["half \ufffd", "😀"]


@pytest.mark.parametrize("key", ["sk-SECRET\n", "sk-SECRET\r\n", " sk-SECRET"])
def test_blanks_around_a_key_are_not_sent(key):
    assert Client("http://j/v1", key)._http.headers["authorization"] == "Bearer sk-SECRET"


@pytest.mark.parametrize("key", ["sk-SEC\nRET", "sk-SECRET\x00", "sk-SECRETé"])
def test_a_key_that_cannot_be_sent_is_not_printed(key):
    with pytest.raises(UserError, match=r"http://j/v1 has characters that no key has") as error:
        Client("http://j/v1", key)
    assert "SEC" not in str(error.value)


RAW = json.dumps(completion("é [8, 7]"), ensure_ascii=False)


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        (RAW.encode().replace(b"\xc3\xa9", b"\xc3"), "utf-8", "\ufffd [8, 7]"),
        (RAW.encode("latin-1"), "latin-1", "é [8, 7]"),
        (b"\xef\xbb\xbf" + RAW.encode(), "utf-8", "é [8, 7]"),
        (
            RAW[:-1].encode() + b', "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
            "utf-8",
            "é [8, 7]",
        ),
    ],
)
def test_a_reply_with_bytes_that_are_no_text_is_read(content, charset, text):
    headers = {"content-type": f"application/json; charset={charset}"}
    (reply,), sent = asked(lambda _: httpx.Response(200, content=content, headers=headers))
    assert (reply.text, len(sent)) == (text, 1)


def test_a_reply_that_is_no_json_is_called_so():
    (error,), _ = asked(lambda _: httpx.Response(200, content=b"hello {"))
    assert str(error) == "failed after 3 attempts: 200 no JSON: hello {"


def test_a_stream_that_was_not_asked_for_ends_the_run_at_once():
    (error,), sent = asked(lambda _: httpx.Response(200, content=b'data: {"choices": []}\n\n'))
    assert isinstance(error, UserError)
    assert "streams its replies" in str(error)
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"error": {"message": "Unrecognized request argument supplied: max_tokens",
                    "param": None}}, "max_tokens"),
        ({"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]},
         "max_tokens"),
        ({"message": "Malformed: extraneous key [temperature] is not permitted"}, "temperature"),
        ({"error": {"message": "m doesn't support temperature=0.0. Only temperature=1 is "
                               "supported"}}, "temperature"),
        ({"error": {"message": "invalid temperature: only 0.6 is allowed"}}, "temperature"),
    ],
)  # fmt: skip
def test_a_field_that_is_refused_in_other_words_is_learned(body, field):
    (reply,), sent = asked(
        lambda b: httpx.Response(400, json=body) if field in b else completion("fine")
    )
    assert reply.text == "fine"
    assert set(reply.changed) == {field}
    assert len(sent) == 2


@pytest.mark.parametrize("message", ["max_tokens is too large: 9", "temperature must be above 0"])
def test_a_wrong_value_names_the_option_that_changes_it(message):
    (error,), sent = asked(lambda _: failed(400, message))
    field = message.split()[0]
    assert len(sent) == 1
    assert str(error).startswith(f"400 {message}; change {field} or leave it out with --body")
    assert f"--judge-body (judge), such as '{{\"{field}\": null}}'" in str(error)


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for():
    async def trickle():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    (error,), sent = asked(lambda _: httpx.Response(200, content=trickle()), timeout_s=0.1)
    assert str(error) == "failed after 3 attempts: no complete reply within 0.1 s"
    assert len(sent) == 3


def test_a_reason_cannot_control_the_terminal(capsys):
    (error,), _ = asked(lambda _: failed(400, "a\x1b[31m\u202eb\x07\nc"))
    assert str(error) == r"400 a\x1b[31m\u202eb\x07 c"
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (failed(429, "余额不足", code="1113"), "余额不足"),
        (failed(429, "suspended", type="exceeded_current_quota_error"), "suspended"),
        (httpx.Response(200, json={"error": {"code": 402, "message": "Pay first"}}), "Pay first"),
        (
            httpx.Response(
                200, json={"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
            ),
            "insufficient balance",
        ),
    ],
)
def test_an_account_without_money_ends_the_run_in_any_words(response, reason):
    (error,), sent = asked(lambda _: response)
    assert isinstance(error, UserError)
    assert reason in str(error)
    assert len(sent) == 1
