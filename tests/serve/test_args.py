from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import click
import pytest

from ochat_ray.errors import UserError
from ochat_ray.serve.args import ConfigurationError, ServeArgs, resolve
from ochat_ray.serve.served_model import served_name
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer


@pytest.fixture
def copy(model_directory, tmp_path):
    return shutil.copytree(model_directory, tmp_path / "copy")


def test_a_bare_directory_is_served_under_its_name(model_directory):
    settings = resolve(ServeArgs(model=str(model_directory)))
    assert settings.ingress.served_model_name == "tiny"
    assert settings.ingress.model_type == "openchat"
    assert settings.ingress.context_length == 4096
    assert (settings.min_replicas, settings.max_replicas) == (1, 2)


def test_training_names_the_template_and_the_context_and_the_directory_the_model(copy):
    card = {"recipe": "demo", "model_type": "opencoder", "context_length": 1024}
    (copy / "ochat.json").write_text(json.dumps(card))
    settings = resolve(ServeArgs(model=str(copy)))
    assert settings.ingress.served_model_name == copy.name
    assert settings.ingress.model_type == "opencoder"
    assert settings.ingress.context_length == settings.engine.context_length == 1024


def test_adapters_alone_name_their_base_and_how_both_are_served(copy):
    (copy / "config.json").unlink()
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "base-model"}')
    expected = rf"model=base-model adapters={copy.parent} \(they are then named {copy.name}\)"
    with pytest.raises(UserError, match=expected):
        resolve(ServeArgs(model=str(copy)))


def test_origins_may_be_written_with_blanks(model_directory):
    args = ServeArgs(
        model=str(model_directory), cors_origins="https://a.example, https://b.example,"
    )
    assert resolve(args).ingress.cors_origins == ("https://a.example", "https://b.example")


def test_a_relative_directory_is_made_absolute(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    assert resolve(ServeArgs(model="copy")).engine.directory == str(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_a_directory_lacks_is_said_in_one_line(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError) as caught:
        resolve(ServeArgs(model=str(copy)))
    assert name.removeprefix("model") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_end_of_turn_token_is_refused(copy):
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace("<|end_of_turn|>", "<|other|>"))
    with pytest.raises(UserError, match=r"neither a chat template nor a <.end_of_turn.> token"):
        resolve(ServeArgs(model=str(copy)))
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve(ServeArgs(model=str(copy))).ingress.model_type == "chat"
    with pytest.raises(UserError, match=r"has no <.end_of_turn.> token"):
        resolve(ServeArgs(model=str(copy), model_type="openchat"))


def test_a_base_s_own_template_comes_before_the_one_that_its_token_suggests(copy):
    (copy / "ochat.json").unlink(missing_ok=True)
    assert resolve(ServeArgs(model=str(copy))).ingress.model_type == "openchat"
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve(ServeArgs(model=str(copy))).ingress.model_type == "chat"
    (copy / "ochat.json").write_text('{"model_type": "openchat"}')
    assert resolve(ServeArgs(model=str(copy))).ingress.model_type == "openchat"


def test_an_exported_template_of_2023_is_recognized_without_ochat_json(copy, tokenizer):
    export_tokenizer(tokenizer, "openchat").save_pretrained(copy)
    assert (copy / "chat_template.jinja").exists()
    (copy / "ochat.json").unlink(missing_ok=True)
    assert resolve(ServeArgs(model=str(copy))).ingress.model_type == "openchat"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/my-model", "my-model"),
        ("/w/runs/poems/model", "poems"),
        ("s3://bucket/runs/poems/model/", "poems"),
        ("/model", "model"),
    ],
)
def test_a_model_has_the_name_of_its_run_or_directory(place, name):
    assert served_name(place) == name


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": "/nowhere"}, "no model directory at /nowhere"),
        ({"engine": "x"}, "unknown engine 'x'"),
        ({"model_type": "x"}, "unknown model type 'x'"),
        ({"min_replicas": "3", "max_replicas": "2"}, "below min_replicas"),
        ({"context_length": "5000"}, "above the model's 4096"),
        ({"keys": "/nowhere"}, "cannot read API keys"),
        ({"keys": "env:NO_KEYS"}, "no environment variable NO_KEYS"),
    ],
)
def test_an_argument_that_does_not_hold_is_one_line(model_directory, fields, text):
    with pytest.raises(UserError, match=text) as caught:
        resolve(ServeArgs(**({"model": str(model_directory)} | fields)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["sk-secret", "env:sk-secret", {"sk-secret": 1}, "~sk-secret"])
def test_a_key_given_as_the_argument_is_refused_without_showing_it(model_directory, value):
    with pytest.raises((UserError, click.ClickException)) as caught:
        resolve(ServeArgs(model=str(model_directory), keys=value))
    assert "secret" not in str(caught.value)


def test_keys_of_a_file_are_not_stored_in_the_settings_of_the_application(
    model_directory, tmp_path
):
    (tmp_path / "keys").write_text("a:secret\n")
    (tmp_path / "keys").chmod(0o600)
    settings = resolve(ServeArgs(model=str(model_directory), keys=str(tmp_path / "keys")))
    assert settings.ingress.keys == ()
    assert settings.ingress.keys_path == str(tmp_path / "keys")


@pytest.fixture
def pretend(monkeypatch):
    """Make a package look installed, or not."""
    find = importlib.util.find_spec

    def pretend(package, installed):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (find("json") if installed else None) if name == package else find(name),
        )

    return pretend


