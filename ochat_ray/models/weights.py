"""Checks of a base model's weight files that read only their headers, local or at a URI.

The format of safetensors: the header's length as 8 bytes in little-endian order, a JSON header
with dtype, shape and data_offsets per tensor, then the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pyarrow import fs as pafs

from ochat_ray.errors import UserError, one_line
from ochat_ray.models.model_directory import WEIGHTS, files_of

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS = b"version https://git-lfs.github.com/spec/"
_TEXTS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "config.json")
_LARGEST_HEADER = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_QUANTISED = (".qweight", ".qzeros", ".weight_packed", ".absmax", ".weight_scale", "_scale_inv")
"""Endings of the names of tensors of GPTQ, AWQ, compressed-tensors, bitsandbytes and fp8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """Header entry of a tensor; `dtype` is safetensors' name, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]


def check_files(path: str) -> dict[str, Tensor] | None:
    """Return the tensors that transformers would load from a directory or URI.

    None if headers are not available: for a hub name, and for pickled weights.

    Raises:
        UserError: files are Git LFS pointers, truncated or missing, or the tensors are quantised.
    """
    found = files_of(path)
    if found is None:
        return None
    fs, files = found
    sizes = {file.base_name: file for file in files}
    for name, file in sizes.items():
        if file.size < 1024 and name.endswith((*WEIGHTS, *_TEXTS)):
            with fs.open_input_stream(file.path) as stream:
                if stream.read(len(_LFS)) == _LFS:
                    raise UserError(
                        f"{path}/{name} is a Git LFS pointer, not the file; run git lfs pull there"
                    )
    if _FILE in sizes:
        tensors = _header(fs, sizes[_FILE], path)
    elif _INDEX in sizes:
        tensors = _sharded(fs, sizes, path)
    elif any(name.endswith(".safetensors") for name in sizes):
        raise UserError(
            f"{path} has safetensors, but neither {_FILE} nor {_INDEX}; expected a complete "
            "Hugging Face model, not an adapter or a single shard"
        )
    else:
        return None
    for name, tensor in tensors.items():
        narrow = tensor.dtype.startswith(("F8", "F4", "F6")) and tensor.dtype not in _DTYPES
        if name.endswith(_QUANTISED) or narrow:
            raise _quantised(path, f"{name} is {tensor.dtype}")
    return tensors


def check_tensors(path: str, tensors: dict[str, Tensor], config: Any) -> list[str]:
    """Check tensors against the model of `config`; return the names of tensors that it ignores.

    transformers itself matches them, as during loading, but with tensors on the meta device.

    Raises:
        UserError: parameters of the model are missing, have another shape or are integers, or
            transformers cannot create the model.
    """
    import torch
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        kind = _class_of(path, config)
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict={
                name: torch.empty(
                    tensor.shape,
                    dtype=getattr(torch, _DTYPES.get(tensor.dtype, "float32")),
                    device="meta",
                )
                for name, tensor in tensors.items()
            },
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # whatever a model's code raises
        raise _cannot_be_made(path, error) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    check_loaded(path, info)
    for name, _ in model.named_parameters():
        if name in tensors and tensors[name].dtype.startswith(("I", "U", "BOOL")):
            raise _quantised(path, f"{name} is {tensors[name].dtype}")
    return sorted(info["unexpected_keys"])


def _class_of(path: str, config: Any) -> Any:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{path} is not a causal language model of transformers (model_type "
            f"{config.model_type})"
        )
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config))


def _cannot_be_made(path: str, error: Exception) -> UserError:
    return UserError(
        f"transformers cannot create a model from the config.json and weights of {path}: "
        f"{type(error).__name__}: {one_line(error)}; is the copy complete and unchanged?"
    )


def check_loaded(path: str, info: dict[str, Any]) -> None:
    """Check transformers' report of the loading of a model.

    Raises:
        UserError: parameters were missing, or had another shape; training would start them from
            random values.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"the weights of {path} lack {_some(missing)}, which the model of its config.json has; "
            "is the copy complete, and is it a causal language model?"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        raise UserError(
            f"{len(mismatched)} weights of {path} do not have the shape of its config.json: {name} "
            f"is {tuple(there)}, expected {tuple(wanted)}"
        )


def check_config(path: str, config: Any) -> None:
    """Raise a UserError for quantised weights, which cannot be trained."""
    for part in (config, config.get_text_config(decoder=True)):
        quantisation = getattr(part, "quantization_config", None)
        if quantisation:
            settings = quantisation if isinstance(quantisation, dict) else vars(quantisation)
            raise _quantised(path, f"quant_method {settings.get('quant_method', 'unknown')}")


def check_vocabulary(path: str, rows: int, ids: Collection[int], end_of_turn: int) -> None:
    """Check a tokenizer's ids against a model of `rows` embeddings, which may get one more.

    Raises:
        UserError: the tokenizer has ids without an embedding, except a new end-of-turn token.
    """
    beyond = [id for id in ids if id >= rows and not id == end_of_turn == rows]
    if beyond or end_of_turn > rows:
        raise UserError(
            f"{path} has {rows:,} embeddings but its tokenizer's ids reach "
            f"{max([*beyond, end_of_turn]):,}; is this tokenizer the model's own?"
        )


def _sharded(fs: pafs.FileSystem, sizes: dict[str, pafs.FileInfo], path: str) -> dict[str, Tensor]:
    with fs.open_input_stream(sizes[_INDEX].path) as stream:
        try:
            shard_of = json.loads(stream.read())["weight_map"]
            shards = sorted({str(name) for name in shard_of.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}/{_INDEX} is not a weight index; copy it again") from error
    if absent := [name for name in shards if name not in sizes]:
        raise UserError(
            f"{path} lacks {_some(absent)} of {len(shards)} files that {_INDEX} names; "
            "copy the model again"
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= _header(fs, sizes[shard], path)
    if unknown := sorted(set(shard_of) - set(tensors)):
        raise UserError(f"{path}: {_INDEX} names tensors that no file contains: {_some(unknown)}")
    return tensors


def _header(fs: pafs.FileSystem, file: pafs.FileInfo, path: str) -> dict[str, Tensor]:
    name = f"{path}/{file.base_name}"
    with fs.open_input_stream(file.path) as stream:
        read: Callable[[int], bytes] = stream.read
        length = int.from_bytes(read(8), "little")
        if file.size < 8 + min(length, 1) or length > _LARGEST_HEADER:
            raise UserError(f"{name} is not a safetensors file; copy it again")
        text = read(length)
    if len(text) < length:
        raise _cut(name, file.size, 8 + length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        tensors = {
            key: Tensor(dtype=entry["dtype"], shape=tuple(entry["shape"]))
            for key, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{name} has a damaged header; copy it again") from error
    expected = 8 + length + max(ends, default=0)
    if file.size != expected:
        raise _cut(name, file.size, expected)
    return tensors


def _cut(name: str, size: int, expected: int) -> UserError:
    return UserError(
        f"{name} has {size:,} bytes, but its header requires {expected:,}; it is truncated or "
        "damaged: copy it again"
    )


def _quantised(path: str, why: str) -> UserError:
    return UserError(
        f"{path} is quantised ({why}), and quantised weights cannot be trained; use the model in "
        "bfloat16, float16 or float32"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
