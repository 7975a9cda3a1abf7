"""Prompt ids of conversations as llama.cpp reads them from a GGUF file.

`python -m ochat_ray.export.prompt_ids FILE < CONVERSATIONS.json` prints them as JSON. llama.cpp
writes each conversation with the file's chat template and tokenizes it, as for an answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from ochat_ray.errors import UserError

TIMEOUT_S = 1800


def is_installed() -> bool:
    """Return whether xllamacpp is, which has llama.cpp as a Python module."""
    return find_spec("xllamacpp") is not None


def prompt_ids(file: Path, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
    """Return the ids of conversations with the prompt for an answer, in a process of its own.

    Raises:
        UserError: llama.cpp cannot open the file.
    """
    command = [sys.executable, "-m", __name__, str(file)]
    asked = json.dumps(conversations)
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"llama.cpp did not open the file within {TIMEOUT_S} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = (lines or [f"status {done.returncode}"])[-1].strip()[:200]
        raise UserError(f"llama.cpp cannot open the converted file: {reason}")
    found: list[list[int]] = json.loads(done.stdout)
    return found


def main() -> None:
    """Answer on standard output; everything else that llama.cpp prints goes to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx, parameters.warmup, parameters.use_jinja = 512, False, True
    server = xllamacpp.Server(parameters)
    address = server.listening_address
    url = address if address.startswith("http") else f"http://{address}"
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        found = [_ids_of(client, conversation) for conversation in json.load(sys.stdin)]
    os.write(answer, json.dumps(found).encode())
    os._exit(0)  # llama.cpp's threads may wait for their server


def _ids_of(client: httpx.Client, conversation: Any) -> Any:
    prompt = _post(client, "/apply-template", {"messages": conversation})["prompt"]
    asked = {"content": prompt, "add_special": True, "parse_special": True}
    return _post(client, "/tokenize", asked)["tokens"]


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


if __name__ == "__main__":
    main()
