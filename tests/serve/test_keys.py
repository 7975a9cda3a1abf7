from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from ochat_ray.errors import UserError
from ochat_ray.serve.keys import KeyRing, parse_keys, read_keys

KEYS = "# ours\nalice:secret-of-alice\n\nsecret-of-nobody\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    return path


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "alice:\n", "two words\n", "a: b c\n", ":key\n", "a:secret1\na:secret2\n"],
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
    # What merely looks like one is a key.
    assert KeyRing(parse_keys("a:sha256:abc", "x")).find("Bearer sha256:abc")
    # And the digest is no key.
    assert not KeyRing(parse_keys(f"a:sha256:{digest}", "x")).find(f"Bearer sha256:{digest}")


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(path, caplog):
    now = [0.0]
    ring = KeyRing(read_keys(path), str(path), clock=lambda: now[0])
    write(path, "bob:secret-of-bob\n", 1)
    assert ring.find("Bearer secret-of-alice").name == "alice"  # looked at once a second
    now[0] = 1.5
    assert ring.find("Bearer secret-of-alice") is None
    assert ring.find("Bearer secret-of-bob").name == "bob"
    for number, text in enumerate(["", None], start=2):
        write(path, text, number)
        now[0] += 2
        assert ring.find("Bearer secret-of-bob").name == "bob"
        assert bool(ring)
    assert "keeping the API keys" in caplog.text
    write(path, "carol:secret-of-carol\n", 9)
    now[0] += 2
    assert ring.find("Bearer secret-of-carol").name == "carol"


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
