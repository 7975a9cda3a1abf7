"""API keys: stored as digests, compared in constant time, reloaded when their file changes.

`python -m ochat_ray.serve.keys NAME [EXPIRES]` creates one and prints the key and the line for the
file.
"""

from __future__ import annotations

import errno
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

MAX_BYTES = 2**20
"""Maximum size of a file of keys."""

_KEY = re.compile("[!-~]+")  # what a header can carry
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LIKE_A_DIGEST = re.compile(r"sha-?\d", re.IGNORECASE)
_EXPIRES = re.compile(r"(\d{4}-\d{2}-\d{2})")
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
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the keys of a file; see `parse_keys`.

    Raises:
        UserError: The file cannot be read, is no regular file, is larger than `MAX_BYTES`, is
            readable or writable by every user, or is invalid. If there is no such file, the message
            does not contain its path, which may be a key given by mistake.
    """
    try:
        mode, content = _read_file(path)
    except PermissionError:
        raise UserError(f"cannot read API keys from {path}: permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        reason = _NO_SUCH_FILE
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            reason = f"cannot read API keys: {error.strerror}"
        raise UserError(reason) from None
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read API keys from {path}: it is not a regular file")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UserError(
            f"every user of this machine can read or change the API keys; chmod 600 {path}"
        )
    if len(content) > MAX_BYTES:
        raise UserError(f"cannot read API keys from {path}: it has more than {MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"cannot read API keys from {path}: it is not UTF-8") from None
    return parse_keys(text, str(path))


def _read_file(path: Path) -> tuple[int, bytes]:
    """Return mode and content of one file, whatever replaces it meanwhile; a FIFO cannot block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return mode, b""
        with open(descriptor, "rb", closefd=False) as file:
            return mode, file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_NO_SUCH_FILE = (
    "cannot read API keys: no such file (its name is not shown: if it is a key, replace that key, "
    "since Ray logs arguments); give keys=FILE, a file with one `key` or `name:key` per line"
)


def parse_keys(text: str, where: str) -> tuple[ApiKey, ...]:
    """Parse keys, one per line: `key`, `name:key` or `name:sha256:DIGEST`; # starts a comment line.

    ` expires=YYYY-MM-DD` after a key is its last valid day.

    Raises:
        UserError: There is no key, a key contains other characters than printable ASCII, a digest
            is not 64 lower-case hexadecimal digits, or two lines have the same name or key. No
            message contains any part of a key.
    """
    keys: dict[str, ApiKey] = {}
    lines: dict[bytes, int] = {}
    for number, line in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), start=1):
        line = line.strip(" \t")
        if not line or line.startswith("#"):
            continue
        key = _parse_line(line, number, where)
        if key.name in keys:
            raise UserError(f"line {number} of {where}: the name {key.name!r} occurs twice")
        # Whoever revokes one of the two would leave the other.
        if (first := lines.setdefault(key.digest, number)) != number:
            raise UserError(f"lines {first} and {number} of {where} have the same key")
        keys[key.name] = key
    if not keys:
        raise UserError(f"no API key in {where}; write one `key` or `name:key` per line")
    return tuple(keys.values())


_LINE_END = re.compile("\r\n|\r|\n")  # str.splitlines would also split at form feeds and others


def _parse_line(line: str, number: int, where: str) -> ApiKey:
    text, expires, day = line.partition(" expires=")
    name, colon, key = text.rstrip(" \t").partition(":")
    if not colon:
        name, key = f"line {number}", name
    name = name.strip(" \t")
    if not (name and name.isprintable() and _KEY.fullmatch(key)):
        raise UserError(
            f"line {number} of {where} is not `key`, `name:key` or a digest, in printable ASCII "
            "and without spaces"
        )
    match = _DIGEST.fullmatch(key)
    # Anything else of this form would be a key, and so a stored digest would open the server.
    if not match and any(map(_LIKE_A_DIGEST.match, (name, key) if colon else (key,))):
        raise UserError(
            f"line {number} of {where} is not a digest: `name:sha256:` and 64 digits 0-9a-f"
        )
    return ApiKey(
        name=name,
        digest=bytes.fromhex(match[1]) if match else hash_key(key),
        expires=_parse_date(day, number, where) if expires or "expires=" in key else None,
    )


def _parse_date(text: str, number: int, where: str) -> date:
    match = _EXPIRES.fullmatch(text)
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
        self._complaint = ""
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
            self._keys, self._complaint = (), ""
            logger.warning("the file of API keys is gone: no request is admitted: %s", self._path)
            return
        try:
            self._keys = read_keys(self._path)
        except UserError as error:
            # The cause may pass without a change of the file, such as too many open files.
            self._stamp = ()
            if str(error) != self._complaint:
                kept = (
                    "keeping the API keys as they were" if self._keys else "no request is admitted"
                )
                logger.warning("%s: %s", kept, error)
            self._complaint = str(error)
        else:
            self._complaint = ""
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
        # A copy over the file may keep its size and restore its time, but not ctime.
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode


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
