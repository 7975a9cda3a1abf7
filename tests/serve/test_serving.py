"""The whole application on a real local Ray: HTTP proxy, ingress, autoscaled model replica."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx
import openai
import pytest

from ochat_ray.serve.args import ConfigurationError
from tests.serve.application import deploy, deployed, replicas, running, wait_until

pytestmark = pytest.mark.ray

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello 🙂"}]
ASK = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 40}
KEY = "key-for-the-test"


@pytest.fixture(scope="module")
def url(cluster, model_directory, tmp_path_factory):
    """The application with keys, room for one request and one in the queue."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"test:{KEY}\n")
    keys.chmod(0o600)
    deploy(
        model_directory,
        keys=str(keys),
        max_ongoing=1,
        max_queued=1,
        num_cpus=1,
        context_length=4096,
    )
    return f"{cluster}/app"


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_the_official_client_and_a_plain_post_get_the_same_answer(client, http, model_directory):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from ochat_ray.tokenization.template import encode

    plain = http.post("/v1/chat/completions", json=ASK).json()
    text = plain["choices"][0]["message"]["content"]
    completion = client.chat.completions.create(**ASK)
    assert completion.choices[0].message.content == text
    assert completion.choices[0].finish_reason == plain["choices"][0]["finish_reason"]
    assert completion.usage.model_dump(exclude_none=True) == plain["usage"]

    stream = list(
        client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    )
    pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "".join(pieces) == text
    assert stream[0].choices[0].delta.role == "assistant"
    assert stream[-2].choices[0].finish_reason == plain["choices"][0]["finish_reason"]
    assert stream[-1].usage == completion.usage

    # And it is the model's own answer to the template's ids.
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    turns = [{"role": m["role"], "text": m["content"]} for m in MESSAGES]
    ids, _ = encode(turns, "openchat", tokenizer, add_generation_prompt=True)
    model = LlamaForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
    assert plain["usage"]["prompt_tokens"] == len(ids)
    assert plain["usage"]["completion_tokens"] == len(out)
    whole = tokenizer.decode(out, skip_special_tokens=True)
    assert whole.rstrip("\ufffd") == text.rstrip("\ufffd")


def test_health_models_and_request_ids(http, url):
    health = httpx.get(f"{url}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready"})
    models = http.get("/v1/models")
    assert [model["id"] for model in models.json()["data"]] == ["tiny"]
    assert models.headers["x-request-id"]
    assert "," not in models.headers["x-request-id"]
    assert "version" in http.get("/version").json()


def test_what_the_engine_refuses_is_one_line_that_names_the_field(client):
    schema = {"name": "n", "schema": {"type": "no such type"}}
    form = {"type": "json_schema", "json_schema": schema}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(**ASK, response_format=form, stream=stream)
        assert bad.value.param == "response_format"
        assert "\n" not in bad.value.body["message"]
        assert "Traceback" not in bad.value.body["message"]


def test_the_official_clients_other_fields(client):
    answers = client.chat.completions.create(
        **ASK | {"max_tokens": 5}, n=2, logprobs=True, top_logprobs=3, stop=["zzz"]
    )
    first, second = answers.choices
    # Greedy, both are the same.
    assert first.message.content == second.message.content
    assert len(first.logprobs.content[0].top_logprobs) == 3
    assert first.logprobs.content[0].token == first.logprobs.content[0].top_logprobs[0].token
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes"]}}}
    forced = client.chat.completions.create(**ASK, response_format=schema).choices[0]
    assert (forced.message.content, forced.finish_reason) == ('"yes"', "stop")
    text = client.completions.create(model="tiny", prompt="hello", max_tokens=5, temperature=0)
    assert text.usage.completion_tokens <= 5


def test_the_official_client_s_responses(client):
    response = client.responses.create(model="tiny", input="hello", max_output_tokens=5)
    assert response.usage.output_tokens <= 5
    schema = {"type": "json_schema", "name": "n", "schema": {"enum": ["yes", "no"]}}
    with client.responses.stream(model="tiny", input="hi", text={"format": schema}) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text
    assert json.loads(text) in ("yes", "no")


def test_errors_are_the_clients_own_classes(client, url):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(**ASK | {"model": "gpt-4"})
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**ASK, store=True)
    assert bad.value.param == "store"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**ASK | {"max_tokens": 5000})
    assert long.value.code == "context_length_exceeded"


# Seconds, also of a model this small: no end of the turn, and the likeliest tokens with each one.
LONG = ASK | {"max_tokens": 3900, "logit_bias": {"300": -100}, "logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slot(url, stream):
    headers = {"Authorization": f"Bearer {KEY}"}

    async def leave():
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            task = asyncio.create_task(
                client.post("/v1/chat/completions", json=LONG | {"stream": stream})
            )
            await asyncio.to_thread(wait_until, lambda: running(url, KEY) == 1)
            assert not task.done(), "the answer was done before the client left; make it longer"
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leave())
    started = time.monotonic()
    wait_until(lambda: running(url, KEY) == 0)
    print(f"free after {time.monotonic() - started:.2f} s")


