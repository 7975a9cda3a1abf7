"""Two names of one place, and places inside others."""

import pytest

from ochat_ray.errors import UserError
from ochat_ray.locations import check_output_apart, is_inside, real_location


@pytest.mark.parametrize(
    ("uri", "real"),
    [
        ("s3://b/x/", "s3://b/x"),
        ("s3://b//x/./y/../", "s3://b/x"),
        ("s3://key:secret@b/x?endpoint_override=localhost", "s3://b/x"),
        ("gcs://b/x", "gs://b/x"),
        ("s3://b", "s3://b"),
        ("file:///no/such%20place/../x/", "/no/x"),
        ("local:///no/x", "/no/x"),
        ("fsspec+file:///no/x", "/no/x"),
        ("/no//such/../x/", "/no/x"),
    ],
)
def test_one_place_has_one_name(uri, real):
    assert real_location(uri) == real


@pytest.mark.parametrize(
    ("uri", "other", "inside"),
    [
        ("s3://b/x/y", "s3://b/x", True),
        ("s3://b/x", "s3://b", True),
        ("s3://b/xy", "s3://b/x", False),
        ("s3://b/x", "s3://b/x/y", False),
        ("s3://b/x", "gs://b/x", False),
        ("/no/x/y", "/no/x", True),
        ("/no/xy", "/no/x", False),
        ("/no/x", "/", True),
    ],
)
def test_a_place_inside_another(uri, other, inside):
    assert is_inside(uri, other) is inside


def equal_names(folder):
    """Further names of a folder."""
    (folder.parent / "link").symlink_to(folder)
    (folder.parent / "far").mkdir()
    return [
        str(folder), f"{folder}/", folder.as_uri(), f"{folder}/../{folder.name}",
        str(folder.parent / "link"), f"{folder.parent}/far/../link",
    ]  # fmt: skip


def test_an_output_that_is_in_an_input_or_has_one_inside_is_refused(tmp_path, monkeypatch):
    base = tmp_path / "base"
    (base / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = equal_names(base)
    for output in [*names, "base", "./base", "base/tuned", "link/tuned/more", str(tmp_path)]:
        for name in [*names, "base"]:
            with pytest.raises(UserError, match=r"--output .* and --model .* the same place"):
                check_output_apart(output, data="/elsewhere", model=name)
    check_output_apart("tuned", data="base", model="org/name")
    check_output_apart("base2", data="base", model="s3://b/base2")


def test_a_hubs_name_that_the_output_would_hide_is_refused():
    with pytest.raises(UserError, match="the same place"):
        check_output_apart("org/name", model="org/name")


def test_a_directory_that_is_mounted_twice_is_one_place(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.setattr(
        "os.path.samefile",
        lambda a, b: {str(a), str(b)} == {str(tmp_path / "one"), str(tmp_path / "two")},
    )
    assert is_inside(str(tmp_path / "one/x"), str(tmp_path / "two"))
    assert not is_inside(str(tmp_path / "three"), str(tmp_path / "two"))
