"""Chat page at /ui, a client of the endpoint that serves it.

It is not `gradio.load_chat`: that (gradio 6.31) has one key, which is fixed at the start, for all
visitors, and no settings besides a system message, which it sends with the first turn only. Here
visitors log in with a key of their own, choose model, temperature, top p, limit and seed, edit and
retry turns, and find their conversations again, in their browser; an answer that nobody reads is
cancelled.
"""

from ochat_ray.serve.ui.mount import PATH, mount_ui

__all__ = ["PATH", "mount_ui"]
