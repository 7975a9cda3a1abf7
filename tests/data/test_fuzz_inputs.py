"""Mutated files of every kind: no error, and every file ends in at least one count."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data.sources import read_file
from ochat_ray.schema import Conversation, Drop, PassedOver
from tests.pages import share_page

RECORDS = [
    {
        "id": str(n),
        "conversations": [
            {"from": "human", "value": f'é "{n}" {{[x]}}'},
            {"from": "gpt", "value": "<p>a</p>\n" * n},
        ],
    }
    for n in range(6)
]
LINES = "\n".join(json.dumps(r) for r in RECORDS).encode()
ARRAY = json.dumps(RECORDS, ensure_ascii=False).encode()
PAGE = share_page(RECORDS[1]["conversations"], id="1")


def parquet():
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), file, row_group_size=2)
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("é.html", PAGE), ("b.json", ARRAY), ("c.parquet", parquet())):
            archive.writestr(name, content)
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("é" * 60 + ".html", PAGE), ("b.jsonl", LINES), ("c.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


FILES = {
    "x.html": PAGE,
    "x.html.gz": gzip.compress(PAGE),
    "x.json": ARRAY,
    "indented.json": json.dumps({"data": RECORDS}, indent=1).encode(),
    "x.jsonl": LINES,
    "utf16.jsonl": LINES.decode().encode("utf-16"),
    "x.json.gz": gzip.compress(ARRAY),
    "x.jsonl.bz2": bz2.compress(LINES),
    "x.json.xz": lzma.compress(ARRAY),
    "x.json.zst": pa.Codec("zstd").compress(ARRAY, asbytes=True),
    "x.parquet": parquet(),
    "x.zip": zipped(),
    "x.tar": tarred(),
    "x.tar.gz": gzip.compress(tarred()),
}


def mutated(data, rng):
    for _ in range(rng.randrange(1, 4)):
        at, other = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
        data = {
            "cut": data[:at],
            "flip": data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            if at < len(data)
            else data,
            "random": data[:at] + rng.randbytes(rng.randrange(20)) + data[at + 10 :],
            "repeat": data[:at] + data[other : other + 600] + data[at:],
            "zeros": data[:at] + bytes(600) + data[at + 600 :],
        }[rng.choice(["cut", "flip", "random", "repeat", "zeros"])]
    return data


def check(path, data):
    path.write_bytes(data)
    records = list(read_file(str(path)))
    assert records
    assert all(isinstance(r, Conversation | Drop | PassedOver) for r in records)
    for record in records:
        assert record.source.encode()
        if isinstance(record, Drop):
            assert (record.id + record.detail).encode()


@pytest.mark.parametrize("name", FILES)
def test_a_few_dozen_mutated_files(tmp_path, name):
    rng = random.Random(name)
    for _ in range(40):
        check(tmp_path / name, mutated(FILES[name], rng))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_thousand_mutated_files(tmp_path, name):
    rng = random.Random(name)
    for _ in range(1000):
        check(tmp_path / name, mutated(FILES[name], rng))
