"""Archives: members of every readable kind are read, all others are counted, none ends the job."""

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data import archives, byte_streams
from ochat_ray.data.sources import read_file
from ochat_ray.schema import Conversation, Drop, PassedOver, Reason
from tests.pages import share_page

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
PAGE_TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "<p>hello</p>"}]


def item(name):
    return {"id": name, "conversations": TURNS}


def page(name):
    return share_page(PAGE_TURNS, id=name)


def parquet(*names):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([item(name) for name in names]), file)
    return file.getvalue()


def lines(*names):
    return "\n".join(json.dumps(item(name)) for name in names).encode()


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


MEMBERS = {
    "a/1.html": page("1"),
    "a/2.htm.gz": gzip.compress(page("2")),
    "a/3.html.bz2": bz2.compress(page("3")),
    "b/4.json": json.dumps([item("4"), item("5")]).encode(),
    "b/6.jsonl": lines("6", "7"),
    "8.ndjson.gz": gzip.compress(lines("8")),
    "9.json.xz": lzma.compress(json.dumps([item("9")]).encode()),
    "conversations.json.zst": zstd(json.dumps([item("10")]).encode()),
    "11.parquet": parquet("11", "12"),
    "13.parquet.gz": gzip.compress(parquet("13")),
}
OTHERS = {
    "readme.txt": ".txt",
    "picture.PNG": ".png",
    "LICENSE": "no extension",
    "table.csv.gz": ".csv.gz",
    "inner.zip": ".zip",
    "inner.tar.gz": ".tar.gz",
    ".git/config.json": "hidden",
    "a/.hidden.html": "hidden",
    "__MACOSX/a/._1.html": "archive noise",
    "a/.DS_Store": "archive noise",
    "a/._1.html": "archive noise",
    "Thumbs.db": "archive noise",
    "a/desktop.ini": "archive noise",
}


def write_archive(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
    path.write_bytes(pack.get(path.suffix, bytes)(content.getvalue()))
    return path


def read(path):
    records = list(read_file(str(path)))
    return (
        [r for r in records if isinstance(r, Conversation)],
        [r for r in records if isinstance(r, Drop)],
        [r for r in records if isinstance(r, PassedOver)],
    )


@pytest.mark.parametrize(
    "name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.tar.zst"]
)
def test_members_of_every_kind_are_read_and_the_others_are_counted(tmp_path, name):
    path = write_archive(tmp_path / name, MEMBERS | dict.fromkeys(OTHERS, b"x"))
    conversations, drops, passed_over = read(path)
    assert [c.id for c in conversations] == [str(n) for n in range(1, 14)]
    assert conversations[0].source == f"{path}!a/1.html"
    assert drops == []
    assert {p.source.split("!")[1]: p.kind for p in passed_over} == OTHERS


