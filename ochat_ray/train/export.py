"""From a training engine to a plain Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from ochat_ray.exported_tokenizer import export_tokenizer
from ochat_ray.run_dir import RunDir
from ochat_ray.train.base_model import configure_generation, embeddings, vocabulary_size
from ochat_ray.train.engine import Engine

SHARD_BYTES = 4 << 30


def export(engine: Engine, tokenizer: Any, directory: Path, model_type: str) -> None:
    """Write bfloat16 safetensors, configuration and tokenizer; all workers call it together.

    One parameter at a time is gathered and only the first worker keeps it, so memory stays at one
    shard of the model. Each is gathered again and compared with what was written. Rows of the
    embeddings that belong to no token are cut off.
    """
    first = distributed.get_rank() == 0
    model, rows = engine.model, vocabulary_size(tokenizer)
    cut = {id(weight) for weight in embeddings(model)}

    def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
        weight = parameter.detach()
        return (weight[:rows] if id(parameter) in cut else weight).to("cpu", torch.bfloat16)

    writer = _ShardWriter(directory)
    for name, parameter in model.named_parameters():
        with engine.whole(parameter):
            if first:
                writer.add(name, whole(parameter).clone())
    if first:
        writer.finish()
        _check_complete(model, writer.where)
    for name, parameter in model.named_parameters():
        with engine.whole(parameter):
            if first:
                written = _read(directory / writer.where[name], name)
                assert torch.equal(written, whole(parameter)), f"{name} was not written as it is"
    if first:
        model.config.dtype = torch.bfloat16
        model.config.use_cache = True
        model.config.vocab_size = rows
        configure_generation(model, tokenizer)
        model.config.save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        export_tokenizer(tokenizer, model_type).save_pretrained(directory)
    distributed.barrier()


def publish(directory: Path, run: RunDir) -> None:
    """Copy a directory's files into a run directory, each of them whole or not at all."""
    for path in sorted(directory.iterdir()):
        with path.open("rb") as source, run.writing(path.name) as target:
            shutil.copyfileobj(source, target, 16 << 20)


class _ShardWriter:
    """Collects tensors and writes a file whenever a shard is full."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._total = 0
        self._files: list[list[str]] = []
        self.where: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._tensors and self._bytes + size > SHARD_BYTES:
            self._flush()
        self._tensors[name] = tensor.contiguous()
        self._bytes += size
        self._total += size

    def finish(self) -> None:
        self._flush()
        count = len(self._files)
        for number, names in enumerate(self._files):
            file = (
                "model.safetensors"
                if count == 1
                else (f"model-{number + 1:05d}-of-{count:05d}.safetensors")
            )
            (self._directory / f"shard-{number}").rename(self._directory / file)
            self.where |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": self.where}
            (self._directory / "model.safetensors.index.json").write_text(json.dumps(index))

    def _flush(self) -> None:
        path = self._directory / f"shard-{len(self._files)}"
        save_file(self._tensors, path, metadata={"format": "pt"})
        self._files.append(list(self._tensors))
        self._tensors, self._bytes = {}, 0


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _check_complete(model: Any, written: dict[str, str]) -> None:
    """Every tensor of the model's own state is there, tied ones aside."""
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    missing = set(model.state_dict()) - set(written) - tied
    assert not missing, f"not exported: {sorted(missing)[:5]}"
