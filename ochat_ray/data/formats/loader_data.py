"""Loader data of pages, as serialized by React Router 7 (a stream) and Remix 2 (JSON)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ochat_ray.data.formats import turbo_stream

_ENQUEUE = re.compile(r"streamController\.enqueue\(\s*(?=\")")
_REMIX = re.compile(r"__remixContext\s*=\s*(?=\{)")
_DECODER = json.JSONDecoder(strict=False)


class LoaderDataError(ValueError):
    """Loader data that cannot be decoded."""


def loader_data(page: bytes) -> Mapping[str, Any] | None:
    """Return the data by route, or None for a page without loaders.

    The stream consists of pieces, each a JavaScript string that is also a JSON string.

    Raises:
        LoaderDataError: The data cannot be decoded, or is truncated.
    """
    stream, remix = b"streamController.enqueue" in page, b"__remixContext" in page
    if not stream and not remix:
        return None
    text = page.decode("utf-8", "replace")
    pieces = [_json_at(text, match.end()) for match in _ENQUEUE.finditer(text)]
    if pieces:
        try:
            root = turbo_stream.decode("".join(pieces))
        except turbo_stream.TurboStreamError as error:
            raise LoaderDataError(f"the page's stream cannot be decoded: {error}") from error
    elif remix and (match := _REMIX.search(text)):
        root = _json_at(text, match.end())
        root = root.get("state") if isinstance(root, dict) else None
    else:
        return None
    loaders = root.get("loaderData") if isinstance(root, dict) else None
    return loaders if isinstance(loaders, dict) else {}


def _json_at(text: str, start: int) -> Any:
    try:
        return _DECODER.raw_decode(text, start)[0]
    except (ValueError, RecursionError) as error:
        raise LoaderDataError(f"the page's data are not JSON, or cut off: {error}") from error
