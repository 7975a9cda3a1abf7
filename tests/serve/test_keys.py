from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from datetime import date

import pytest

from ochat_ray.errors import UserError
from ochat_ray.serve.keys import MAX_BYTES, KeyRing, parse_keys, read_keys

KEYS = "# ours\nalice:secret-of-alice\n\nsecret-of-nobody\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "alice:\n",
        "two words\n",
        "a: b c\n",
        ":key\n",
        "a:secret1\na:secret2\n",
        "a:secret\nb:secret\n",
        "a:secret\0\n",
        "a:secret\x0csecret2\n",
        "a:sécret\n",
        "a:secret1\n\ufeffb:secret2\n",
        "a:secret1\n\ufeffsecret2\n",
        "a:secret1\u2028secret2\n",
        "a:secret,expires=2099-01-01\n",
        "a:secret expires=2020-01-01 expires=2099-01-01\n",
    ],
)
def test_a_file_that_does_not_hold_is_one_line_without_the_key(path, text):
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)
    assert "two words" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_keys_are_kept_as_digests_only(path):
    keys = read_keys(path)
    assert [key.name for key in keys] == ["alice", "line 4"]
    assert "secret" not in repr(keys)


def test_a_line_may_hold_the_digest_instead_of_the_key():
    digest = hashlib.sha256(b"secret").hexdigest()
    assert parse_keys(f"a:sha256:{digest}", "x") == parse_keys("a:secret", "x")
    # The digest is not a key.
    assert not KeyRing(parse_keys(f"a:sha256:{digest}", "x")).find(f"Bearer sha256:{digest}")


DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    "line",
    [
        "a:sha256:abc", f"a:sha256:{DIGEST.upper()}", f"a:sha256:{DIGEST}0", "a:sha256:",
        f"a:SHA256:{DIGEST}", f"sha256:{DIGEST}", f"a:sha256={DIGEST}", f"a:sha-256:{DIGEST}",
        f"a:sha512:{DIGEST}", f"SHA-256:{DIGEST}",
    ],
)  # fmt: skip
def test_what_looks_like_a_digest_and_is_none_is_an_error_and_never_a_key(line):
    with pytest.raises(UserError, match="line 1 of x is not a digest") as caught:
        parse_keys(line, "x")
    assert DIGEST not in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_key(path):
    path.write_bytes(b"\xef\xbb\xbfsecret-of-nobody\r\nbob:secret-of-bob\r\n")
    ring = KeyRing(path=str(path))
    assert ring.find("Bearer secret-of-nobody").name == "line 1"
    assert ring.find("Bearer secret-of-bob").name == "bob"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444, 0o602])
def test_a_file_that_every_user_can_read_or_change_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(UserError, match=f"chmod 600 {path}"):
        read_keys(path)
    assert not KeyRing(path=str(path)).find("Bearer secret-of-alice")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: os.mkfifo(path, 0o600), "it is not a regular file"),
        (lambda path: path.mkdir(), "it is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
        (lambda path: path.write_text("a:secret\n" + "#\n" * MAX_BYTES), "has more than"),
        (lambda path: path.write_text("a:secret\n", encoding="utf-16"), "it is not UTF-8"),
        (lambda path: path.symlink_to(path), "no such file"),
    ],
)
@pytest.mark.timeout(60)  # a FIFO without a writer would block
def test_what_is_no_small_text_file_is_refused(path, make, text):
    path.unlink()
    make(path)
    if not path.is_symlink():
        path.chmod(0o600)
    with pytest.raises(UserError, match=text):
        read_keys(path)


def test_a_file_of_the_group_is_accepted_as_kubernetes_mounts_secrets(path):
    path.chmod(0o440)
    assert len(read_keys(path)) == 2


@pytest.mark.parametrize("key", ["sk-secret", "secret/with/slashes", "s" * 5000, "secret\0"])
def test_a_key_in_place_of_the_file_is_not_in_the_message(key, tmp_path):
    with pytest.raises(UserError, match="no such file") as caught:
        read_keys(tmp_path / key)
    assert "secret" not in str(caught.value)
    assert "sss" not in str(caught.value)


