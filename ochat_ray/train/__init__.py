"""Fine-tune a model on Ray Train; called, it is `ochat_ray.api.train`."""

from ochat_ray.callable_module import make_callable

make_callable(__name__)
