"""Serve a model: `ochat-ray serve`, which is `serve run ochat_ray.serve:app`."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from ochat_ray.errors import UserError

APPLICATION = "ochat_ray.serve:app"


def main(arguments: Sequence[str], program: str = "ochat-ray serve") -> int:
    """Run the command until it is interrupted and return its exit status.

    Arguments of the form name=value are those of `ServeArgs`; all others are options of Ray's
    command `serve run`.
    """
    if "--help" in arguments or "-h" in arguments:
        print(usage(program))
        return 0
    try:
        _check_no_address(argument.partition("=")[0] for argument in arguments)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    import click
    from ray.serve.scripts import cli

    try:
        cli.main(["run", APPLICATION, *arguments], prog_name="serve", standalone_mode=False)
    except click.ClickException as error:
        print(f"{program}: {error.format_message()}", file=sys.stderr)
        return 2
    except click.Abort:
        return 130
    return 0


def work(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Serve a model until Ray Serve is shut down; return its base URL and its name.

    Raises:
        UserError: An argument is unknown or invalid, or the model cannot be served.
    """
    _check_no_address(arguments)
    from ray import serve
    from ray.serve.context import _get_global_client  # Ray 2.60: no public one has the port

    from ochat_ray.cluster import ray_session
    from ochat_ray.serve import ServeArgs, app
    from ochat_ray.serve.args import ConfigurationError, resolve

    try:
        args = ServeArgs.model_validate(arguments)
        application, name = app(args), resolve(args).ingress.served_model_name
    except ConfigurationError as error:
        raise UserError(str(error)) from None
    ray_session.join_or_start()
    serve.run(application)
    client = _get_global_client()
    assert client is not None
    return {"url": f"http://127.0.0.1:{client.http_config.port}/v1", "model": name}


def _check_no_address(names: Iterable[str]) -> None:
    """Reject the address of Serve, which is for `serve deploy`: here it would have no effect.

    Raises:
        UserError: It is among the names of arguments.
    """
    for name in names:
        if name in ("http_host", "http_port"):
            raise UserError(
                f"{name} has no effect here, where Serve starts at 127.0.0.1:8000 unless it runs "
                "already; for another address run `ray start --head` and "
                f"`serve start --{name.replace('_', '-')} ...` first"
            )


def usage(program: str) -> str:
    """Return the help text: every argument with its default and description."""
    lines = [
        f"usage: {program} [name=value ...] [options of `serve run`]",
        "",
        f"Serve a model directory; the same as `serve run {APPLICATION} [name=value ...]`.",
        "",
    ]
    for name, default, description in _arguments():
        lines.append(f"  {name}={default}")
        lines += textwrap.wrap(description, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _arguments() -> Iterator[tuple[str, str, str]]:
    """Yield (name, default, description) of the fields of `ServeArgs`.

    They are read from the source, since the class's module imports Ray, which takes seconds.
    """
    source = (resources.files("ochat_ray") / "serve" / "args.py").read_text("utf-8")
    (fields,) = (
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "ServeArgs"
    )
    for node, following in zip(fields, [*fields[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and node.value is not None):
            continue
        value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                description = " ".join(text.split())
            case _:
                description = ""
        yield ast.unparse(node.target), _shown(ast.unparse(value)), description


def _shown(value: str) -> str:
    """Return a default as it would be given on the command line."""
    special = {"None": "(none)", "True": "true", "False": "false", "2 * 2 ** 20": "2097152"}
    return special.get(value, value.strip("'"))