def test_a_key_expires_at_the_end_of_its_last_day():
    today = [date(2027, 1, 31)]
    text = f"a:secret expires=2027-01-31\nb:sha256:{hashlib.sha256(b'other').hexdigest()}"
    ring = KeyRing(parse_keys(text, "x"), today=lambda: today[0])
    assert ring.find("Bearer secret").name == "a"
    today[0] = date(2027, 2, 1)
    assert ring.find("Bearer secret") is None
    assert ring.find("Bearer other").name == "b"


@pytest.mark.parametrize("end", ["31.1.2027", "2027-02-30", "2027-1-1", "", "2027-01-01 x"])
def test_a_date_that_is_none_is_an_error(end):
    with pytest.raises(UserError, match="line 1 of x") as caught:
        parse_keys(f"a:secret expires={end}", "x")
    assert "secret" not in str(caught.value)


def test_a_new_replica_reads_the_file_as_it_is_now(path):
    assert KeyRing(path=str(path)).find("Bearer secret-of-alice").name == "alice"
    path.write_text("bob:secret-of-bob\n")  # alice is revoked; then the ingress dies
    assert KeyRing(path=str(path)).find("Bearer secret-of-alice") is None


@pytest.mark.parametrize("text", ["", None])
def test_a_new_replica_without_a_valid_file_admits_nobody(path, text, caplog):
    write(path, text, 1)
    ring = KeyRing(path=str(path))
    assert ring  # requests still need a key
    assert ring.find("Bearer secret-of-alice") is None
    assert "no request is admitted" in caplog.text


def test_a_file_that_is_gone_closes_until_it_is_back(path, caplog):
    now = [0.0]
    ring = KeyRing(path=str(path), clock=lambda: now[0])
    path.unlink()
    for now[0] in (2, 4, 6):
        assert ring.find("Bearer secret-of-alice") is None
        assert ring
    assert len(caplog.records) == 1
    assert "gone" in caplog.text
    path.write_text(KEYS)
    path.chmod(0o600)
    now[0] = 8
    assert ring.find("Bearer secret-of-alice").name == "alice"


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(path, caplog):
    now = [0.0]
    ring = KeyRing(path=str(path), clock=lambda: now[0])
    write(path, "bob:secret-of-bob\n", 1)
    assert ring.find("Bearer secret-of-alice").name == "alice"  # looked at once a second
    now[0] = 1.5
    assert ring.find("Bearer secret-of-alice") is None
    assert ring.find("Bearer secret-of-bob").name == "bob"
    write(path, "", 2)
    now[0] += 2
    assert ring.find("Bearer secret-of-bob").name == "bob"
    assert bool(ring)
    assert "keeping the API keys" in caplog.text
    write(path, "carol:secret-of-carol\n", 9)
    now[0] += 2
    assert ring.find("Bearer secret-of-carol").name == "carol"


def test_a_key_is_revoked_although_the_file_could_not_be_read_at_once(path, monkeypatch, caplog):
    now = [0.0]
    ring = KeyRing(path=str(path), clock=lambda: now[0])
    path.write_text("bob:secret-of-bob\n")

    def fails(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        for now[0] in (2, 4, 6):
            assert ring.find("Bearer secret-of-alice").name == "alice"
    assert [record.getMessage() for record in caplog.records] == [
        "keeping the API keys as they were: cannot read API keys: Too many open files"
    ]
    now[0] = 8
    assert ring.find("Bearer secret-of-alice") is None


def test_a_key_is_revoked_by_a_copy_with_the_size_and_time_of_the_file(path):
    now = [0.0]
    ring = KeyRing(path=str(path), clock=lambda: now[0])
    before = path.stat()
    path.write_text(KEYS.replace("secret-of-alice", "secret-of-carol"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now[0] = 2
    assert ring.find("Bearer secret-of-alice") is None


def write(path, text, number):
    if text is None:
        path.unlink()
        return
    path.write_text(text)
    os.utime(path, ns=(number, number))


def test_a_new_key_is_made_by_a_command():
    command = [sys.executable, "-m", "ochat_ray.serve.keys"]
    made = subprocess.run([*command, "alice"], capture_output=True, text=True, check=True).stdout
    key, line = (row.split(":", 1)[1].strip() for row in made.splitlines())
    assert KeyRing(parse_keys(line, "x")).find(f"Bearer {key}").name == "alice"
    assert subprocess.run(command, capture_output=True).returncode == 2
    bad = subprocess.run([*command, "a", "soon"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "YYYY-MM-DD" in bad.stderr
