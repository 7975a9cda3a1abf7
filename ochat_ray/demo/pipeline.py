"""Run `make demo`: all stages on one machine, from a download to two answered questions.

`ochat-ray demo [--keep]` runs the demo; --keep leaves the server running. `ochat-ray demo stop`
stops the server that --keep left running. `ochat-ray demo chat` is `make demo-chat`: own chats, a
base with its own chat template, an adapter. `python -m ochat_ray.demo` is the same.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from ochat_ray.cluster import local_cluster
from ochat_ray.command_line import user_message
from ochat_ray.demo import assets
from ochat_ray.errors import UserError

RUN = Path("runs/demo")
_PROCESSES = RUN / "processes.json"
_URL = f"http://127.0.0.1:{local_cluster.SERVE_PORT}"
# Routine lines of Ray's own logger; lines of the jobs have another format.
_RAY_INFO = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|SUCC|WARNING) \w+\.py:\d+ -- ")
_QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of the served model; `finish_reason` is "stop" or "length"."""

    question: str
    text: str
    finish_reason: str
    tokens: int


@dataclass
class Demo:
    """State of one demo run: its processes, Ray's temporary directory, seconds per stage."""

    temp_dir: Path
    processes: list[psutil.Process] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage and record its duration."""
        print(f"\n── {name} {'─' * (72 - len(name))}\n$ {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def run(self, *command: str) -> None:
        """Run a command and wait for it.

        Raises:
            UserError: The command failed; its own output, shown above, gives the reason.
        """
        with subprocess.Popen(
            command,
            env=local_cluster.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not _RAY_INFO.match(line):
                    print(line, end="", flush=True)
        if process.returncode != 0:
            raise UserError(f"`{' '.join(command)}` failed; Ray's logs are in {self.temp_dir}")

    def start_ray(self) -> None:
        """Start Ray and wait for its Jobs API."""
        local_cluster.make_token()
        log = self.temp_dir / "ray_start.log"
        ray = local_cluster.start_ray(self.temp_dir, log)
        self.processes.append(psutil.Process(ray.pid))
        self._wait_for(ray, f"http://127.0.0.1:{local_cluster.DASHBOARD_PORT}/api/version", log)

    def start_serve(self) -> None:
        """Start `serve run` in the background and wait until a replica can answer."""
        log = self.temp_dir / "serve_run.log"
        with log.open("wb") as output:
            serve = subprocess.Popen(
                ["serve", "run", "ochat_ray.serve:app"],
                # `serve run` looks for Ray in its default directory, which the demo leaves alone,
                # and would start another one.
                env=local_cluster.environment()
                | {"RAY_ADDRESS": f"127.0.0.1:{local_cluster.RAY_PORT}"},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.processes.append(psutil.Process(serve.pid))
        self._wait_for(serve, f"{_URL}/health", log)

    def end(self) -> None:
        """Stop every started process and its descendants, last started first."""
        for process in reversed(self.processes):
            local_cluster.end_processes([process])
        local_cluster.end_processes(psutil.Process().children())

    @staticmethod
    def _wait_for(
        process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float = 180
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not local_cluster.answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                last = lines[-1] if lines else "no output"
                raise UserError(f"{url} does not answer: {last} (log: {log})")
            time.sleep(0.5)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    if arguments not in ([], ["--keep"], ["stop"], ["chat"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if arguments == ["stop"]:
            stop()
        elif arguments == ["chat"]:
            from ochat_ray.demo.chat import demo_chat

            demo_chat()
        else:
            demo(keep=arguments == ["--keep"])
    except KeyboardInterrupt:
        print("\ninterrupted; everything the demo started was ended", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"demo: {message}", file=sys.stderr)
        return 2
    return 0


def demo(*, keep: bool) -> None:
    """Run all stages and print a summary.

    Raises:
        UserError: A stage failed; its own error line gives the reason.
    """
    local_cluster.need_free_ports()
    local_cluster.adopt_orphans()
    # Ray puts its sockets here, and socket paths must be short.
    run = Demo(temp_dir=Path(tempfile.mkdtemp(prefix="ochat-ray-")))
    keep_processes, keep_logs = False, False
    try:
        with run.stage("inputs", "python -m ochat_ray.demo.assets"):
            print(f"conversations  {assets.conversations()}")
            print(f"base model     {assets.base_model()}")
        for result in ("data", "model"):
            shutil.rmtree(RUN / result, ignore_errors=True)
        with run.stage("ray", "ray start --head   (loopback, token authentication)"):
            run.start_ray()
            print(f"dashboard      http://127.0.0.1:{local_cluster.DASHBOARD_PORT}")
        for stage in ("prepare", "train"):
            command = ["ray", "job", "submit", "--", *_job(stage)]
            with run.stage(stage, " ".join(command)):
                run.run(*command)
        with run.stage("serve", "serve run ochat_ray.serve:app"):
            run.start_serve()
        with run.stage("ask", f"POST {_URL}/v1/chat/completions   (stream: true)"):
            answers = [ask(question) for question in _QUESTIONS]
        print(summary(run.seconds, answers))
        if keep:
            _remember(run)
            keep_processes = keep_logs = True
    except UserError:
        keep_logs = True  # its line names them
        raise
    finally:
        if not keep_processes:
            run.end()
        if not keep_logs:
            shutil.rmtree(run.temp_dir, ignore_errors=True)


def _job(stage: str) -> list[str]:
    """Return the command of a stage: the script of a checkout, or else the installed command."""
    script = f"jobs/{stage}.py"
    return ["python", script] if Path(script).is_file() else ["ochat-ray", stage]


def ask(question: str) -> Answer:
    """Ask the served model one question and print the answer as it streams."""
    print(f"\n> {question}\n", flush=True)
    body = {
        "model": httpx.get(f"{_URL}/v1/models", timeout=30).json()["data"][0]["id"],
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 128,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, finish_reason, tokens = "", "", 0
    with httpx.stream("POST", f"{_URL}/v1/chat/completions", json=body, timeout=300) as response:
        if response.status_code != httpx.codes.OK:
            raise UserError(f"the server answered {response.status_code}: {response.read()!r}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise UserError(f"the stream broke: {chunk['error']['message']}")
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                print(piece, end="", flush=True)
                text += piece
                finish_reason = choice["finish_reason"] or finish_reason
    print(flush=True)
    return Answer(question=question, text=text, finish_reason=finish_reason, tokens=tokens)


def summary(seconds: dict[str, float], answers: list[Answer]) -> str:
    """Return a readable summary of the run, taken from its manifests."""
    data = json.loads((RUN / "data/manifest.json").read_text())
    model = json.loads((RUN / "model/ochat.json").read_text())
    counts, tokens = data["counts"], data["tokens"]
    before, after = model["eval_before"], model["eval_after"]
    lines = [
        "",
        f"── summary {'─' * 65}",
        f"conversations  {counts['read']:>10,} read",
        f"               {counts['kept']:>10,} kept",
        *(f"               {n:>10,} dropped: {r}" for r, n in counts["dropped"].items()),
        f"tokens         {tokens['train']['tokens']:>10,} to train on, "
        f"{tokens['train']['supervised_tokens']:,} of them supervised",
        f"               {tokens['eval']['tokens']:>10,} held out",
        f"held-out loss  {before['loss']:>10.4f} before",
        f"               {after['loss']:>10.4f} after {model['step']} ZeRO-{model['zero_stage']} "
        f"steps on {model['world_size']} workers, of {model['conversations']:,} short "
        "conversations",
        f"end of turn    {100 * before['end_of_turn']:>9.0f}% chosen before, "
        f"{100 * after['end_of_turn']:.0f}% after",
        "answers",
    ]
    for answer in answers:
        shown = " ".join(answer.text.split())
        shown = shown if len(shown) <= 160 else f"{shown[:157]}..."
        lines += [f"  > {answer.question}", f"    {shown}"]
        lines += [f"    ({answer.finish_reason}, {answer.tokens} tokens)"]
    lines.append(f"seconds        {sum(seconds.values()):>10.0f} in all")
    lines += [f"               {s:>10.0f} {stage}" for stage, s in seconds.items()]
    lines += [
        f"report         {(RUN / 'data/report.html').resolve()}",
        f"model          {(RUN / 'model').resolve()}",
    ]
    return "\n".join(lines)


def stop() -> None:
    """Stop the server that a demo with --keep left running.

    Raises:
        UserError: No such server is recorded.
    """
    if not _PROCESSES.exists():
        raise UserError("nothing to stop: no demo was left up with KEEP=1")
    left = json.loads(_PROCESSES.read_text())
    roots = [
        psutil.Process(entry["pid"])
        for entry in left["processes"]
        if psutil.pid_exists(entry["pid"])
    ]
    # The process id may have been reused since.
    started = {entry["pid"]: entry["create_time"] for entry in left["processes"]}
    local_cluster.end_processes([p for p in roots if p.create_time() == started[p.pid]])
    shutil.rmtree(left["temp_dir"], ignore_errors=True)
    _PROCESSES.unlink()
    print("stopped")


def _remember(run: Demo) -> None:
    left = {
        "temp_dir": str(run.temp_dir),
        "processes": [{"pid": p.pid, "create_time": p.create_time()} for p in run.processes],
    }
    _PROCESSES.write_text(json.dumps(left))
    print(f"server         {_URL}/v1   (make stop ends it)")
