"""Reading speed of a JSON array compared with ijson, in bytes per CPU second.

    python benchmarks/json_arrays.py                the demo's conversations
    python benchmarks/json_arrays.py FILE           another array of records

Both yield one record at a time from the same bytes in memory, alternately; the best of five rounds
counts. ijson uses its fastest backend, and stops at a broken record.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import ijson

from ochat_ray.data.json_records import json_records
from ochat_ray.data.json_values import Broken
from ochat_ray.demo import assets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", help="without it, the demo's conversations")
    arguments = parser.parse_args()
    with open(arguments.file or assets.conversations(), "rb") as file:
        records = [r for r in json_records(file, by_lines=False) if not isinstance(r, Broken)]
    for name, options in {
        "ASCII with escapes": {"ensure_ascii": True},
        "UTF-8": {"ensure_ascii": False},
        "UTF-8, indented": {"ensure_ascii": False, "indent": 2},
    }.items():
        data = json.dumps(records, **options).encode("utf-8", "replace")  # type: ignore[arg-type]
        ways: dict[str, Callable[[bytes], Iterator[Any]]] = {"ijson": by_ijson, "ours": by_ours}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(5):
            for way, read in ways.items():
                started = time.process_time()
                count = sum(1 for _ in read(data))
                best[way] = min(best[way], time.process_time() - started)
                assert count == len(records)
        speeds = ", ".join(f"{way} {len(data) / 1e6 / s:,.0f} MB/s" for way, s in best.items())
        print(f"{name}, {len(data) / 1e6:,.0f} MB: {speeds}", flush=True)


def by_ijson(data: bytes) -> Iterator[Any]:
    return iter(ijson.items(io.BytesIO(data), "item", use_float=True))


def by_ours(data: bytes) -> Iterator[Any]:
    return json_records(io.BytesIO(data), by_lines=False)


if __name__ == "__main__":
    main()
