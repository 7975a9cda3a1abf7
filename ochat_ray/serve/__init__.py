"""Serve a trained model over OpenAI's protocol: `serve run ochat_ray.serve:app model=DIR`."""

from ray.serve import Application

from ochat_ray.errors import UserError
from ochat_ray.serve.args import ConfigurationError, ServeArgs, resolve
from ochat_ray.serve.deployment import build

__all__ = ["ServeArgs", "app"]


# No `from __future__ import annotations` here: Ray Serve reads the annotation as a class, to
# turn the command line's strings into ServeArgs.
def app(args: ServeArgs) -> Application:
    """Build the application: an OpenAI-compatible ingress in front of autoscaled model replicas.

    Raises:
        ConfigurationError: An argument is invalid; the message is one line.
    """
    try:
        return build(resolve(args))
    except UserError as error:
        raise ConfigurationError(str(error)) from None
