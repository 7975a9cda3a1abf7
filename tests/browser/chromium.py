"""What a real browser makes of a page; and text that would run in it, if it could."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

PWN = "document.title='pwned'"
HOSTILE = (
    f"<script>{PWN}</script>"
    f'<img src=x onerror="{PWN}">'
    f'"><svg onload="{PWN}">'
    f"' onclick='{PWN}' autofocus onfocus='{PWN}' x='"
    f"</pre></details></title></style><script>{PWN}</script>"
    f"<!--<script>{PWN}</script>--><iframe srcdoc='<script>parent.{PWN}</script>'></iframe>"
)
POLICY = re.compile(r"<meta http-equiv=Content-Security-Policy [^>]*>")


class Dom(HTMLParser):
    """The elements, the names of their attributes, and the title of a serialized document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.title = [], set(), ""
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._in_title = tag == "title"

    def handle_endtag(self, tag):
        self._in_title = False

    def handle_data(self, data):
        self.title += data if self._in_title else ""


def dom_of(page, folder):
    """What the browser has made of a page once everything in it has loaded or failed."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=2000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.rstrip().endswith("</html>"), done.stderr
    return Dom(done.stdout)


def without_escapes(page):
    """The report as it would be if its body were not escaped; the title stays."""
    head, mark, body = page.partition("</style>")
    return head + mark + html.unescape(body)
