"""API keys: stored as digests, compared in constant time, reloaded when their file changes.

`python -m ochat_ray.serve.keys NAME [EXPIRES]` creates one and prints the key and the line for the
file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from ochat_ray.errors import UserError

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_EXPIRES = re.compile(r"expires=(\d{4}-\d{2}-\d{2})")
_CHECK_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """Name and SHA-256 digest of a key; the key itself is not stored.

    `expires` is the last day on which the key is valid, in UTC.
    """

    name: str
    digest: bytes
    expires: date | None = None


def hash_key(key: str) -> bytes:
    """Return the SHA-256. Keys are random and long, so no slow password hash is needed."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the keys of a file; see `parse_keys`.

    Raises:
        UserError: The file cannot be read, is readable by every user, or is invalid. If there is no
            such file, the message does not contain its path, which may be a key given by mistake.
    """
    try:
        mode = path.stat().st_mode
        exposed = bool(mode & stat.S_IROTH) and not stat.S_ISDIR(mode)
        text = "" if exposed else path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise UserError(f"cannot read API keys from {path}: it is a directory") from None
    except PermissionError:
        raise UserError(f"cannot read API keys from {path}: permission denied") from None
    except UnicodeDecodeError:
        raise UserError(f"cannot read API keys from {path}: it is not UTF-8") from None
    except (OSError, ValueError):
        raise UserError(
            "cannot read API keys: no such file (its name is not shown, since it may be a key); "
            "give keys=FILE, a file with one `key` or `name:key` per line"
        ) from None
    if exposed:
        raise UserError(f"every user of this machine can read the API keys; chmod 600 {path}")
    return parse_keys(text, str(path))


def parse_keys(text: str, where: str) -> tuple[ApiKey, ...]:
    """Parse keys, one per line: `key`, `name:key` or `name:sha256:DIGEST`; # starts a comment line.

    ` expires=YYYY-MM-DD` after a key is its last valid day.

    Raises:
        UserError: There is no key, a key contains a space, a digest is not 64 lower-case
            hexadecimal digits, or two keys have the same name. No message contains any part of a
            key.
    """
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key = _parse_line(line, number, where)
        if key.name in keys:
            raise UserError(f"line {number} of {where}: the name {key.name!r} occurs twice")
        keys[key.name] = key
    if not keys:
        raise UserError(f"no API key in {where}; write one `key` or `name:key` per line")
    return tuple(keys.values())


def _parse_line(line: str, number: int, where: str) -> ApiKey:
    text, expires, _ = line.partition(" expires=")
    name, colon, key = text.rstrip().partition(":")
    if not colon:
        name, key = f"line {number}", name
    name = name.strip()
    if not name or not key or len(key.split()) != 1 or key != key.strip():
        raise UserError(f"line {number} of {where} is not `key`, `name:key` or a digest")
    match = _DIGEST.fullmatch(key)
    # Anything else with this prefix would be a key, and so a stored digest would open the server.
    if name.lower() == "sha256" or (key.lower().startswith("sha256:") and not match):
        raise UserError(
            f"line {number} of {where} is not a digest: `name:sha256:` and 64 digits 0-9a-f"
        )
    return ApiKey(
        name=name,
        digest=bytes.fromhex(match[1]) if match else hash_key(key),
        expires=_parse_date(line, number, where) if expires else None,
    )


def _parse_date(line: str, number: int, where: str) -> date:
    match = _EXPIRES.fullmatch(line.split()[-1])
    try:
        if match:
            return date.fromisoformat(match[1])
    except ValueError:
        pass
    raise UserError(f"line {number} of {where}: write the last valid day as expires=YYYY-MM-DD")


def find_key(keys: Sequence[ApiKey], key: str, today: date) -> ApiKey | None:
    """Return the entry of a key that has not expired; all are compared, each in constant time."""
    digest = hash_key(key)
    found = None
    for entry in keys:
        if hmac.compare_digest(entry.digest, digest):
            found = entry
    expired = found is not None and found.expires is not None and found.expires < today
    return None if expired else found


class KeyRing:
    """Current keys: those given, or those of a file, which is checked once per second.

    The file is read when the ring is created, so that a new replica has no revoked key. Without the
    file, or with an invalid one at that time, no key is valid. If the file becomes invalid later,
    the previous keys stay: an editing mistake neither locks clients out nor opens the server. Each
    of these is logged once. A ring is true if requests need a key; the file does not change that.
    """

    def __init__(
        self,
        keys: Sequence[ApiKey] = (),
        path: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        assert not (keys and path), "the file alone decides"
        self._keys = tuple(keys)
        self._path = Path(path) if path else None
        self._clock = clock
        self._today = today
        self._checked = clock()
        self._stamp = self._file_stamp()
        self._read()

    def __bool__(self) -> bool:
        return self._path is not None or bool(self._keys)

    def find(self, authorization: str | None) -> ApiKey | None:
        """Return the key in an `Authorization: Bearer KEY` header; None if it is not valid."""
        self._reload_if_changed()
        scheme, _, key = (authorization or "").partition(" ")
        found = find_key(self._keys, key.strip(), self._today())
        return found if scheme.lower() == "bearer" else None

    def _reload_if_changed(self) -> None:
        if self._path is None or self._clock() - self._checked < _CHECK_INTERVAL_S:
            return
        self._checked = self._clock()
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._read()

    def _read(self) -> None:
        if self._path is None:
            return
        if self._stamp is None:
            self._keys = ()
            logger.warning("the file of API keys is gone: no request is admitted: %s", self._path)
            return
        try:
            self._keys = read_keys(self._path)
        except UserError as error:
            kept = "keeping the API keys as they were" if self._keys else "no request is admitted"
            logger.warning("%s: %s", kept, error)
        else:
            logger.info("read %d API keys from %s", len(self._keys), self._path)

    def _file_stamp(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # such as a network file system that does not answer
            return (error.errno or 0,)
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def main() -> None:
    """Print a new key and its line for the file."""
    usage = "usage: python -m ochat_ray.serve.keys NAME [EXPIRES, as YYYY-MM-DD]"
    name, expires = [*sys.argv[1:], "", ""][:2]
    key = f"sk-{secrets.token_urlsafe(32)}"
    line = f"{name}:sha256:{hash_key(key).hex()}" + (f" expires={expires}" if expires else "")
    try:
        if len(sys.argv) > 3 or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(usage)
        parse_keys(line, "the arguments")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"key, for the client, shown this once:  {key}")
    print(f"line, for the server's file of keys:   {line}")


if __name__ == "__main__":
    main()
