"""Public path of `encode`, which converts turns to token ids and loss weights."""

from ochat_ray.tokenization.template import encode

__all__ = ["encode"]
