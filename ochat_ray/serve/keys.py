"""API keys: stored as digests, compared in constant time, reloaded when their file changes.

`python -m ochat_ray.serve.keys NAME` creates one and prints the key and the line for the file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ochat_ray.errors import UserError

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHECK_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """Name and SHA-256 digest of a key; the key itself is not stored."""

    name: str
    digest: bytes


def hash_key(key: str) -> bytes:
    """Return the SHA-256. Keys are random and long, so no slow password hash is needed."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the keys of a file; see `parse_keys`.

    Raises:
        UserError: The file cannot be read, or is invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read API keys from {path}: {type(error).__name__}") from error
    return parse_keys(text, str(path))


def parse_keys(text: str, where: str) -> tuple[ApiKey, ...]:
    """Parse keys, one per line: `key`, `name:key` or `name:sha256:DIGEST`; # starts a comment line.

    Raises:
        UserError: There is no key, a key contains a space, or two have the same name. No message
            contains any part of a key.
    """
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        if not colon:
            name, key = f"line {number}", line
        name = name.strip()
        if not name or not key or len(key.split()) != 1 or key != key.strip():
            raise UserError(f"line {number} of {where} is not `key`, `name:key` or a digest")
        if name in keys:
            raise UserError(f"line {number} of {where}: the name {name!r} occurs twice")
        match = _DIGEST.fullmatch(key)
        digest = bytes.fromhex(match[1]) if match else hash_key(key)
        keys[name] = ApiKey(name=name, digest=digest)
    if not keys:
        raise UserError(f"no API key in {where}; write one `key` or `name:key` per line")
    return tuple(keys.values())


def find_key(keys: Sequence[ApiKey], key: str) -> ApiKey | None:
    """Return the entry of a key; all are compared, each in constant time."""
    digest = hash_key(key)
    found = None
    for entry in keys:
        if hmac.compare_digest(entry.digest, digest):
            found = entry
    return found


class KeyRing:
    """Current keys, reloaded when their file changes; the file is checked once per second.

    If the file becomes invalid, this is logged once and the previous keys stay: an editing mistake
    neither locks clients out nor opens the server.
    """

    def __init__(
        self,
        keys: Sequence[ApiKey],
        path: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = tuple(keys)
        self._path = Path(path) if path else None
        self._clock = clock
        self._looked = clock()
        self._stamp = self._file_stamp()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, authorization: str | None) -> ApiKey | None:
        """Return the key in an `Authorization: Bearer KEY` header; None if it is unknown."""
        self._reload_if_changed()
        scheme, _, key = (authorization or "").partition(" ")
        found = find_key(self._keys, key.strip())
        return found if scheme.lower() == "bearer" else None

    def _reload_if_changed(self) -> None:
        if self._path is None or self._clock() - self._looked < _CHECK_INTERVAL_S:
            return
        self._looked = self._clock()
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except UserError as error:
            logger.warning("keeping the API keys as they were: %s", error)
        else:
            logger.info("read %d API keys from %s", len(self._keys), self._path)

    def _file_stamp(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return None
        try:
            stat = os.stat(self._path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def main() -> None:
    """Print a new key and its line for the file."""
    if len(sys.argv) != 2 or not re.fullmatch(r"[\w.-]+", sys.argv[1]):
        print("usage: python -m ochat_ray.serve.keys NAME", file=sys.stderr)
        sys.exit(2)
    key = f"sk-{secrets.token_urlsafe(32)}"
    print(f"key, for the client, shown this once:  {key}")
    print(f"line, for the server's file of keys:   {sys.argv[1]}:sha256:{hash_key(key).hex()}")


if __name__ == "__main__":
    main()
