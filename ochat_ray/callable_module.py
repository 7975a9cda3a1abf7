"""Subpackages that are functions, too.

`ochat_ray.train` is the package of that name, which `import ochat_ray.train.config` makes an
attribute of `ochat_ray`; a function cannot have the same name. So the package itself is called, and
gives the call to `ochat_ray.api.train`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """Module whose call is that of the function of its name in `ochat_ray.api`."""

    def __call__(self, **options: Any) -> dict[str, Any]:
        from ochat_ray import api

        function = getattr(api, self.__name__.rpartition(".")[2])
        result: dict[str, Any] = function(**options)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name; Ray's cloudpickle does so only for modules of the class ModuleType."""
        return importlib.import_module, (self.__name__,)


def make_callable(name: str) -> None:
    """Make a module callable, by the attribute assignment that Python documents for modules."""
    sys.modules[name].__class__ = _Callable
