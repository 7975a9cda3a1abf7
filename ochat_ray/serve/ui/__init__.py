"""The chat page: a client of the endpoint that the endpoint itself serves, at /ui."""

from ochat_ray.serve.ui.mount import PATH, mount_ui

__all__ = ["PATH", "mount_ui"]
