"""Fingerprint of a base model's content, which identifies the model of a run."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from ochat_ray.errors import UserError, first_line
from ochat_ray.models.model_directory import files_of

WHOLE_BYTES = 64 * 2**20
"""Files up to this size are hashed completely; of larger ones this many bytes, evenly spread."""

BLOCK_BYTES = 2**20

_WEIGHTS = (".safetensors", ".bin")
_VOLATILE = ("transformers_version", "_name_or_path")
"""Keys of config.json that do not describe the model."""

_READERS = 8


def fingerprint(path: str) -> str:
    """Return a digest of a base model's configuration and weights.

    For weights: each file's name, size and bytes; for a large file the header (safetensors: names,
    types and shapes), the first and last block, and blocks evenly spread between them. For a hub
    name: the commit in this host's cache, which identifies the content, or else the name.

    Raises:
        UserError: a file cannot be read.
    """
    found = files_of(path)
    if found is None:
        return _commit(path) or path
    fs, files = found
    config = next((file for file in files if file.base_name == "config.json"), None)
    weights = sorted(
        (file for file in files if file.base_name.endswith(_WEIGHTS)), key=lambda f: f.base_name
    )
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            digests = list(pool.map(lambda file: content_digest(fs, file), weights))
        content = [
            _described(_read(fs, config.path)) if config else None,
            [(f.base_name, f.size, digest) for f, digest in zip(weights, digests, strict=True)],
        ]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def content_digest(fs: pafs.FileSystem, file: pafs.FileInfo) -> str:
    """Return the SHA-256 of a file's bytes, or of the header and blocks of a large file."""
    state = hashlib.sha256()
    with fs.open_input_file(file.path) as stream:
        for start, length in blocks(file.size, _header_bytes(stream, file)):
            left, position = length, start
            while left:
                chunk = stream.read_at(min(left, BLOCK_BYTES), position)
                if not chunk:
                    raise OSError(f"{file.path} ends before its {file.size:,} bytes")
                state.update(chunk)
                left, position = left - len(chunk), position + len(chunk)
    return state.hexdigest()


def blocks(size: int, header: int = 0) -> list[tuple[int, int]]:
    """Return start and length in bytes of the hashed blocks of a file, in ascending order."""
    if size <= WHOLE_BYTES:
        return [(0, size)]
    count = WHOLE_BYTES // BLOCK_BYTES
    last = size - BLOCK_BYTES
    spread = [(last * number // (count - 1), BLOCK_BYTES) for number in range(count)]
    return [(0, min(header, size)), *spread] if header else spread


def _header_bytes(stream: pa.NativeFile, file: pafs.FileInfo) -> int:
    """Return the length of a safetensors header with its length field; 0 for other files."""
    if not file.base_name.endswith(".safetensors") or file.size < 8:
        return 0
    length = 8 + int.from_bytes(stream.read_at(8, 0), "little")
    return length if length <= file.size else 0


def _described(config: bytes) -> Any:
    """Return the content of config.json that describes the model; as text if it is not JSON."""
    try:
        found = json.loads(config)
    except ValueError:
        return config.decode(errors="replace")
    if isinstance(found, dict):
        return {key: value for key, value in found.items() if key not in _VOLATILE}
    return found


def _read(fs: pafs.FileSystem, path: str) -> bytes:
    with fs.open_input_stream(path, compression=None) as stream:
        data: bytes = stream.read()
        return data


def _commit(name: str) -> str | None:
    """Return the commit of a hub repository whose config.json is in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    if not isinstance(found, str):
        return None
    # .../snapshots/COMMIT/config.json
    return found.replace("\\", "/").rsplit("/", 2)[-2]
