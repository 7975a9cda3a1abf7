"""Serve a trained model over OpenAI's protocol: `serve run ochat_ray.serve:app model=DIR`."""

import click
import ray
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from ochat_ray.errors import UserError
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.deployment import build

__all__ = ["ServeArgs", "app"]


class ConfigurationError(click.ClickException, RayServeException):
    """What is wrong with the arguments, in one line.

    Ray Serve has two readers for it. `serve run` is a click command: a ClickException is printed
    as one line and ends with its exit code. `serve deploy` builds in a Ray task, where a
    RayServeException's text becomes the application's status message, without a traceback.
    """

    exit_code = 2


# Not `from __future__ import annotations` here: Ray Serve reads the annotation as a class, to
# turn the command line's strings into ServeArgs.
def app(args: ServeArgs) -> Application:
    """The application: an OpenAI-compatible ingress in front of autoscaled model replicas.

    Raises:
        ConfigurationError: an argument does not hold; its text is one line.
    """
    try:
        return build(resolve(args))
    except UserError as error:
        # A click exception's text is shown to people as it is, so no cause is chained to it.
        raise ConfigurationError(str(error)) from None
