"""LoRA adapters of a served model: the sub-directories of one directory, scanned every few seconds.

An adapter is identified by the digest of its content. A changed one is served again once its files
have not changed between two scans, so that a half-written one is not.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ochat_ray.errors import UserError
from ochat_ray.serve.adapter_files import CONFIG, WEIGHTS, AdapterRules, base_shapes, read_adapter
from ochat_ray.serve.engines.base import Adapter
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.responses import Model, ModelList, NotServed
from ochat_ray.serve.served_model import CARD

logger = logging.getLogger(__name__)

SCAN_EVERY_S = 2.0

MOST_ADAPTERS = 1024
"""Maximum sub-directories that are looked at, in alphabetical order."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,127}")

_Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSettings:
    """Settings of a server with adapters: their directory, and rules as in `AdapterRules`."""

    directory: str
    base_names: tuple[str, ...]
    most_rank: int
    patterns: bool

    def rules(self, model: Path) -> AdapterRules:
        """Return the rules for adapters of the model in a directory."""
        return AdapterRules(
            base=base_shapes(model),
            base_names=self.base_names,
            most_rank=self.most_rank,
            patterns=self.patterns,
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """State of a sub-directory: an adapter with the time of its files, or the reason against it.

    `stamp` is that of the files; `settled` is false until a second scan has found the same one.
    """

    stamp: _Stamp
    settled: bool
    adapter: Adapter | None = None
    created: int = 0
    reason: str = ""


class AdapterCatalog:
    """Current adapters in a directory. All reads are of the last complete scan."""

    def __init__(self, directory: str, rules: AdapterRules, *, reserved: str) -> None:
        self._directory = Path(directory)
        self._rules = rules
        self._reserved = reserved
        self._found: Mapping[str, _Found] = {}
        self._problem = ""

    @property
    def served(self) -> dict[str, tuple[Adapter, int]]:
        """Adapters that are served, by name, with the time of their files."""
        return {
            name: (found.adapter, found.created)
            for name, found in self._found.items()
            if found.adapter is not None
        }

    @property
    def not_served(self) -> dict[str, str]:
        """Reasons why other sub-directories are not served, by name."""
        return {name: found.reason for name, found in self._found.items() if found.reason}

    def find(self, name: str) -> tuple[Adapter, int] | None:
        """Return an adapter that is served, with the time of its files."""
        found = self._found.get(name)
        return None if found is None or found.adapter is None else (found.adapter, found.created)

    def start(self) -> None:
        """Scan now, and then every `SCAN_EVERY_S` seconds on a thread.

        Adapters that have not changed for a while are served from the start.
        """
        self.scan(settled_after_s=SCAN_EVERY_S)
        threading.Thread(target=self._scan_forever, name="adapters", daemon=True).start()

    def _scan_forever(self) -> None:
        while True:
            threading.Event().wait(SCAN_EVERY_S)
            try:
                self.scan()
            except Exception:
                logger.exception("scanning %s failed", self._directory)

    def scan(self, settled_after_s: float = math.inf) -> None:
        """Look at the directory again, and log what changed.

        Files have settled if a second scan finds the same, or if they are of this age.
        """
        try:
            with os.scandir(self._directory) as entries:
                names = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
            problem = ""
            if len(names) > MOST_ADAPTERS:
                problem = f"{len(names)} adapters are above {MOST_ADAPTERS}; the rest is ignored"
        except OSError as error:
            names, problem = [], f"cannot be read: {type(error).__name__}"
        if problem and problem != self._problem:
            logger.warning("adapters in %s: %s", self._directory, problem)
        self._problem = problem
        found = {name: self._look(name, settled_after_s) for name in names[:MOST_ADAPTERS]}
        before, self._found = self._found, found
        for name in sorted(before.keys() | found.keys()):
            self._log(name, before.get(name), found.get(name))

    def _look(self, name: str, settled_after_s: float) -> _Found:
        """Return the state of a sub-directory; its files are read only if they changed."""
        directory, before = self._directory / name, self._found.get(name)
        stamp = _stamp(directory)
        unchanged = before is not None and before.stamp == stamp
        if before is not None and unchanged and before.settled:
            return before
        settled = unchanged or _age_s(stamp) > settled_after_s
        if not _NAME.fullmatch(name) or name == self._reserved:
            reason = (
                "its name is the base's, or has other characters than letters, digits and _.:@+-"
            )
            return _Found(stamp, True, reason=reason)
        try:
            content = read_adapter(directory, self._rules)
            created = int((directory / WEIGHTS).stat().st_mtime)
        except UserError as error:
            return _Found(stamp, settled, reason=str(error))
        except Exception as error:  # noqa: BLE001 - one adapter must not end the scan of others
            return _Found(stamp, settled, reason=f"cannot be read: {type(error).__name__}")
        adapter = Adapter(name=name, directory=str(directory), digest=content.digest)
        # A file that was only touched has the content that is served already.
        same = before is not None and before.adapter == adapter
        if not settled and not same:
            return _Found(stamp, False, reason="is new or being written; it is read again soon")
        return _Found(stamp, settled, adapter=adapter, created=created)

    def _log(self, name: str, before: _Found | None, now: _Found | None) -> None:
        name = name.encode("unicode_escape").decode()
        adapter = before and before.adapter
        if now is None:
            logger.info("adapter %s: removed", name)
        elif now.adapter is not None:
            if now.adapter != adapter:
                logger.info("adapter %s: served, digest %s", name, now.adapter.digest[:16])
        elif now.settled and now != before:
            logger.warning("adapter %s: not served: %s", name, now.reason)


def _stamp(directory: Path) -> _Stamp:
    """Return what changes with the files; the time of the last status change cannot be set back."""
    stamps: list[tuple[int, ...] | None] = []
    for name in (CONFIG, WEIGHTS, CARD):
        try:
            stat = os.stat(directory / name)
        except OSError:
            stamps.append(None)
        else:
            times = (stat.st_mtime_ns, stat.st_ctime_ns)
            stamps.append((*times, stat.st_size, stat.st_ino, stat.st_dev))
    return tuple(stamps)


def _age_s(stamp: _Stamp) -> float:
    """Return the seconds since the last change of the files' status; infinity without files."""
    return time.time() - max((times[1] / 1e9 for times in stamp if times), default=-math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """The base or one of its adapters, as clients see it."""

    card: Model
    fingerprint: str
    adapter: Adapter | None = None


class ServedModels:
    """Models by name: the base, and its adapters if there is a catalog."""

    def __init__(self, base: Model, fingerprint: str, catalog: AdapterCatalog | None) -> None:
        self._base = ServedModel(card=base, fingerprint=fingerprint)
        self._catalog = catalog

    def find(self, name: str) -> ServedModel:
        """Return the model with this name.

        Raises:
            ApiError: 404; the message has the reason, if an adapter of this name is not served.
        """
        if name == self._base.card.id:
            return self._base
        found = self._catalog.find(name) if self._catalog is not None else None
        if found is not None:
            return self._with_adapter(*found)
        reason = self._catalog.not_served.get(name) if self._catalog is not None else None
        text = f"the adapter {name!r} is not served: {reason}" if reason else None
        raise ApiError(
            404,
            text or f"there is no model {name!r} here; GET /v1/models lists what is",
            code="model_not_found",
            param="model",
        )

    def listed(self) -> ModelList:
        """Return the entries of /v1/models."""
        if self._catalog is None:
            return ModelList(data=[self._base.card])
        adapters = [self._with_adapter(*found).card for found in self._catalog.served.values()]
        return ModelList(
            data=[self._base.card, *adapters],
            not_served=[
                NotServed(id=name, reason=reason)
                for name, reason in self._catalog.not_served.items()
            ],
        )

    def _with_adapter(self, adapter: Adapter, created: int) -> ServedModel:
        base = self._base
        card = base.card.model_copy(
            update={
                "id": adapter.name,
                "created": created,
                "parent": base.card.id,
                "digest": adapter.digest,
                "training": None,
            }
        )
        both = hashlib.sha256(f"{base.fingerprint} {adapter.digest}".encode()).hexdigest()
        return ServedModel(card=card, fingerprint=f"fp_{both[:16]}", adapter=adapter)
