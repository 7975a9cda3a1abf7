"""Run directories: atomic writes, JSON, and retries on S3."""

import os
import pickle
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir, completed, open_location, open_tokens, read_manifest
from ochat_ray.schema import TOKENS


def tokens(ids):
    rows = [{"id": i, "input_ids": [1, 2], "loss_weights": [0.0, 1.0], "length": 2} for i in ids]
    return pa.Table.from_pylist(rows, TOKENS)


def write_tokens(run, name, ids):
    with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(tokens(ids))


def test_an_unfinished_file_does_not_appear(tmp_path):
    run = RunDir.open(str(tmp_path))

    def write_half():
        with run.writing("sub/x.txt") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not run.exists("sub/x.txt")
    assert list(tmp_path.rglob("*")) == [tmp_path / "sub"]


def test_writing_twice_leaves_one_file_with_the_second_content(tmp_path):
    run = RunDir.open(str(tmp_path))
    run.write_text("x.txt", "one")
    run.write_text("x.txt", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "two"


def test_json_comes_back(tmp_path):
    run = RunDir.open(str(tmp_path / "new"))
    assert run.read_json("a.json") is None
    run.write_json("a.json", {"é": [1]})
    assert run.read_json("a.json") == {"é": [1]}


def test_only_files_are_read_as_json(tmp_path):
    run = RunDir.open(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "folder.json"):
        with pytest.raises(UserError, match=f"{name} is not a file; remove it"):
            run.read_json(name, "remove it")


def test_files_lists_complete_files_in_order(tmp_path):
    run = RunDir.open(str(tmp_path))
    for name in ("b.arrow", "a.arrow", ".tmp-1-c.arrow", "d.txt"):
        run.write_text(f"t/{name}", "")
    assert run.files("t", ".arrow") == ["t/a.arrow", "t/b.arrow"]
    assert run.files("nowhere", ".arrow") == []


def test_remove_accepts_files_folders_and_missing_names(tmp_path):
    run = RunDir.open(str(tmp_path))
    run.write_text("t/a", "")
    run.write_text("b", "")
    for name in ("t", "b", "nowhere"):
        run.remove(name)
    assert list(tmp_path.iterdir()) == []


def test_a_split_is_all_its_files_in_order(tmp_path):
    run = RunDir.open(str(tmp_path))
    write_tokens(run, "tokens/train/1.arrow", ["c"])
    write_tokens(run, "tokens/train/0.arrow", ["a", "b"])
    assert open_tokens(str(tmp_path), "train")["id"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"eval split .* is empty"):
        open_tokens(str(tmp_path), "eval")


def test_data_without_a_manifest_is_not_complete(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("text", ["", '{"digest": "a', "[]", "{}", '{"digest": "a"}'])
def test_a_damaged_manifest_is_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_manifest(str(tmp_path))


GOOD = {
    "digest": "d",
    "tokens": {"train": {"rows": 1}, "eval": {"rows": 1}},
    "tokenizer": "t",
    "model_type": "openchat",
    "context_length": 8,
}


@pytest.mark.parametrize(
    "wrong", [{"tokens": {"train": {}, "eval": {}}}, {"tokens": 3}, {"model_type": ["openchat"]}]
)
def test_a_manifest_with_values_of_other_types_is_one_line(tmp_path, wrong):
    RunDir.open(str(tmp_path)).write_json("manifest.json", GOOD)
    assert read_manifest(str(tmp_path)) == GOOD
    RunDir.open(str(tmp_path)).write_json("manifest.json", GOOD | wrong)
    with pytest.raises(UserError, match=r"manifest\.json is damaged: it has no"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("value", [[], 3, {"identity": "x"}])
def test_a_manifest_without_an_identity_is_not_overwritten_and_one_line(tmp_path, value):
    run = RunDir.open(str(tmp_path))
    run.write_json("manifest.json", value)
    with pytest.raises(UserError, match=r"manifest\.json is damaged: it has no identity"):
        completed(run, "manifest.json", {"a": 1}, overwrite=True)


def test_an_unknown_scheme_is_one_clear_line():
    with pytest.raises(UserError, match="cannot open nope://x"):
        open_location("nope://x")


def test_a_directory_whose_name_is_not_utf8_is_one_clear_line():
    with pytest.raises(UserError, match="is not UTF-8, which pyarrow requires"):
        RunDir.open("/x/\udce9")


def test_a_moved_file_replaces_an_existing_one(tmp_path):
    run = RunDir.open(str(tmp_path))
    run.write_text("a/x.txt", "new")
    run.write_text("b/x.txt", "old")
    run.move("a/x.txt", "b/x.txt")
    run.write_text("a/y.txt", "other")
    run.move("a/y.txt", "c/d/y.txt")
    assert (tmp_path / "b/x.txt").read_text() == "new"
    assert (tmp_path / "c/d/y.txt").read_text() == "other"
    assert list((tmp_path / "a").iterdir()) == []


@pytest.fixture
def failing_store(monkeypatch):
    """An S3 store that answers 503 and resets connections, four times in all."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requests.append(self.path)
            if len(requests) in (2, 4):
                reset = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                self.close_connection = True
                return
            self.send_response(503 if len(requests) < 4 else 200)
            self.send_header("Content-Length", "5")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield requests
        server.shutdown()


@pytest.mark.parametrize("where", ["driver", "worker"])
def test_503_and_reset_connections_of_s3_are_retried(failing_store, where):
    run = RunDir.open("s3://bucket/out")
    if where == "worker":
        run = pickle.loads(pickle.dumps(run))
    assert run.exists("x")
    assert len(failing_store) == 5


def test_a_small_file_on_s3_is_one_request(s3):
    run = RunDir.open("s3://bucket/out")
    stream = run.fs.open_output_stream(run.path("x.json"), compression=None)
    stream.write(b"{}")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="bucket")
    stream.close()
    assert s3.get_object(Bucket="bucket", Key="out/x.json")["Body"].read() == b"{}"
