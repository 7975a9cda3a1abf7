"""docs/your-own-model.md's commands for the Hub, on a server of its routes: upload, and fetch."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ochat_ray.errors import UserError
from ochat_ray.models.model_directory import is_hub_name, local_directory
from tests.hub_server import Hub

ROOT = Path(__file__).parent.parent
(UPLOAD,) = re.findall("^hf upload .*$", (ROOT / "docs/your-own-model.md").read_text(), re.M)
USERS = """
import sys
from ochat_ray.models.model_directory import local_directory
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.tokenization.tokenizer import open_tokenizer
from ochat_ray.models.base_model import load_config

name = "you/name"
settings = resolve(ServeArgs.model_validate({"model": name}))
assert settings.engine.directory == name  # each host fetches it itself
print(settings.ingress.served_model_name, settings.ingress.model_type)
print(sorted(path.name for path in local_directory(name).iterdir()))
print(open_tokenizer(name).bos_token, load_config(name).model_type)
"""


def test_a_name_of_the_hub_is_two_words_that_are_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/model").mkdir(parents=True)
    assert is_hub_name("Qwen/Qwen2.5-0.5B-Instruct")
    for path in ("runs/model", "a", "a/b/c", "./b", "../b", "~/b", "/b", "s3://a/b", "runs/demo/"):
        assert not is_hub_name(path)


def test_a_name_that_is_nowhere_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(UserError, match=r"^there is no directory .*/you/none, and the Hub's you/"):
        local_directory("you/none")


def _unreachable(*_arguments, **_options):
    raise OSError("cannot reach\nthe Hub")


def test_a_model_is_uploaded_and_read_by_its_name(model_directory, tmp_path):
    model = tmp_path / "runs/chat/model"
    shutil.copytree(model_directory, model)
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    for name in ("checkpoints/step-1/state.pt", "tensorboard/events", ".run/written.json"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}")
    hub = Hub()
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def run(*command):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment | {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with hub.serving():
        _, *arguments = shlex.split(UPLOAD.replace("YOU/NAME", "you/name"))
        run(str(Path(sys.executable).parent / "hf"), *arguments)
        assert sorted(hub.repositories["you/name"]) == sorted(
            p.name for p in model.iterdir() if p.is_file()
        )
        hub.repositories["you/name"]["checkpoints/large.safetensors"] = b"of somebody else"
        found = run(sys.executable, "-c", USERS)
        assert found.startswith("name openchat\n")
        assert found.endswith("<s> llama\n")
        assert "checkpoints" not in found
        weights = hub.fetched.count("model.safetensors")
    environment["HF_HUB_OFFLINE"] = "1"
    assert run(sys.executable, "-c", USERS) == found  # from the cache
    assert weights == 1