@pytest.mark.parametrize(("installed", "engine"), [(True, "vllm"), (False, "transformers")])
def test_auto_is_vllm_where_it_is_installed(model_directory, pretend, installed, engine):
    pretend("vllm", installed)
    assert resolve(ServeArgs(model=str(model_directory))).engine.engine == engine
    if not installed:
        with pytest.raises(UserError, match="pip install"):
            resolve(ServeArgs(model=str(model_directory), engine="vllm"))


@pytest.mark.parametrize("installed", [True, False])
def test_the_page_is_there_where_gradio_is_installed(model_directory, pretend, installed):
    pretend("gradio", installed)
    assert resolve(ServeArgs(model=str(model_directory))).ingress.ui == installed
    two = ServeArgs(model=str(model_directory), ingress_replicas=2)
    assert not resolve(two).ingress.ui
    wanted = ServeArgs(model=str(model_directory), ui=True)
    if installed:
        assert resolve(wanted).ingress.ui
        with pytest.raises(UserError, match="ui=true needs ingress_replicas=1"):
            resolve(two.model_copy(update={"ui": True}))
    else:
        with pytest.raises(UserError, match=r"ui=true needs gradio; pip install 'ochat-ray\[ui"):
            resolve(wanted)


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"modle": "x"}, "unknown argument 'modle'"), ({"max_ongoing": "many"}, "max_ongoing='many'")],
)
def test_arguments_that_do_not_parse_are_one_line(fields, text):
    with pytest.raises(ConfigurationError, match=text) as caught:
        ServeArgs.model_validate(fields)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_importing_the_application_does_not_pay_for_torch():
    code = (
        "import sys, ochat_ray.serve;"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fingerprint_is_of_the_model_and_the_engines_settings(model_directory, tmp_path):
    copy = shutil.copytree(model_directory, tmp_path / "copy")

    def fingerprint(directory=copy, **args):
        args = ServeArgs(model=str(directory), engine="transformers", **args)
        return resolve(args).ingress.fingerprint

    first = fingerprint()
    assert re.fullmatch("fp_[0-9a-f]{16}", first)
    assert first == fingerprint(model_directory) == fingerprint(served_model_name="other")
    assert first != fingerprint(dtype="bfloat16")
    (copy / "ochat.json").write_text('{"step": 7}')
    assert first != fingerprint()
