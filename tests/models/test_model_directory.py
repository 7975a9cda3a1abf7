"""A model at a URI is fetched once, whole, and again when it has changed."""

import multiprocessing
from pathlib import Path

import pytest

from ochat_ray.errors import UserError
from ochat_ray.models.model_directory import local_directory, on_this_host
from ochat_ray.serve.args import ServeArgs, resolve


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ochat_ray/models"


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "stored"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/large").write_text("state")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_a_path_stays_where_it_is(cache):
    assert local_directory("~/model") == Path.home() / "model"
    assert not cache.exists()


def test_a_uri_is_fetched_once_without_what_lies_beside_the_model(stored, cache):
    found = local_directory(stored.as_uri())
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    assert (found / "model.safetensors").read_text() == "weights"
    (found / "mark").touch()
    assert local_directory(stored.as_uri()) == found
    assert (found / "mark").exists()


def test_its_weights_are_left_where_they_are_when_nobody_needs_them(stored):
    found = local_directory(stored.as_uri(), weights=False)
    assert [path.name for path in found.iterdir()] == ["config.json"]
    assert (local_directory(stored.as_uri()) / "model.safetensors").exists()


def test_a_hub_name_and_a_path_are_what_they_are():
    assert on_this_host("hub/name") == "hub/name"
    assert on_this_host("model") == "model"


def test_a_model_that_was_written_again_is_fetched_again(stored):
    before = local_directory(stored.as_uri())
    (stored / "model.safetensors").write_text("other weights")
    after = local_directory(stored.as_uri())
    assert before != after
    assert (after / "model.safetensors").read_text() == "other weights"


def test_versions_that_no_process_uses_are_removed(stored):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        first = pool.apply(local_directory, [stored.as_uri()])
        (stored / "model.safetensors").write_text("other weights")
        second = local_directory(stored.as_uri())
        assert first.exists()  # used by the other process
    (stored / "model.safetensors").write_text("the last weights")
    third = local_directory(stored.as_uri())
    assert [path.exists() for path in (first, second, third)] == [False, True, True]


def test_what_was_broken_off_is_not_a_model(stored, cache):
    found = local_directory(stored.as_uri())
    unfinished = found.rename(found.with_name(f"{found.name}.unfinished"))
    (unfinished / "model.safetensors").write_text("wei")
    assert local_directory(stored.as_uri()) == found
    assert (found / "model.safetensors").read_text() == "weights"
    assert not unfinished.exists()


def test_processes_of_one_host_share_it(stored):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = set(pool.map(local_directory, [stored.as_uri()] * 3))
    assert len(found) == 1


@pytest.mark.parametrize("wrong", ["", "nowhere"])
def test_no_model_is_one_clear_line(stored, wrong):
    (stored.parent / "empty").mkdir()
    place = (stored.parent / (wrong or "empty")).as_uri()
    with pytest.raises(UserError, match=r"(no model at|cannot read) file://"):
        local_directory(place)


def test_replicas_are_told_the_uri(model_directory):
    settings = resolve(ServeArgs(model=model_directory.as_uri()))
    assert settings.engine.directory == settings.ingress.directory == model_directory.as_uri()


def test_the_weights_are_fetched_by_replicas_alone(model_directory, cache):
    settings = resolve(ServeArgs(model=model_directory.as_uri()))
    assert not list(cache.glob("*/*.safetensors"))
    local = resolve(ServeArgs(model=str(model_directory)))
    assert settings.ingress.fingerprint == local.ingress.fingerprint
    (model_directory / "model.safetensors").rename(model_directory / "elsewhere")
    try:
        with pytest.raises(UserError, match=r"no \*\.safetensors"):
            resolve(ServeArgs(model=model_directory.as_uri()))
    finally:
        (model_directory / "elsewhere").rename(model_directory / "model.safetensors")
