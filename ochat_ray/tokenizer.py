"""Public path of `load_tokenizer`, which opens the tokenizer that `encode` expects."""

from ochat_ray.tokenization.tokenizer import load_tokenizer

__all__ = ["load_tokenizer"]
