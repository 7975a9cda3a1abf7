"""Run the usual calls of one client, in an environment that has it.

    python run_calls.py CLIENT URL MODEL_DIRECTORY

Prints one JSON object per call: its name, and `result`, which is "works", the text of a rejection
that was expected, or "FAILS: " and the reason. ONLY_CALLS is a regex of the calls to run.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time

from client_common import Server, run

CLIENTS = {
    "openai": "openai_calls",
    "litellm": "litellm_calls",
    "langchain-openai": "langchain_calls",
    "llama-index-llms-openai-like": "llama_index_calls",
    "pydantic-ai-slim": "pydantic_ai_calls",
    "instructor": "instructor_calls",
    "smolagents": "smolagents_calls",
    "guidellm": "harness_calls",
    "lm-eval": "harness_calls",
    "histories": "history_calls",
}
FUNCTIONS = {"guidellm": "guidellm_calls", "lm-eval": "lm_eval_calls"}
"""Functions whose name is not that of their module."""


def main() -> None:
    client, url, directory = sys.argv[1:]
    module = importlib.import_module(CLIENTS[client])
    calls = getattr(module, FUNCTIONS.get(client, CLIENTS[client]))
    only = os.environ.get("ONLY_CALLS", "")
    for name, call in calls(Server(url, directory)).items():
        if re.search(only, name):
            started = time.monotonic()
            row = {"call": name, "result": run(call)}
            row["seconds"] = f"{time.monotonic() - started:.1f}"
            # On a line of its own: clients write, too.
            print("\n" + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
