"""Fine-tune, serve and evaluate a chat model from raw conversations, on Ray."""

__version__ = "0.1.0"
