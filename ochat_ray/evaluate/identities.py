"""Models and judges as their endpoints report them: models.json of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.outputs import MODELS
from ochat_ray.evaluate.records import key_of
from ochat_ray.run_dir import RunDir

FIRST, URLS = "first", "urls"
"""Fields of models.json beside the entries: the identity at the first call, and the base URL."""

EMPTY: Mapping[str, str] = MappingProxyType({})


class Identities:
    """Entries of models and judges, and what identifies their weights in the keys of calls.

    Args:
        output: Directory of models.json.
        config: Configuration of this run.
        earlier: Configuration of the run that wrote the results in the directory; may be empty.
        baseline: Name of the baseline, if it may have an endpoint of its own.
        endpoint_names: Names of endpoints by base URL, where the URL changes from run to run.
    """

    def __init__(
        self,
        output: RunDir,
        config: EvaluateConfig,
        earlier: Mapping[str, Any],
        baseline: str,
        endpoint_names: Mapping[str, str],
    ) -> None:
        self._output, self._config, self._earlier = output, config, earlier
        self._baseline, self._endpoint_names = baseline, endpoint_names
        empty: dict[str, dict[str, Any]] = {"models": {}, "judges": {}, FIRST: {}, URLS: {}}
        self._described = empty | _entries(output)

    def describe(self, kind: str, name: str, entry: Mapping[str, Any]) -> None:
        """Store an endpoint's entry for a model ("models") or judge ("judges"), if not empty.

        What identifies the weights becomes part of the call keys; see `version`.
        """
        before = json.dumps(self._described)
        # Calls of earlier versions have keys without an identity. It was the stored one.
        first = self._identity(kind, name, self._earlier, self._described[kind].get(name) or entry)
        label, url = f"{kind} {name}", self._identity(kind, name, {}, {})[0]
        self._described[FIRST].setdefault(label, first)
        if entry:
            self._described[kind][name] = dict(entry)
        elif self._described[URLS].get(label, first[0]) != url:
            self._described[kind].pop(name, None)  # another endpoint's
        self._described[URLS][label] = url
        if json.dumps(self._described) != before:
            self._output.write_json(MODELS, self._described)

    def _identity(
        self, kind: str, name: str, config: Mapping[str, Any], entry: Mapping[str, Any]
    ) -> list[str]:
        """Return a model's base URL, and the root and digest that its server reports."""
        now, option = self._config, "judge_url" if kind == "judges" else "url"
        url = config.get(option) or getattr(now, option)
        if kind == "models" and name == self._baseline:
            url = config.get("baseline_url") or (now.baseline_url if not config else "") or url
        url = url.rstrip("/")
        known = [str(entry.get(field) or "") for field in ("root", "digest")]
        return [self._endpoint_names.get(url, url), *known]

    def entries(self, kind: str, names: Iterable[str]) -> dict[str, Any]:
        """Return the known entries of these models or judges."""
        known = self._described[kind]
        return {name: known[name] for name in names if name in known}

    def version(self, kind: str, name: str) -> str:
        """Return what identifies a model's weights in the keys of its calls.

        This is the training digest that our own server reports. For other servers it is the base
        URL with the server's `root` and `digest`; the first ones in this output directory are
        omitted, so that keys of earlier versions remain valid.
        """
        entry = self._described[kind].get(name, {})
        training = entry.get("training")
        if isinstance(training, dict) and training.get("digest"):
            return str(training["digest"])
        identity = self._identity(kind, name, {}, entry)
        first = self._described[FIRST].get(f"{kind} {name}", identity)
        return "" if first == identity else key_of(identity)


def _entries(output: RunDir) -> dict[str, dict[str, Any]]:
    advice = (
        "restore it, or remove it: then the endpoints are asked for their models again, and "
        "records of a model that has changed since count as the present one's"
    )
    found = output.read_json(MODELS, advice)
    if found is None:
        return {}
    if not (isinstance(found, dict) and all(isinstance(value, dict) for value in found.values())):
        raise UserError(f"{output.path(MODELS)} is damaged; {advice}")
    return found