def test_a_stream_that_nobody_reads_keeps_no_slot(url, http):
    """The application has one slot: the next request gets it although the stream is still open."""
    body = json.dumps(LONG | {"stream": True, "max_tokens": 1500}).encode()
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.settimeout(20)
        stalled.connect((host, int(port)))
        stalled.sendall(
            f"POST /app/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}"
            f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert stalled.recv(12) == b"HTTP/1.1 200"
        assert running(url, KEY) == 1
        wait_until(lambda: running(url, KEY) == 0)
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
        stalled.recv(1)  # still open


def test_a_client_that_leaves_the_queue_never_runs(url, http):
    headers = {"Authorization": f"Bearer {KEY}"}

    async def queue_and_leave():
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            first = asyncio.create_task(client.post("/v1/chat/completions", json=LONG))
            await asyncio.sleep(0.5)
            second = asyncio.create_task(client.post("/v1/chat/completions", json=LONG))
            await asyncio.sleep(0.5)
            assert not first.done()
            second.cancel()
            first.cancel()
            await asyncio.wait([first, second])

    asyncio.run(queue_and_leave())
    wait_until(lambda: running(url, KEY) == 0)
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200


def test_over_the_queue_is_429_at_once(url):
    headers = {"Authorization": f"Bearer {KEY}"}

    async def flood():
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            body = ASK | {"max_tokens": 300, "seed": 1, "temperature": 1}
            return await asyncio.gather(
                *[client.post("/v1/chat/completions", json=body) for _ in range(8)]
            )

    responses = asyncio.run(flood())
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}, [response.text for response in responses]
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "overloaded"


def test_load_brings_a_second_replica_and_its_end_takes_it_away(cluster, model_directory):
    url = f"{cluster}/scaled"

    async def ask_until(done):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while not done.is_set():
                await client.post("/v1/chat/completions", json=ASK)

    async def load():
        done = asyncio.Event()
        askers = [asyncio.create_task(ask_until(done)) for _ in range(12)]
        await asyncio.to_thread(wait_until, lambda: replicas("scaled") == 2, 60)
        done.set()
        await asyncio.gather(*askers)

    scaling = {"max_replicas": 2, "max_ongoing": 2, "upscale_delay_s": 1, "downscale_delay_s": 2}
    with deployed(model_directory, "scaled", **scaling):
        assert replicas("scaled") == 1
        asyncio.run(load())
        wait_until(lambda: replicas("scaled") == 1, 60)
        assert httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=60).is_success


def test_the_last_replica_may_sleep_until_somebody_asks(cluster, model_directory):
    url = f"{cluster}/sleepy"
    scaling = {"min_replicas": 0, "upscale_delay_s": 0, "downscale_delay_s": 1}
    with deployed(model_directory, "sleepy", **scaling):
        wait_until(lambda: replicas("sleepy") == 0, 60)
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=120).is_success


def test_replicas_that_never_fit_are_refused_at_once(cluster, model_directory):
    with pytest.raises(ConfigurationError, match="1 replica of 1 CPU and 1 GPU never fit in this"):
        deploy(model_directory, "never", num_gpus=1)


def test_metrics_have_the_load_of_every_replica(http):
    http.post("/v1/chat/completions", json=ASK).raise_for_status()
    text = http.get("/metrics").text
    (line,) = [row for row in text.splitlines() if row.startswith("ochat_ray_running_requests{")]
    assert line.endswith(" 0.0")
    replica = line.split('replica="')[1].split('"')[0]
    assert f'ochat_ray_generated_tokens_total{{model="tiny",replica="{replica}"}}' in text


def test_without_keys_this_machine_is_answered_and_no_proxy(cluster, model_directory):
    with deployed(model_directory, "open"):
        answer = httpx.post(f"{cluster}/open/v1/chat/completions", json=ASK, timeout=60)
        assert answer.status_code == 200
        headers = {"X-Forwarded-For": "10.0.0.9"}
        assert httpx.get(f"{cluster}/open/v1/models", headers=headers).status_code == 403


def test_another_address_than_that_of_the_running_serve_is_refused(cluster, model_directory):
    port = int(cluster.rpartition(":")[2])
    with deployed(model_directory, "same", http_host="127.0.0.1", http_port=port):
        pass
    for other in ({"http_port": port - 1}, {"http_host": "0.0.0.0"}):
        with pytest.raises(ConfigurationError, match="run `serve shutdown` first"):
            deploy(model_directory, "other", engine="scripted", **other)


def test_a_conversation_stays_with_the_replica_that_has_its_beginning(cluster, model_directory):
    url = f"{cluster}/faithful"

    def ask(messages):
        body = ASK | {"messages": messages, "max_tokens": 2}
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status()

    def used():
        text = httpx.get(f"{url}/metrics").text
        rows = [row for row in text.splitlines() if row.startswith("ochat_ray_prompt_tokens_total")]
        return {row.split('replica="')[1].split('"')[0] for row in rows}

    later = [*MESSAGES, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and?"}]
    two = {"min_replicas": 2, "max_replicas": 2, "routing": "session"}
    with deployed(model_directory, "faithful", **two):
        for messages in (MESSAGES, later) * 3:
            ask(messages)
        assert len(used()) == 1
        for number in range(12):
            ask([{"role": "user", "content": str(number)}])
        assert len(used()) == 2
