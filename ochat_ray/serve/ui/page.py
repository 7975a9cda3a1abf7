"""Chat page in gradio. Its state is kept in the browser: see page.js."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import Any

import gradio as gr
import orjson
from fastapi import FastAPI
from gradio.routes import App
from starlette.requests import Request

from ochat_ray.serve.admission import FORWARDING_HEADERS
from ochat_ray.serve.ui.completion import complete, newest
from ochat_ray.serve.ui.gate import CheckKey, Gate
from ochat_ray.serve.ui.transport import StreamingTransport

REFRESH_S = 0.04
"""Seconds between two updates of an answer; the cost of an update grows with the chat."""

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

Shown = list[dict[str, Any]]
"""Displayed chat, in the format of gradio's Chatbot."""


class Page:
    """gradio's app behind its gate, with what the mount needs."""

    def __init__(
        self, app: FastAPI, *, served_models: Sequence[str], check_key: CheckKey | None
    ) -> None:
        self._app = app
        self._readers: dict[str, set[asyncio.Task[None]]] = {}
        self._blocks = self._build(served_models, log_out=check_key is not None)
        # Host app for gradio's mount, which prepares the Blocks; only the mounted app is used.
        host = FastAPI()
        gr.mount_gradio_app(
            host,
            self._blocks,
            path="",
            theme=_theme(),
            css=_asset("page.css"),
            js=_asset("page.js"),
            auth_dependency=self._user if check_key else None,
            show_error=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
        )
        self._lifespan = host.router.lifespan_context
        self.gate = Gate(_mounted(host), check_key=check_key, on_left=self._end_answers)

    def join_lifespan(self, app: FastAPI) -> None:
        """Start and stop gradio's queue with the app."""
        outer = app.router.lifespan_context

        @contextlib.asynccontextmanager
        async def both(of: FastAPI) -> AsyncIterator[Any]:
            async with outer(of) as state, self._lifespan(of):
                yield state

        app.router.lifespan_context = both

    def _user(self, request: Request) -> str | None:
        session = self.gate.session(request)
        return session.name if session else None

    def _end_answers(self, page: str) -> None:
        for reader in self._readers.pop(page, ()):
            reader.cancel()

    async def _answer(self, asked: str, request: gr.Request) -> AsyncGenerator[Shown, None]:
        """Send the page's request to the endpoint; yield the chat as it grows."""
        if not asked:
            return
        body = orjson.loads(asked)
        assert isinstance(request.request, Request)
        came = request.request
        headers = {name: came.headers[name] for name in FORWARDING_HEADERS if name in came.headers}
        session = self.gate.session(came)
        if session is not None:
            headers["Authorization"] = f"Bearer {session.key}"
        # Sent as if by the browser, so that access is decided for the client, not this process.
        peer = (came.client.host, came.client.port) if came.client else ("", 0)
        transport = StreamingTransport(self._app, client=peer)
        before = [_message(m["role"], m["content"]) for m in body["messages"]]
        before = [message for message in before if message["role"] != "system"]
        answer = complete(transport, body, headers)
        readers = self._readers.setdefault(request.session_hash or "", set())
        async with aclosing(newest(answer, every_s=REFRESH_S, readers=readers)) as drawn:
            async for progress in drawn:
                shown = [*before, _message("assistant", progress.text)] if progress.text else before
                if progress.problem is not None:
                    # The title marks it as not part of the conversation: page.js removes it.
                    shown = [*shown, _message("assistant", "", title=progress.problem)]
                yield shown

    def _build(self, served_models: Sequence[str], *, log_out: bool) -> gr.Blocks:
        models = list(served_models)
        with gr.Blocks(
            title="ochat_ray", analytics_enabled=False, fill_height=True, fill_width=True
        ) as blocks:
            with gr.Sidebar(width=270, elem_id="conversations") as side:
                gr.HTML("<h1>ochat_ray</h1>", elem_id="brand")
                new = gr.Button("New chat", variant="primary", elem_id="new")
                saved = gr.Radio(
                    [], label="Conversations", show_label=False, container=False, elem_id="saved"
                )
                with gr.Row(elem_id="keep"):
                    as_json = gr.Button("JSON", size="sm", elem_id="json")
                    as_markdown = gr.Button("Markdown", size="sm", elem_id="markdown")
                    delete = gr.Button("Delete", size="sm", elem_id="delete")
            with gr.Sidebar(width=290, position="right", open=False, elem_id="settings"):
                gr.HTML("<h2>Settings</h2>")
                model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
                system = gr.Textbox(label="System prompt", lines=4, elem_id="system")
                temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature", elem_id="temp")
                top_p = gr.Slider(0, 1, 1, step=0.01, label="Top p", elem_id="top_p")
                # Not gr.Number: an empty one shows 0.
                limit = gr.Textbox(
                    label="Max tokens", placeholder="what the context holds", elem_id="limit"
                )
                seed = gr.Textbox(label="Seed", placeholder="a new one each time", elem_id="seed")
                leave = gr.Button("Log out", size="sm", visible=log_out, elem_id="leave")
            chat = gr.Chatbot(
                label="Conversation",
                show_label=False,
                container=False,
                scale=1,
                editable="user",
                buttons=["copy"],
                layout="bubble",
                feedback_options=None,
                allow_file_downloads=False,
                allow_tags=False,
                placeholder="# What is on your mind?",
                elem_id="chat",
            )
            text = gr.Textbox(
                label="Message",
                show_label=False,
                container=False,
                placeholder="Message ochat_ray",
                lines=1,
                max_lines=8,
                autofocus=True,
                submit_btn=True,
                elem_id="text",
            )
            gr.HTML(
                "Answers can be wrong. Conversations are kept in this browser only.",
                elem_id="note",
            )
            # The browser's request, as text, so that no argument can be one of gradio's files.
            asked = gr.Textbox(visible=False)
            edited = gr.Textbox(visible=False)

        settings = [model, system, temperature, top_p, limit, seed]
        with blocks:
            answers = []

            def then_answer(event: Any) -> None:
                answer = event.then(
                    self._answer,
                    asked,
                    chat,
                    concurrency_limit=None,
                    show_progress="hidden",
                    api_visibility="undocumented",
                )
                answer.then(None, chat, [chat, text, saved], js=_js("done"))
                answers.append(answer)

            blocks.load(None, None, [chat, system, saved, side], js=_js("load"))
            then_answer(
                text.submit(None, [text, chat, *settings], [text, chat, asked], js=_js("send"))
            )
            then_answer(chat.retry(None, [chat, *settings], [text, chat, asked], js=_js("retry")))
            then_answer(
                chat.edit(_edited, None, edited, api_visibility="undocumented").then(
                    None, [edited, chat, *settings], [text, chat, asked], js=_js("edit")
                )
            )
            chat.undo(None, chat, [text, chat, saved], js=_js("undo"))
            # Each of these cancels the answer in progress.
            text.stop(None, None, None, cancels=answers).then(
                None, chat, [chat, text, saved], js=_js("done")
            )
            to_other = [chat, system, text, saved, side]
            saved.input(None, saved, to_other, js=_js("open"), cancels=answers)
            new.click(None, None, to_other, js=_js("start"), cancels=answers)
            delete.click(None, None, to_other, js=_js("remove"), cancels=answers)
            leave.click(None, None, None, js=_js("logOut"))
            as_json.click(None, [chat, system], None, js=_js("exportJson"))
            as_markdown.click(None, [chat, system], None, js=_js("exportMarkdown"))
        return blocks


def build_page(app: FastAPI, *, served_models: Sequence[str], check_key: CheckKey | None) -> Page:
    """Return the chat page of an app."""
    return Page(app, served_models=served_models, check_key=check_key)


def _edited(event: gr.EditData) -> str:
    """Return the index and new text of an edited message, which page.js cannot learn otherwise."""
    index = event.index[0] if isinstance(event.index, list | tuple) else event.index
    return orjson.dumps([index, event.value]).decode()


def _message(role: str, text: str, *, title: str | None = None) -> dict[str, Any]:
    # A part and not a string: gradio removes the indentation of a string.
    message: dict[str, Any] = {"role": role, "content": [{"type": "text", "text": text}]}
    return message | {"metadata": {"title": title}} if title else message


def _mounted(host: FastAPI) -> App:
    apps = [getattr(route, "app", None) for route in host.routes]
    return next(app for app in apps if isinstance(app, App))


def _js(name: str) -> str:
    return f"(...values) => window.ochat.{name}(...values)"


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _theme() -> gr.themes.Base:
    # gradio's own themes fetch fonts from other hosts.
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="zinc", radius_size="lg", font=FONT, font_mono=MONO
    )