def test_links_folders_and_devices_in_a_tar_are_never_followed(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as file:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            ("a.json", tarfile.SYMTYPE),
            ("b.json", tarfile.LNKTYPE),
            ("c.json", tarfile.FIFOTYPE),
            ("d", tarfile.CHRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    assert [(p.source.split("!")[1], p.kind) for p in read(path)[2]] == [
        ("a.json", "link"),
        ("b.json", "link"),
        ("c.json", "special file"),
        ("d", "special file"),
    ]


def test_a_link_in_a_zip_is_passed_over(tmp_path):
    info = zipfile.ZipInfo("a.json")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    assert [p.kind for p in read(tmp_path / "x.zip")[2]] == ["link"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_an_archive_of_nothing_is_a_drop(tmp_path, name):
    conversations, drops, passed_over = read(write_archive(tmp_path / name, {}))
    assert (conversations, passed_over) == ([], [])
    assert [d.reason for d in drops] == [Reason.NO_DATA]


@pytest.mark.parametrize("encoding", ["latin-1", "gbk"])
def test_names_in_a_tar_that_are_not_utf8_get_replacement_characters(tmp_path, encoding):
    name = {"latin-1": "café.html", "gbk": "中.html"}[encoding]
    with tarfile.open(
        tmp_path / "x.tar", "w", encoding=encoding, format=tarfile.GNU_FORMAT
    ) as file:
        info = tarfile.TarInfo(name)
        info.size = len(page("1"))
        file.addfile(info, io.BytesIO(page("1")))
    (conversation,), drops, _ = read(tmp_path / "x.tar")
    assert "\N{REPLACEMENT CHARACTER}" in conversation.source
    assert conversation.source.encode()
    assert drops == []


def test_a_zip_name_flagged_as_utf8_that_is_not_costs_nothing_but_itself(tmp_path):
    path = write_archive(tmp_path / "x.zip", {"1.html": page("1"), "ä.html": page("2")})
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xe4\xe4"))
    conversations, drops, _ = read(path)
    assert [c.id for c in conversations] == ["1", "2"]
    assert (
        conversations[1].source == f"{path}!\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.html"
    )
    assert drops == []


def pax_bomb(size):
    """A member whose extended header has `size` bytes."""
    header = tarfile.TarInfo("PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, size
    record = f"{size} comment=".encode()
    member = tarfile.TarInfo("x.html")
    member.size = len(page("x"))
    return (
        header.tobuf()
        + (record + b"x" * (size - len(record) - 1) + b"\n").ljust(-(-size // 512) * 512, b"\0")
        + member.tobuf()
        + page("x").ljust(-(-member.size // 512) * 512, b"\0")
    )


def long_name_bomb(size):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf() + b"x" * size + tarfile.TarInfo("x.html").tobuf()


@pytest.mark.parametrize("bomb", [pax_bomb(2**21), long_name_bomb(2**21)])
def test_headers_beyond_a_mebibyte_are_refused(tmp_path, bomb):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bomb))
    conversations, drops, _ = read(path)
    assert conversations == []
    assert [d.reason for d in drops] == [Reason.TORN]
    assert "1,048,576" in drops[0].detail


def test_headers_of_600_mib_are_refused_without_reading_them(tmp_path, monkeypatch):
    largest = 0
    read_member = archives._TarStream.read_member

    def measured(self, size):
        nonlocal largest
        largest = max(largest, size)
        return read_member(self, size)

    monkeypatch.setattr(archives._TarStream, "read_member", measured)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 600 * 2**20
    (tmp_path / "x.tar").write_bytes(header.tobuf() + b"x" * 2**21)
    assert len(read(tmp_path / "x.tar")[1]) == 1
    assert largest <= archives.MAX_HEADER_BYTES


def test_a_long_name_and_extended_headers_are_read(tmp_path):
    name = "/".join(["folder" * 10] * 20) + "/ä.html"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=kind) as file:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(page("1")), 1.5 if kind == tarfile.PAX_FORMAT else 1
            file.addfile(info, io.BytesIO(page("1")))
        (conversation,), drops, _ = read(tmp_path / "x.tar")
        assert conversation.source.endswith(f"!{name}")
        assert drops == []


def test_what_follows_a_tar_is_read_if_it_is_one_and_counted_if_not(tmp_path):
    one = write_archive(tmp_path / "1.tar", {"1.html": page("1")}).read_bytes()
    two = write_archive(tmp_path / "2.tar", {"2.html": page("2")}).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + two)
    assert [c.id for c in read(tmp_path / "x.tar")[0]] == ["1", "2"]
    (tmp_path / "x.tar").write_bytes(one + b"rubbish" * 1000)
    conversations, (drop,), _ = read(tmp_path / "x.tar")
    assert [c.id for c in conversations] == ["1"]
    assert (drop.reason, drop.detail) == (Reason.TORN, "7,000 bytes are not a tar archive")


def test_a_damaged_header_in_a_tar_does_not_end_it_in_silence(tmp_path):
    path = write_archive(tmp_path / "x.tar", {f"{n}.html": page(str(n)) for n in range(3)})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.html", b"!.html"))  # so that its checksum is wrong
    conversations, drops, _ = read(path)
    assert conversations[0].id == "0"
    assert [d.reason for d in drops] == [Reason.TORN]


def test_a_damaged_member_of_a_zip_costs_only_itself(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("1.html", page("1"))
        file.writestr("2.jsonl", lines("2", "3"))
        file.writestr("4.html", page("4"))
    path.write_bytes(path.read_bytes().replace(b'"id": "3"', b'"id": "X"'))  # its CRC is wrong
    conversations, drops, _ = read(path)
    assert "4" in [c.id for c in conversations]
    assert [d.source for d in drops] == [f"{path}!2.jsonl"]


def test_an_encrypted_member_of_a_zip_is_unreadable(tmp_path):
    path = write_archive(tmp_path / "x.zip", {"1.html": page("1"), "2.html": page("2")})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    conversations, drops, _ = read(path)
    assert [c.id for c in conversations] == ["2"]
    assert [(d.reason, d.source) for d in drops] == [(Reason.UNREADABLE, f"{path}!1.html")]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_several_compressed_streams_in_one_file_and_zeros_after_them(tmp_path, pack):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(pack(lines("1") + b"\n") + pack(lines("2")) + bytes(1000))
    conversations, drops, _ = read(path)
    assert ([c.id for c in conversations], drops) == (["1", "2"], [])


def test_what_follows_compressed_data_is_counted(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(lines("1") + b"\n") + b"rubbish")
    conversations, (drop,), _ = read(path)
    assert [c.id for c in conversations] == ["1"]
    assert "7 bytes after the end" in drop.detail


@pytest.mark.parametrize("pack", [gzip.compress, partial(bz2.compress, compresslevel=1), zstd])
@pytest.mark.parametrize("name", ["x.json.gz", "x.jsonl.gz"])
def test_compressed_data_cut_off_keeps_what_was_whole(tmp_path, pack, name):
    noise = random.Random(0)
    text = lines(*(f"{n} {noise.randbytes(200).hex()}" for n in range(1000)))
    if name == "x.json.gz":
        text = b"[" + text.replace(b"\n", b",") + b"]"
    data = pack(text)
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    conversations, drops, _ = read(tmp_path / name)
    assert [c.id.split()[0] for c in conversations] == [str(n) for n in range(len(conversations))]
    assert [d.reason for d in drops] in ([Reason.TORN], [Reason.UNREADABLE])
    assert len(conversations) > 200


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.zip", "x.tar.gz"])
def test_data_that_unpacks_beyond_all_measure_is_given_up(tmp_path, monkeypatch, name):
    monkeypatch.setattr(byte_streams, "UNPACKED_FREELY", 10_000)
    monkeypatch.setattr(byte_streams, "MAX_RATIO", 10)
    content = lines("1") + b"\n" + b" " * 10_000_000
    if name == "x.jsonl.gz":
        (tmp_path / name).write_bytes(gzip.compress(content))
    else:
        members = (
            {"1.jsonl.gz": gzip.compress(content)} if name == "x.zip" else {"1.jsonl": content}
        )
        write_archive(tmp_path / name, members)
    _, drops, _ = read(tmp_path / name)
    assert [d.reason for d in drops] == [Reason.TOO_LARGE]


def test_an_xz_file_that_asks_for_gigabytes_is_unreadable(tmp_path):
    path = tmp_path / "x.json.xz"
    small = lzma.compress(b"[]", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}])
    # The block header's dictionary size (its last byte before the padding) at 1.5 GiB.
    at = small.index(b"\x21\x01", 12) + 2
    header = bytearray(small[12 : 12 + (small[12] + 1) * 4])
    header[at - 12] = 37
    header[-4:] = struct.pack("<I", zlib.crc32(bytes(header[:-4])))
    path.write_bytes(small[:12] + bytes(header) + small[12 + len(header) :])
    _, (drop,), _ = read(path)
    assert drop.reason == Reason.UNREADABLE
    assert "Memory usage limit" in drop.detail


def test_members_of_a_zip_that_share_their_data_are_read_once(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.jsonl", lines("a"))
    data = packed.getvalue()
    start, end = data.find(b"PK\x01\x02"), data.find(b"PK\x05\x06")
    directory = data[start:end] * 3
    tail = struct.pack("<HHHHIIH", 0, 0, 3, 3, len(directory), start, 0)
    (tmp_path / "x.zip").write_bytes(data[:start] + directory + b"PK\x05\x06" + tail)
    found = list(read_file(str(tmp_path / "x.zip")))
    assert [type(record) for record in found].count(Conversation) == 1
    assert [r.reason for r in found if isinstance(r, Drop)] == [Reason.UNREADABLE] * 2


def test_a_size_below_0_in_a_tar_is_damage(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.pax_headers = {"size": "-5"}
        archive.addfile(info)
    (drop,) = read_file(str(tmp_path / "x.tar"))
    assert (drop.reason, drop.detail) == (
        Reason.TORN,
        "after 1 members: a.jsonl has the size -5",
    )
