"""The command `ochat-ray`: one subcommand per stage, and the demo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

PROGRAM = "ochat-ray"
COMMANDS = {
    "prepare": ("ochat_ray.jobs.prepare", "convert conversations to token tables"),
    "train": ("ochat_ray.jobs.train", "fine-tune a model on token tables"),
    "serve": ("ochat_ray.jobs.serve", "serve a model behind an OpenAI-compatible API"),
    "evaluate": ("ochat_ray.jobs.evaluate", "score a served model with a judge"),
    "export": ("ochat_ray.jobs.export", "convert a model to GGUF, for llama.cpp and Ollama"),
    "status": ("ochat_ray.jobs.status", "show what runs on a cluster, and what has failed"),
    "demo": ("ochat_ray.demo.pipeline", "run all stages on a small real model"),
}
"""Module with `main(arguments)` and description of each subcommand."""


def usage() -> str:
    """Return the list of subcommands."""
    lines = [f"  {name:<10} {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND ...",
            "",
            "Fine-tune, serve and evaluate a chat model on your conversations.",
            "",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` shows the options of a command.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 2 if there is none of that name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("--help", "-h"):
        print(usage())
        return 0
    name, *rest = given
    if name == "--version":
        from ochat_ray import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"{PROGRAM}: unknown command {name!r}; choose {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(COMMANDS[name][0])
    return int(module.main(rest))


if __name__ == "__main__":
    sys.exit(main())
