"""`ochat-ray serve`, which is `serve run ochat_ray.serve:app`."""

import pytest
from ray.serve import scripts

from ochat_ray.errors import UserError
from ochat_ray.jobs import serve
from ochat_ray.serve import ServeArgs


def test_serve_gives_its_arguments_to_ray(monkeypatch):
    seen = []
    monkeypatch.setattr(scripts.cli, "main", lambda args, **_: seen.append(args))
    assert serve.main(["model=runs/chat/model", "--name", "mine"]) == 0
    assert seen == [["run", "ochat_ray.serve:app", "model=runs/chat/model", "--name", "mine"]]


def test_serve_s_help_has_every_argument():
    shown = {
        line.strip().partition("=")[0] for line in serve.usage("x").splitlines() if "=" in line
    }
    assert shown >= set(ServeArgs.model_fields)


def test_serve_s_error_is_one_line(capsys):
    assert serve.main(["model=/nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ochat-ray serve: no model directory at /nowhere; ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["http_host", "http_port"])
def test_an_address_without_effect_is_rejected(monkeypatch, capsys, name):
    """`serve run` started Serve at 8000, whatever it was."""
    monkeypatch.setattr(scripts.cli, "main", lambda *_, **__: pytest.fail("served"))
    assert serve.main(["model=base", f"{name}=1234"]) == 2
    assert f"{name} has no effect here" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{name} has no effect here"):
        serve.work({"model": "base", name: "1234"})
