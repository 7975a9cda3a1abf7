"""HTML pages from Jinja2 templates: all text is escaped automatically.

Pages open offline and run no script. Every template gets the style sheet of `report_style` as
`base_style`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ochat_ray.report_style import STYLE


def page_environment(package: str, *functions: Callable[..., Any]) -> Environment:
    """Return the environment of a package's pages, which compiles each template once.

    Args:
        package: package whose folder `templates` holds the templates; ours has the pages' frame.
        functions: functions that templates may call or use as filters, by their names.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("ochat_ray")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_name = {function.__name__: function for function in functions}
    environment.filters |= by_name
    environment.globals |= by_name | {"base_style": STYLE}
    return environment
