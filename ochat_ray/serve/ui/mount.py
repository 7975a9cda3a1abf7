"""Mount the chat page on the server; gradio is imported only when it is mounted."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ochat_ray.serve.ui.gate import CheckKey

PATH = "/ui"


def mount_ui(app: FastAPI, *, served_models: Sequence[str], check_key: CheckKey | None) -> FastAPI:
    """Add the chat page to an app with POST /v1/chat/completions, and return the app.

    `check_key` returns the name of an API key, or None for a wrong one; without it, there is no
    login. Access to `/ui` is controlled in front of the app: with keys it is open, since the page's
    own gate asks for one; without keys it is as restricted as the API.
    """
    from ochat_ray.serve.ui.page import build_page  # imports gradio

    page = build_page(app, served_models=served_models, check_key=check_key)

    async def to_page(request: Request) -> Response:
        # Relative to the prefix: the app may not know its public address.
        return RedirectResponse(f"{request.scope.get('root_path', '')}{PATH}/")

    app.add_api_route(PATH, to_page, include_in_schema=False)
    app.mount(PATH, page.gate)
    page.join_lifespan(app)
    return app
