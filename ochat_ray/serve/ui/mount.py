"""Where the page meets the server: nothing here or before it imports gradio until it is mounted."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ochat_ray.serve.ui.gate import CheckKey

PATH = "/ui"


def mount_ui(app: FastAPI, *, served_models: Sequence[str], check_key: CheckKey | None) -> FastAPI:
    """Add the chat page to an app that has POST /v1/chat/completions; returns the app.

    `check_key` gives the name of an API key, or None for a wrong one; without it, there is no
    login. Whoever may reach `/ui` is decided in front of the app: with keys anyone (the page's own
    gate asks for one), without keys whoever may reach the API.
    """
    from ochat_ray.serve.ui.page import build_page  # imports gradio

    page = build_page(app, served_models=served_models, check_key=check_key)

    async def to_page(request: Request) -> Response:
        # Relative to the prefix: the app may not know the address it is reached at.
        return RedirectResponse(f"{request.scope.get('root_path', '')}{PATH}/")

    app.add_api_route(PATH, to_page, include_in_schema=False)
    app.mount(PATH, page.gate)
    page.join_lifespan(app)
    return app
