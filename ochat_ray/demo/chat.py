"""Run `make demo-chat`: own chats, a base with its own chat template, an adapter, both served.

The commands are those of docs/your-own-model.md. The chats are real ones with short answers, in
OpenAI's format, so that the adapter has something to show: it answers more briefly than the base.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from ochat_ray.cluster import local_cluster
from ochat_ray.demo import assets
from ochat_ray.errors import UserError
from ochat_ray.schema import Conversation, Turn

RUN = Path("runs/demo-chat")
ADAPTER = "brief"
"""Name of the adapter, under which it is served."""
CHATS = 240
LONGEST_ANSWER, LONGEST_QUESTION = 240, 320
"""Characters."""
QUESTION = "Can you help me with my homework?"
_URL = f"http://127.0.0.1:{local_cluster.SERVE_PORT}"


def commands(base: str) -> dict[str, list[str]]:
    """Return the commands of the stages for a base model."""
    data, adapter = f"{RUN}/data", f"{RUN}/adapters/{ADAPTER}"
    return {
        "prepare": [
            *("ochat-ray", "prepare", "--recipe", "chat", "--input", f"{RUN}/chats.jsonl"),
            *("--tokenizer", base, "--output", data),
        ],
        "train": [
            *("ochat-ray", "train", "--recipe", "chat", "--data", data, "--model", base),
            *("--lora", "r=16", "--learning-rate", "1e-3", "--epochs", "1"),
            *("--num-workers", "2", "--zero-stage", "1", "--sample-tokens", "16"),
            *("--output", adapter),
        ],
        "serve": ["ochat-ray", "serve", f"model={base}", f"adapters={RUN}/adapters"],
    }


def brief(turns: Sequence[Turn]) -> bool:
    """Return whether a conversation is one question with a short answer."""
    if [turn.role for turn in turns] != ["user", "assistant"]:
        return False
    question, answer = (turn.text.strip() for turn in turns)
    return 0 < len(question) <= LONGEST_QUESTION and 0 < len(answer) <= LONGEST_ANSWER


def as_record(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return a conversation in OpenAI's format."""
    return {"messages": [{"role": turn.role, "content": turn.text} for turn in turns]}


def write_chats(source: Path, target: Path, count: int = CHATS) -> int:
    """Write the first brief conversations of the demo's data as JSON lines; return their number."""
    found: list[str] = []
    for conversation in _conversations(source):
        if brief(conversation.turns):
            found.append(json.dumps(as_record(conversation.turns), ensure_ascii=False))
        if len(found) == count:
            break
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    return len(found)


def _conversations(source: Path) -> Iterator[Conversation]:
    """Yield conversations of a JSON list, until its end or where it is cut off."""
    from ochat_ray.data.records import records_of

    text = source.read_text(encoding="utf-8", errors="replace")
    decoder, position, number = json.JSONDecoder(), text.index("[") + 1, 0
    while True:
        while text[position : position + 1] in tuple(" \r\n\t,"):
            position += 1
        try:
            record, position = decoder.raw_decode(text, position)
        except ValueError:
            return
        for item in records_of(record, source="demo", index=number):
            if isinstance(item, Conversation):
                yield item
        number += 1


