"""Comparison of locations (paths and URIs): equal, inside one another, or apart."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote, urlsplit

from ochat_ray.errors import UserError
from ochat_ray.run_dir import absolute

_CREDENTIALS_BEFORE_AT = ("s3", "gs", "gcs")
"""Schemes whose URIs may hold a key before an @, which does not belong to the place."""

_SAME_SCHEME = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}


def real_location(uri: str) -> str:
    """Return a path or URI such that two names of one place are equal.

    A path, or a URI of this host's disk, is absolute and without links. Another URI is without
    `..`, doubled slashes, credentials and parameters.
    """
    uri = uri.removeprefix("fsspec+")  # pyarrow's prefix of fsspec's URIs
    if uri.startswith(("file://", "local://")):
        uri = "/" + unquote(urlsplit(uri).path).lstrip("/")
    if "://" not in uri:
        return os.path.realpath(absolute(uri))
    parts = urlsplit(uri)
    scheme = _SAME_SCHEME.get(parts.scheme, parts.scheme)
    host = parts.netloc
    if parts.scheme in _CREDENTIALS_BEFORE_AT:
        host = host.rpartition("@")[2]
    path = posixpath.normpath("/" + re.sub("/+", "/", unquote(parts.path)).strip("/"))
    return f"{scheme}://{host}{path}".rstrip("/")


def is_inside(uri: str, other: str) -> bool:
    """Return whether a place is the other one, or lies in it."""
    place, folder = real_location(uri), real_location(other)
    if place == folder or place.startswith(folder.rstrip("/") + "/"):
        return True
    if "://" in place or "://" in folder:
        return False
    # Mounted twice, or on a disk that ignores case: the same directory under another path.
    while (above := os.path.dirname(place)) != place:
        if _is_same_directory(place, folder):
            return True
        place = above
    return False


def check_output_apart(output: str, **inputs: str) -> None:
    """Refuse an output directory that is an input, or lies in one, or has one inside.

    `inputs` are directories by the name of their option. A hub's name counts as the path that
    would hide it.

    Raises:
        UserError: names both options.
    """
    for name, place in inputs.items():
        if place and (is_inside(output, place) or is_inside(place, output)):
            raise UserError(
                f"--output {output} and --{name} {place} are the same place, or one lies in the "
                f"other, so a run would delete or overwrite what it reads; choose another --output"
            )


def check_is_folder(output: str) -> None:
    """Refuse a local output directory if it, or a folder above it, is a file.

    Raises:
        UserError: names that file.
    """
    if "://" in output:
        return
    place = absolute(output)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(
            f"{output} cannot be an output directory: {place} is not a directory; choose another "
            "--output, or remove it"
        )


def _is_same_directory(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there
        return False
