"""Two names of one place, and places inside others."""

import pytest

from ochat_ray.errors import UserError
from ochat_ray.locations import (
    check_is_folder,
    check_output_apart,
    is_inside,
    real_location,
)


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
        str(folder),
        f"{folder}/",
        folder.as_uri(),
        f"{folder}/../{folder.name}",
        str(folder.parent / "link"),
        f"{folder.parent}/far/../link",
    ]


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


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below", "dangling"])
def test_a_file_in_place_of_the_output_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    place = tmp_path / name.split("/")[0]
    with pytest.raises(UserError, match=f"{name} cannot be an output directory: {place} is not a"):
        check_is_folder(str(tmp_path / name))


def test_a_new_folder_a_link_to_one_and_a_uri_can_be_the_output(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for output in ("", "new/far/below", "link/new"):
        check_is_folder(str(tmp_path / output))
    check_is_folder("s3://bucket/file")