@dataclass
class DemoChat:
    """State of one run: seconds per stage, and the server."""

    seconds: dict[str, float] = field(default_factory=dict)
    server: psutil.Process | None = None

    @contextmanager
    def stage(self, name: str, command: Sequence[str]) -> Iterator[None]:
        """Announce a stage and record its duration."""
        print(f"\n── {name} {'─' * (72 - len(name))}\n$ {' '.join(command)}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def run(self, command: Sequence[str]) -> None:
        """Run a command and wait for it.

        Raises:
            UserError: It failed; its own output, shown above, gives the reason.
        """
        if subprocess.run(command, env=_environment(), check=False).returncode != 0:
            raise UserError(f"`{' '.join(command)}` failed")

    def serve(self, command: Sequence[str], log: Path) -> None:
        """Start the server and wait until base and adapter can answer.

        Raises:
            UserError: It ended, or does not answer within five minutes.
        """
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=_environment(), stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.server = psutil.Process(process.pid)
        deadline = time.monotonic() + 300
        while not (local_cluster.answers(f"{_URL}/health") and ADAPTER in models()):
            if process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                last = next((line for line in lines if "not served" in line), (lines or [""])[-1])
                raise UserError(f"the adapter {ADAPTER} is not served: {last} (log: {log})")
            time.sleep(0.5)

    def end(self) -> None:
        """Stop the server and whatever else was started."""
        if self.server is not None:
            local_cluster.end_processes([self.server])
        local_cluster.end_processes(psutil.Process().children())


def models() -> list[str]:
    """Return the names of the served models, the base first; none where nothing answers."""
    try:
        answer = httpx.get(f"{_URL}/v1/models", timeout=30)
    except httpx.HTTPError:
        return []
    return [model["id"] for model in answer.json()["data"]] if answer.is_success else []


def ask(model: str) -> dict[str, Any]:
    """Ask a served model the question; return its answer and the number of tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 160,
    }
    try:
        reply = httpx.post(f"{_URL}/v1/chat/completions", json=body, timeout=300)
    except httpx.HTTPError as error:
        raise UserError(f"the server does not answer: {error}") from error
    if reply.status_code != httpx.codes.OK:
        raise UserError(f"the server answered {reply.status_code}: {reply.text[:300]}")
    found = reply.json()
    return {
        "model": model,
        "text": found["choices"][0]["message"]["content"],
        "finish_reason": found["choices"][0]["finish_reason"],
        "tokens": found["usage"]["completion_tokens"],
    }


def demo_chat() -> None:
    """Run all stages and print a summary.

    Raises:
        UserError: A stage failed; its own error line gives the reason.
    """
    local_cluster.need_free_ports([local_cluster.SERVE_PORT])
    local_cluster.adopt_orphans()
    run = DemoChat()
    try:
        base = str(assets.base_model())
        chats = write_chats(assets.conversations(), RUN / "chats.jsonl")
        print(f"chats          {chats:,} in {RUN / 'chats.jsonl'}\nbase model     {base}")
        for result in ("data", "adapters"):
            shutil.rmtree(RUN / result, ignore_errors=True)
        stages = commands(base)
        for stage in ("prepare", "train"):
            with run.stage(stage, stages[stage]):
                run.run(stages[stage])
        with run.stage("serve", stages["serve"]):
            run.serve(stages["serve"], RUN / "serve.log")
        with run.stage("ask", [f"POST {_URL}/v1/chat/completions"]):
            answers = [ask(model) for model in models()]
        print(summary(run.seconds, answers, stages["serve"]))
    finally:
        run.end()


def summary(seconds: dict[str, float], answers: list[dict[str, Any]], serve: Sequence[str]) -> str:
    """Return a readable summary of the run, taken from its manifests."""
    data = json.loads((RUN / "data/manifest.json").read_text())
    model = json.loads((RUN / "adapters" / ADAPTER / "ochat.json").read_text())
    before, after = model["eval_before"]["loss"], model["eval_after"]["loss"]
    counts, adapter = data["counts"], model["adapter"]
    lines = [
        "",
        f"── summary {'─' * 65}",
        f"conversations  {counts['read']:,} read, {counts['kept']:,} kept",
        f"adapter        {adapter['trained_parameters']:,} parameters, {adapter['lora']}",
        f"held-out loss  {before:.4f} before, {after:.4f} after {model['step']} steps",
        f"> {QUESTION}",
    ]
    for answer in answers:
        shown = " ".join(answer["text"].split())
        lines.append(f"  {answer['model']} ({answer['finish_reason']}, {answer['tokens']} tokens)")
        lines.append(f"    {shown if len(shown) <= 300 else f'{shown[:297]}...'}")
    parts = ", ".join(f"{name} {s:.0f}" for name, s in seconds.items())
    lines += [
        f"seconds        {sum(seconds.values()):.0f}: {parts}",
        f"report         {(RUN / 'adapters' / ADAPTER / 'report.html').resolve()}",
        f"serve it again $ {' '.join(serve)}",
    ]
    return "\n".join(lines)


def _environment() -> dict[str, str]:
    """Return the commands' environment: a Ray of their own, whatever else runs here."""
    return local_cluster.environment() | {"RAY_ADDRESS": "local"}
