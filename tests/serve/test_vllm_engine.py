"""What only the vLLM engine has: processes of its own, a tokenizer inside; and Serve around it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from ochat_ray.cluster.local_cluster import free_port
from ochat_ray.errors import UserError
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.engines.base import EngineUnavailableError, RequestRefusedError, Sampling
from tests.serve.adapter_directories import tensors_by_module, write_adapter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm"
    ),
]

PROMPT = [0, 40, 41, 42]
BOS, END_OF_TURN = 0, 300


def settings(directory, **args):
    arguments = {"context_length": 512, "max_ongoing": 4, "dtype": "float32", **args}
    return resolve(ServeArgs(model=str(directory), engine="vllm", **arguments)).engine


def open_engine(directory, **args):
    from ochat_ray.serve.engines.vllm import VllmEngine

    return VllmEngine(settings(directory, **args))


@pytest.fixture
def copy(two_headed_model, tmp_path):
    return shutil.copytree(two_headed_model, tmp_path / "copy")


def wait_until(condition, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engine_processes(process=None):
    """Pids of the engine cores and workers below a process."""
    children = (process or psutil.Process()).children(recursive=True)
    return [child.pid for child in children if alive(child.pid) and child.name().startswith("VLLM")]


def test_a_schema_ends_with_our_stop_id_and_a_killed_core_is_told(copy):
    # The tokenizer's own end is another token.
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<s>"}))
    engine = open_engine(copy)

    async def last_ids(bias):
        sampling = Sampling(
            max_tokens=100,
            json_schema='{"type": "boolean"}',
            stop_ids=(END_OF_TURN,),
            logit_bias=((BOS, bias),),
        )
        deltas = [delta async for delta in engine.submit("schema", PROMPT, sampling)]
        return deltas[-1].token_ids[-1], deltas[-1].finish_reason

    async def die():
        for bias in (0, 50, 100):
            assert await last_ids(bias) == (END_OF_TURN, "stop")
        stream = engine.submit("r", PROMPT, Sampling(max_tokens=500))
        await anext(stream)
        for pid in engine_processes():
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            async for _ in stream:
                pass

    try:
        with pytest.raises(EngineUnavailableError):
            asyncio.run(die())
        with pytest.raises(EngineUnavailableError):
            engine.check_health()
        assert engine.capacity().running == 0
    finally:
        engine.close()


def test_a_prompt_whose_logits_are_too_large_is_refused(two_headed_model, monkeypatch):
    from ochat_ray.serve.engines import vllm

    engine = open_engine(two_headed_model)
    monkeypatch.setattr(vllm, "SCORED_BYTES", 4 * 301 * 4)

    async def score(prompt):
        rules = Sampling(max_tokens=1, prompt_logprobs=0)
        return [delta async for delta in engine.submit("scored", prompt, rules)]

    async def both():
        with pytest.raises(RequestRefusedError, match="MiB"):
            await score([*PROMPT, 43])
        return await score(PROMPT)

    try:
        assert asyncio.run(both())[0].prompt_logprobs is not None
    finally:
        engine.close()


END = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "deleted": "del engine; gc.collect(); print('deleted', flush=True); time.sleep(60)",
}


@pytest.mark.parametrize("how", END)
def test_no_process_outlives_the_engine(two_headed_model, tmp_path, how):
    script = tmp_path / "open.py"  # a file: spawned processes read it again
    script.write_text(
        "import gc, os, signal, time\n"
        "from ochat_ray.serve.args import ServeArgs, resolve\n"
        "if __name__ == '__main__':\n"
        "    from ochat_ray.serve.engines.vllm import VllmEngine\n"
        f"    args = dict(model={str(two_headed_model)!r}, engine='vllm', context_length=512)\n"
        "    engine = VllmEngine(resolve(ServeArgs(**args)).engine)\n"
        "    print('open', flush=True)\n"
        "    input()\n"
        f"    {END[how]}\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert "open\n" in process.stdout  # after vLLM's own lines
        pids = engine_processes(psutil.Process(process.pid))
        assert len(pids) >= 2
        process.stdin.write("\n")
        process.stdin.flush()
        if how == "deleted":
            assert "deleted\n" in process.stdout
        wait_until(lambda: not any(map(alive, pids)))
        process.kill()


def test_a_cache_without_room_for_one_context_is_refused(two_headed_model):
    with pytest.raises(UserError, match=r"^one context of .* lower context_length"):
        open_engine(two_headed_model, kv_cache_gib=0.0001)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_cannot_be_opened_is_one_line(copy, name):
    engine_settings = settings(copy)
    (copy / name).write_text("{}")
    from ochat_ray.serve.engines.vllm import VllmEngine

    with pytest.raises(UserError, match="cannot open the model at") as error:
        VllmEngine(engine_settings)
    assert "\n" not in str(error.value)
    wait_until(lambda: not engine_processes())


@pytest.mark.ray
def test_serve_answers_over_http_and_leaves_no_process(two_headed_model):
    import ray
    import torch
    from ray import serve
    from transformers import AutoTokenizer, LlamaForCausalLM

    from ochat_ray.serve import app
    from ochat_ray.tokenization.template import encode

    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        args = ServeArgs(
            model=str(two_headed_model),
            engine="vllm",
            context_length=2048,
            max_replicas=1,
            dtype="float32",
        )
        serve.run(app(args), name="app", route_prefix="/app")
        url = f"http://127.0.0.1:{port}/app"
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            json={
                "model": "tiny",
                "messages": [{"role": "user", "content": "hello 🙂"}],
                "temperature": 0,
                "max_tokens": 40,
            },
            timeout=60,
        ).json()
        pids = engine_processes()  # the local Ray's processes are below this one
        assert pids
    finally:
        serve.shutdown()
        ray.shutdown()
    wait_until(lambda: not any(map(alive, pids)))

    tokenizer = AutoTokenizer.from_pretrained(two_headed_model)
    turns = [{"role": "user", "text": "hello 🙂"}]
    ids, _ = encode(turns, "openchat", tokenizer, add_generation_prompt=True)
    model = LlamaForCausalLM.from_pretrained(two_headed_model, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
    assert answer["usage"]["completion_tokens"] == len(out)
    whole = tokenizer.decode(out, skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"].rstrip("\ufffd") == whole.rstrip("\ufffd")


def test_adapters_in_one_batch_answer_as_merged_weights_do(two_headed_model, tmp_path, monkeypatch):
    """Expected tokens are those of plain transformers with W + scaling x B A as weights."""
    import torch
    from transformers import LlamaForCausalLM

    from ochat_ray.serve.adapter_files import read_adapter
    from ochat_ray.serve.engines import vllm_adapters
    from ochat_ray.serve.engines.base import Adapter

    scaling = {"one": 6 / 4, "two": 6 / 2}
    write_adapter(tmp_path / "one", 1, lora_alpha=6)
    targets = ("o_proj", "up_proj")
    write_adapter(tmp_path / "two", 2, targets=targets, lora_alpha=6, use_rslora=True)
    write_adapter(tmp_path / "bad", 3)
    rules = settings(two_headed_model, adapters=str(tmp_path)).adapters.rules(two_headed_model)
    adapters = {
        name: Adapter(
            name=name,
            directory=str(tmp_path / name),
            digest=read_adapter(tmp_path / name, rules).digest,
        )
        for name in ("one", "two", "bad")
    }
    prompts = [PROMPT, [0, *range(60, 160)]]

    def expected(name, prompt):
        model = LlamaForCausalLM.from_pretrained(two_headed_model, dtype=torch.float32).eval()
        if name is not None:
            for module, pair in tensors_by_module(tmp_path / name).items():
                weight = model.get_submodule(module).weight.data
                weight += scaling[name] * pair["B"] @ pair["A"]
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    async def answer(engine, number, name, prompt):
        sampling = Sampling(
            max_tokens=12, temperature=0, top_logprobs=5, adapter=name and adapters[name]
        )
        deltas = [d async for d in engine.submit(f"r{number}", prompt, sampling)]
        return [entry for delta in deltas for entry in delta.logprobs]

    async def answers(engine, plain):
        asked = [(name, prompt) for prompt in prompts for name in (None, "one", "two")]
        for _ in range(2):  # the second time with the prefix cache
            found = await asyncio.gather(*[answer(engine, n, *a) for n, a in enumerate(asked)])
            for (name, prompt), entries in zip(asked, found, strict=True):
                assert [e.token_id for e in entries] == expected(name, prompt), (name, prompt)
        with monkeypatch.context() as patch:
            content = vllm_adapters.VllmAdapters._copy

            def damaged(self, adapter, copy):
                content(self, adapter, copy)
                (copy / "adapter_model.safetensors").write_bytes(b"x")

            patch.setattr(vllm_adapters.VllmAdapters, "_copy", damaged)
            with pytest.raises(RequestRefusedError, match="adapter 'bad' is not served"):
                await answer(engine, 0, "bad", PROMPT)
        shutil.rmtree(tmp_path / "bad")
        with pytest.raises(RequestRefusedError, match="adapter 'bad' has no"):
            await answer(engine, 0, "bad", PROMPT)
        for prompt in prompts:
            both = [await answer(e, 0, None, prompt) for e in (engine, plain)]
            assert both[0] == both[1]
        shutil.rmtree(tmp_path / "one")  # those that are loaded need no files
        entries = await answer(engine, 0, "one", PROMPT)
        assert [e.token_id for e in entries] == expected_one

    expected_one = expected("one", PROMPT)
    engine = open_engine(two_headed_model, adapters=str(tmp_path), max_adapter_rank=4)
    plain = open_engine(two_headed_model)
    try:
        asyncio.run(answers(engine, plain))
    finally:
        engine.close()
        plain.close()
