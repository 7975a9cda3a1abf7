"""ChatGPT's rendered HTML back to the Markdown that it was rendered from."""

from ochat_ray.data.markdown.blocks import html_to_markdown

__all__ = ["html_to_markdown"]
