"""Score served models with a judge; called, it is `ochat_ray.api.evaluate`."""

from ochat_ray.callable_module import make_callable

make_callable(__name__)
