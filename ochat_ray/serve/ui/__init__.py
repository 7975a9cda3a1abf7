"""Chat page at /ui, a client of the endpoint that serves it."""

from ochat_ray.serve.ui.mount import PATH, mount_ui

__all__ = ["PATH", "mount_ui"]
