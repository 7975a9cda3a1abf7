"""Fine-tune, serve and evaluate a chat model from raw conversations, on Ray.

The stages are commands (`ochat-ray --help`) and functions (`ochat_ray.api`).
"""

__version__ = "0.1.0"
