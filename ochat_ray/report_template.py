"""HTML pages from Jinja2 templates: all text is escaped automatically.

Pages open offline and run no script. Every template gets the style sheet of `report_style` as
`base_style`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ochat_ray.report_style import STYLE


def render_page(
    package: str,
    template: str,
    values: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any]],
) -> str:
    """Return the page of a template.

    Args:
        package: package whose folder `templates` holds the template; ours has the pages' frame.
        template: file name.
        values: values of the template's variables.
        functions: functions that the template may call or use as filters, by name.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("ochat_ray")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= functions
    environment.globals |= functions
    return environment.get_template(template).render(base_style=STYLE, **values)
