"""The chat page in a real browser, against the endpoint on a real HTTP server."""

from __future__ import annotations

import json
import shutil

import httpx
import pytest

from ochat_ray.serve.engines.base import EngineError
from tests.serve.ui.conftest import KEY, KEYS, Led, page_app, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
pytest.importorskip("gradio", reason="the ui extra is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

expect = sync_api.expect
expect.set_options(timeout=15_000)

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
).split()


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture
def browser(playwright, tmp_path):
    """A window with a profile of its own; a test that asks another host fails."""
    context = playwright.chromium.launch_persistent_context(
        tmp_path / "profile",
        executable_path=CHROMIUM,
        args=ARGUMENTS,
        viewport={"width": 1280, "height": 800},
        accept_downloads=True,
    )
    strangers, errors = [], []

    def route(route):
        if route.request.url.startswith(("http://127.0.0.1:", "blob:", "data:")):
            route.continue_()
        else:
            strangers.append(route.request.url)
            route.abort()

    context.route("**/*", route)
    page = context.pages[0]
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert strangers == []
    assert errors == []


class Chat:
    """The page as a person uses it."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.goto(f"{url}/ui/")
        self.box = browser.locator("#text textarea")
        self.messages = browser.locator("#chat .message-row .prose")
        self.saved = browser.locator("#saved label")
        expect(self.box).to_be_visible()

    def say(self, text):
        self.box.fill(text)
        self.box.press("Enter")
        try:
            expect(self.box).not_to_have_value(text, timeout=5_000)
        except AssertionError:  # the page was not ready, as a person sees by the text in the box
            self.box.press("Enter")
            expect(self.box).not_to_have_value(text)

    def done(self):
        expect(self.browser.locator("#text .submit-button")).to_be_visible()

    def shows(self, *texts):
        expect(self.messages).to_have_text(list(texts))

    def wait_until(self, condition):
        # Not time.sleep: the browser's requests wait for this thread to let them through.
        for _ in range(500):
            if condition():
                return
            self.browser.wait_for_timeout(20)
        raise AssertionError("waited in vain")

    def button(self, name):
        return self.browser.locator("#chat").get_by_role("button", name=name)


@pytest.fixture
def open_chat(tokenizer, browser):
    """Opens the page on a backend that will say some texts."""
    servers = []

    def open_(*texts, **settings):
        backend = Led(tokenizer, *texts)
        server = serve(page_app(tokenizer, backend, **settings))
        servers.append(server)
        return Chat(browser, server.__enter__()), backend

    yield open_
    browser.goto("about:blank")  # a server waits for the requests that it has
    for server in servers:
        server.__exit__(None, None, None)


def test_an_answer_is_shown_as_it_is_written(open_chat):
    chat, backend = open_chat("One two|, three.", "Four.")
    assert chat.browser.title() == "ochat_ray"
    chat.say("Count")
    chat.shows("Count", "One two")
    assert backend.open == 1
    backend.go.release()
    chat.shows("Count", "One two, three.")
    chat.done()
    chat.say("And on")
    chat.shows("Count", "One two, three.", "And on", "Four.")
    # The whole conversation is the prompt.
    assert [text in backend.prompts[1] for text in ("Count", "One two, three.", "And on")]
    assert backend.open == 0


def test_stop_ends_the_generation(open_chat):
    chat, backend = open_chat("Once upon| a time", "Yes.")
    chat.say("Tell me a story")
    chat.shows("Tell me a story", "Once upon")
    chat.browser.locator("#text .stop-button").click()
    chat.wait_until(lambda: backend.open == 0)
    chat.done()
    chat.shows("Tell me a story", "Once upon")
    # What was written until then is part of the conversation.
    chat.say("Go on?")
    chat.shows("Tell me a story", "Once upon", "Go on?", "Yes.")
    assert "Once upon" in backend.prompts[1]


def test_a_page_that_is_closed_ends_the_generation(open_chat):
    chat, backend = open_chat("Once upon| a time")
    chat.say("Tell me a story")
    chat.shows("Tell me a story", "Once upon")
    chat.browser.goto("about:blank")
    chat.wait_until(lambda: backend.open == 0)


def test_another_conversation_ends_the_generation_and_stays_clean(open_chat):
    chat, backend = open_chat("Once upon| a time", "Yes.")
    chat.say("Tell me a story")
    chat.shows("Tell me a story", "Once upon")
    chat.browser.locator("#new").click()
    chat.wait_until(lambda: backend.open == 0)
    chat.shows()
    chat.say("Are you there?")
    chat.shows("Are you there?", "Yes.")
    expect(chat.saved).to_have_text(["Are you there?", "Tell me a story"])


def test_retry_asks_again(open_chat):
    chat, backend = open_chat("First.", "Second.")
    chat.say("Say")
    chat.shows("Say", "First.")
    chat.done()
    chat.button("Retry").click()
    chat.shows("Say", "Second.")
    assert backend.prompts[0] == backend.prompts[1]


def test_an_edited_message_is_asked_in_the_place_of_what_followed(open_chat):
    chat, backend = open_chat("One.", "Two.", "Three.")
    chat.say("First")
    chat.shows("First", "One.")
    chat.done()
    chat.say("Second")
    chat.shows("First", "One.", "Second", "Two.")
    chat.done()
    chat.button("Edit").first.click()
    chat.browser.locator("#chat textarea").fill("Other")
    chat.button("Submit").click()
    chat.shows("Other", "Three.")
    assert "First" not in backend.prompts[2]
    assert "Two." not in backend.prompts[2]


def test_undo_gives_the_message_back(open_chat):
    chat, _ = open_chat("One.")
    chat.say("First")
    chat.shows("First", "One.")
    chat.done()
    chat.button("Undo").click()
    chat.shows()
    expect(chat.box).to_have_value("First")


def test_the_settings_reach_the_engine(open_chat):
    chat, backend = open_chat("Arr.", "Arr.")
    chat.say("Hello")
    chat.shows("Hello", "Arr.")
    sampling = backend.samplings[0]
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (1.0, 1.0, None)
    chat.done()
    chat.browser.locator("#settings .toggle-button").click()
    for name, value in {
        "#system textarea": "Talk like a pirate.",
        "#temp input[type=number]": "0.25",
        "#top_p input[type=number]": "0.5",
        "#limit textarea": "7",
        "#seed textarea": "0",
    }.items():
        field = chat.browser.locator(name)
        field.fill(value)
        field.press("Tab")
    chat.say("Again")
    chat.wait_until(lambda: len(backend.samplings) == 2)
    sampling = backend.samplings[1]
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.25, 0.5, 0)
    assert sampling.max_tokens == 7
    assert "Talk like a pirate." in backend.prompts[1]


def test_what_the_endpoint_refuses_is_its_one_line(open_chat):
    chat, backend = open_chat("Yes.")
    chat.browser.locator("#settings .toggle-button").click()
    limit = chat.browser.locator("#limit textarea")
    limit.fill("many")
    limit.press("Tab")
    chat.say("Hello")
    expect(chat.browser.locator("#chat")).to_contain_text("max_tokens: Input should be a valid")
    chat.done()
    assert backend.prompts == []
    limit.fill("")
    limit.press("Tab")
    chat.button("Retry").click()
    chat.shows("Hello", "Yes.")
    # The notice was no part of the conversation.
    assert "max_tokens" not in backend.prompts[0]


def test_an_answer_that_breaks_keeps_what_there_is(open_chat):
    chat, backend = open_chat("Half|", "Whole.")
    backend.generate, generate = None, backend.generate

    async def breaks(*arguments, **options):
        async for delta in generate(*arguments, **options):
            yield delta
            break
        raise EngineError("the engine broke")

    backend.generate = breaks
    chat.say("Hello")
    expect(chat.browser.locator("#chat")).to_contain_text("the engine broke")
    expect(chat.messages.nth(1)).to_have_text("H")


HOSTILE = (
    "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    '<svg onload="document.title=\'pwned\'"></svg><iframe srcdoc="<script>parent.document.title='
    "'pwned'</script>\"></iframe>[a](javascript:document.title='pwned') "
    "![](http://example.com/steal?it) done"
)


def test_nothing_that_a_model_or_a_person_writes_runs(open_chat):
    chat, _ = open_chat(HOSTILE)
    chat.say(HOSTILE)
    expect(chat.messages).to_have_count(2)
    expect(chat.messages.nth(0)).to_contain_text("done")
    expect(chat.messages.nth(1)).to_contain_text("done")
    for link in chat.browser.locator("#chat .prose a").all():
        assert "javascript" not in (link.get_attribute("href") or "")
    chat.browser.reload()
    expect(chat.messages.nth(1)).to_contain_text("done")
    chat.browser.wait_for_timeout(500)
    assert chat.browser.title() == "ochat_ray"
    rendered = chat.browser.locator("#chat .message-wrap").inner_html()
    for mark in ("<script", 'onerror="', 'onload="', "<iframe"):
        assert mark not in rendered.replace("&lt;", "").replace("aria-label", ""), mark


def test_conversations_stay_in_the_browser_and_come_back(open_chat):
    chat, backend = open_chat("One.", "Two.", "Three.")
    chat.say("First")
    chat.shows("First", "One.")
    chat.done()
    chat.browser.locator("#new").click()
    chat.shows()
    chat.say("Second")
    chat.shows("Second", "Two.")
    chat.done()
    expect(chat.saved).to_have_text(["Second", "First"])
    chat.browser.reload()
    chat.shows("Second", "Two.")
    chat.saved.nth(1).click()
    chat.shows("First", "One.")
    chat.say("More")
    chat.shows("First", "One.", "More", "Three.")
    assert "Second" not in backend.prompts[2]
    chat.done()
    chat.browser.locator("#delete").click()
    chat.shows()
    expect(chat.saved).to_have_text(["Second"])


def test_a_conversation_can_be_taken_away(open_chat):
    answer = "```python\nif a:\n    b\n```"
    chat, _ = open_chat(answer)
    chat.browser.locator("#settings .toggle-button").click()
    system = chat.browser.locator("#system textarea")
    system.fill("Be brief.")
    system.press("Tab")
    chat.say("Code?")
    expect(chat.messages.nth(1)).to_contain_text("if a:")
    chat.done()
    taken = {}
    for kind in ("json", "markdown"):
        with chat.browser.expect_download() as download:
            chat.browser.locator(f"#{kind}").click()
        taken[download.value.suggested_filename] = download.value.path().read_text()
    assert json.loads(taken["conversation.json"]) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Code?"},
            {"role": "assistant", "content": answer},
        ]
    }
    expected = f"## system\n\nBe brief.\n\n## user\n\nCode?\n\n## assistant\n\n{answer}\n"
    assert taken["conversation.md"] == expected


def test_a_key_is_asked_for_and_goes_with_each_request(open_chat, browser):
    with pytest.raises(AssertionError):
        open_chat("Hello, Ada.", keys=KEYS)  # no box to write in: the login form is there
    browser.get_by_label("API key").fill("wrong")
    browser.get_by_role("button", name="Log in").click()
    expect(browser.get_by_role("alert")).to_have_text("That is not a key of this server.")
    browser.get_by_label("API key").fill(KEY)
    browser.get_by_role("button", name="Log in").click()
    expect(browser.locator("#text textarea")).to_be_visible()
    url = browser.url.removesuffix("/ui/")
    chat = Chat(browser, url)
    chat.say("Hi")
    chat.shows("Hi", "Hello, Ada.")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    kept = browser.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert KEY not in kept + browser.content()
    browser.locator("#settings .toggle-button").click()
    browser.get_by_role("button", name="Log out").click()
    expect(browser.get_by_label("API key")).to_be_visible()
