"""Command-line options of `ochat-ray export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

TensorType = Literal["bf16", "f16", "f32", "q8_0"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Convert a model directory to GGUF, for llama.cpp and Ollama, and check the result."""

    model: tyro.conf.Positional[str]
    """Model directory or its URI, such as runs/chat/model; not one of adapters alone."""
    output: str = ""
    """Directory to write model.gguf and Modelfile to; default: the model's name and -gguf."""
    type: TensorType = "bf16"
    """Type of the tensors: bf16 (weights as trained), f16, f32, or q8_0 (8 bits, half as big).
    For smaller ones run llama.cpp's llama-quantize on the result."""
    converter: str | None = None
    """llama.cpp's convert_hf_to_gguf.py, or a checkout of llama.cpp; default: the one on PATH."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object on the last line of standard output."""
