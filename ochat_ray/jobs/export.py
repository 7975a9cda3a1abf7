"""Convert a model directory to GGUF: work and printed result of the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.export.config import ExportConfig


def work(config: ExportConfig) -> dict[str, Any]:
    """Convert and return what `--json` prints."""
    from ochat_ray.export.convert import export_gguf

    return export_gguf(config)


def describe(config: ExportConfig, result: dict[str, Any]) -> str:
    """Return the result as text for a terminal."""
    prompts = result["prompts"]
    ids = (
        "prompt ids not checked, since xllamacpp is not installed (pip install xllamacpp)"
        if prompts is None
        else f"ids of {prompts} prompts in llama.cpp equal"
    )
    ollama = (
        "chat template translated"
        if result["ollama_template"]
        else "without a chat template, which Ollama's language cannot express"
    )
    return (
        f"{result['file']}: {result['bytes'] / 1e6:,.0f} MB, {config.type} · tokens, template, "
        f"end of turn and BOS equal · {ids}\n"
        f"llama.cpp: llama-server -m {result['file']} --jinja\n"
        f"Ollama: ollama create MODEL -f {result['modelfile']} ({ollama})"
    )


def main(arguments: Sequence[str], program: str = "ochat-ray export") -> int:
    """Run the command and return its exit status."""
    return run(lambda _recipe: ExportConfig(model=""), work, describe, program, arguments)
