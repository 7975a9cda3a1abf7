"""Export of a training engine's model as a plain Hugging Face directory."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import generation_config, vocabulary_size
from ochat_ray.run_dir import RunDir
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.tokenization.tokenizer import end_of_turn_id
from ochat_ray.train.engine import Engine
from ochat_ray.train.hub_config import write_config
from ochat_ray.train.hub_format import HubFormat

SHARD_BYTES = 4 << 30


def export(engine: Engine, tokenizer: Any, directory: Path, model_type: str) -> None:
    """Write bfloat16 safetensors, configuration and tokenizer; all workers must call it.

    Names and layouts are those of the hub. Parameters are gathered one group at a time, and only
    the first worker keeps them, so memory is limited to one shard of the model. Each is gathered
    again and compared with the file. Embedding rows that belong to no token are removed. The
    engine's weights are rounded to the written ones, so that both models compute the same.
    """
    first = distributed.get_rank() == 0
    config = exported_config(engine.model, tokenizer)
    state = ExportedState(engine.model, config)
    hub = HubFormat(engine.model)
    groups = hub.groups(state.names)

    split = split_into_files(hub.to_file(state.on_meta_device()))
    writer = _ShardWriter(directory, split)
    for group in groups:
        with _gathered(engine, state, group, changes=True):
            state.round(group)
            if first:
                for name, tensor in hub.to_file(state.take(group)).items():
                    writer.add(name, tensor.to("cpu", copy=True))
    if first:
        writer.finish()
    for group in groups:
        with _gathered(engine, state, group):
            if first:
                for name, tensor in hub.to_file(state.take(group)).items():
                    written = _read(directory / split.tensor_to_filename[name], name)
                    assert torch.equal(written, tensor.cpu()), f"{name} differs from its file"
    if first:
        write_config(config, directory)
        generation_config(tokenizer, engine.model.generation_config).save_pretrained(directory)
        export_tokenizer(tokenizer, model_type).save_pretrained(directory)
    distributed.barrier()


def exported_config(model: Any, tokenizer: Any) -> Any:
    """Return the configuration of an export, with its dtype, vocabulary and end-of-turn token."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.use_cache = True
    config.eos_token_id = end_of_turn_id(tokenizer)
    config.get_text_config().vocab_size = vocabulary_size(tokenizer)
    named = dict(model.named_parameters(remove_duplicate=False))
    for target, source in model.all_tied_weights_keys.items():
        if named.get(target) is not named.get(source):
            config.tie_word_embeddings = False  # regardless of the base's setting
    return config


def meta_model(model_class: Any, config: Any) -> Any:
    """Return a model without weights, on torch's meta device."""
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    model.tie_weights()
    return model


class ExportedState:
    """Tensors of a model that are written to files, by their names at run time.

    Of tied tensors it has the one that transformers keeps. Persistent buffers (the bias of
    DeepSeek-V3's experts) are included.

    Args:
        model: model of the engine; its parameters are partitioned under ZeRO-3.
        config: configuration of the exported model, which determines the shapes in the files.

    Raises:
        UserError: a model of this configuration has other tensors.
    """

    def __init__(self, model: Any, config: Any) -> None:
        meta = meta_model(type(model), config)
        dropped = {*meta.all_tied_weights_keys, *(meta._keys_to_ignore_on_save or ())}
        self._shapes = {n: t.shape for n, t in meta.state_dict().items() if n not in dropped}
        self._rows = (_vocabulary(model.config), _vocabulary(config))
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        tensors = self.parameters | dict(model.named_buffers(remove_duplicate=False))
        for name, shape in self._shapes.items():
            found = tensors.get(name)
            if found is None or not self._fits(getattr(found, "ds_shape", found.shape), shape):
                raise UserError(
                    f"a model of type {model.config.model_type} cannot be exported with a new "
                    f"token: the shape of {name} is not that of a vocabulary of {self._rows[1]}"
                )
        self._tensors = {name: tensors[name] for name in self._shapes}
        self._in_float32 = [
            re.compile(pattern.replace("*", ".*"))
            for pattern in meta._keep_in_fp32_modules_strict or ()
        ]

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the model's order."""
        return list(self._tensors)

    @torch.no_grad()
    def round(self, group: Iterable[str]) -> None:
        """Round gathered parameters in place to the dtype in which they are written."""
        for name in group:
            if self.rounds(name):
                tensor = self._tensors[name]
                tensor.copy_(tensor.to(self._dtype(name)))

    def rounds(self, name: str) -> bool:
        """Return whether a tensor is written in another dtype."""
        return self._dtype(name) != self._tensors[name].dtype

    def take(self, group: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return gathered tensors in the written dtype, without the padding of the vocabulary."""
        return {name: self._take(name) for name in group}

    def on_meta_device(self) -> dict[str, torch.Tensor]:
        """Return all tensors with their written shapes and dtypes, without content."""
        return {
            name: torch.empty(shape, dtype=self._dtype(name), device="meta")
            for name, shape in self._shapes.items()
        }

    def _take(self, name: str) -> torch.Tensor:
        tensor, shape = self._tensors[name].detach(), self._shapes[name]
        return tensor[tuple(slice(size) for size in shape)].to(self._dtype(name))

    def _fits(self, found: Sequence[int], expected: Sequence[int]) -> bool:
        """Return whether two shapes are equal except for the padding of the vocabulary."""
        if len(found) != len(expected):
            return False
        pairs = zip(found, expected, strict=True)
        return all(pair[0] == pair[1] or pair == self._rows for pair in pairs)

    def _dtype(self, name: str) -> torch.dtype:
        kept = name not in self.parameters or any(p.search(name) for p in self._in_float32)
        return self._tensors[name].dtype if kept else torch.bfloat16


def _vocabulary(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


@contextlib.contextmanager
def _gathered(
    engine: Engine, state: ExportedState, group: Iterable[str], *, changes: bool = False
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in group:
            if (parameter := state.parameters.get(name)) is not None:
                rounded = changes and state.rounds(name)
                stack.enter_context(engine.gathered(parameter, changes=rounded))
        yield


def publish(directory: Path, run: RunDir) -> None:
    """Copy a directory's files into a run directory, each of them atomically."""
    for path in sorted(directory.iterdir()):
        with path.open("rb") as source, run.writing(path.name) as target:
            shutil.copyfileobj(source, target, 16 << 20)


def split_into_files(tensors: Mapping[str, torch.Tensor]) -> StateDictSplit:
    """Return the files that tensors are written to, in order; they may be on the meta device."""
    return split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )


class _ShardWriter:
    """Writer that collects the tensors of a file, and writes it once it has all of them."""

    def __init__(self, directory: Path, split: StateDictSplit) -> None:
        self._directory, self._split = directory, split
        self._tensors: dict[str, dict[str, torch.Tensor]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        file = self._split.tensor_to_filename[name]
        collected = self._tensors.setdefault(file, {})
        collected[name] = tensor.contiguous()
        if len(collected) == len(self._split.filename_to_tensors[file]):
            save_file(self._tensors.pop(file), self._directory / file, metadata={"format": "pt"})

    def finish(self) -> None:
        assert not self._tensors
        if self._split.is_sharded:
            where = self._split.tensor_to_filename
            index = {"metadata": self._split.metadata, "weight_map": where}
            (self._directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor
